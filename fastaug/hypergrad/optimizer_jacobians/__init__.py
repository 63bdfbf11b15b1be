"""Derivatives of one optimizer step w' = U(w, g) in its gradient g: (dU/dg)^T v, and in its hyperparameters."""
