"""Using a trained network: loading it, classifying images with it, and giving it to other programs."""
