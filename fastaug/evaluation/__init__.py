"""Evaluation: figures of a split and of single images. It changes nothing of a training."""
