"""Prepared shards: images decoded and resized once, kept in tar files that the loaders read by offset.

layout.py: what lies in a shard folder, and its index. writer.py: from an index to shards. prepare.py: one image.
loader.py: batches from raw shards. docs/shards.md describes the layout for other readers.
"""
