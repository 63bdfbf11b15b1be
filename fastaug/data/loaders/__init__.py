"""Loaders: from requests (epoch, ids) to batches of decoded images, prefetched while the caller works."""
