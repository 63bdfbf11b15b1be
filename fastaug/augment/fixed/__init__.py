"""Fixed augmentation policies, timm's and torchvision's by name, on single uint8 images in a loader's threads."""
