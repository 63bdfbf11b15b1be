"""The derivative of a validation loss after one update in whatever shaped the update: one signature, several engines."""
