"""Reports: pictures of what a run does. They get tensors and names, not the trainer, and change nothing of it."""
