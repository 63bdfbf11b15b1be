"""Augmentation: policies that sample parameters by (key, id), and their application to batches.

`names` reads the names of fixed policies, `policies` builds them (timm's and torchvision's, on uint8 batches
before the fused op), `erasing` is random erasing after it. Nothing is imported here: names can be checked
without torch.
"""
