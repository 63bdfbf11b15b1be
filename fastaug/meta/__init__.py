"""The meta step: what is learned, when, and with which engine. Does not know the training loop, which calls it."""
