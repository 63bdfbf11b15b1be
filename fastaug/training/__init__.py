"""Training: the loop, what it is built from, checkpoints and the end of a run. Every other room may be used here."""
