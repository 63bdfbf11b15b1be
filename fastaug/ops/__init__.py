"""Fused operations on batches, each with the reference that defines it. Know no recipe, no file and no run."""
