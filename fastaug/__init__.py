"""fastaug: image classifiers trained with soft, mixed and learned augmentation at full speed."""

__version__ = "0.1.0"
