"""Step profile: where the time of a training step goes. It changes nothing of a training."""
