"""Augmentation: from a uint8 batch to the network's input and its soft target.

May not know how anything is learned, gradients of networks, or the meta step. Nothing is imported here.
"""
