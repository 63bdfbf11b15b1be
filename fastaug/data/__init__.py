"""Data: from bytes on disk to uint8 batches with ids. Knows no augmentation, no network and no run folder."""
