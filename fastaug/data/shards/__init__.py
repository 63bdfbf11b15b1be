"""Prepared shards: images decoded and resized once, kept in tar files that the loaders read by offset.

layout.py: what lies in a shard folder, and its index. writer.py: from an index to shards, of single images (encode.py)
in tar files (tar_parts.py). files.py: their bytes. data/loaders/shards.py: batches from them. docs/shards.md
describes the layout for other readers.
"""
