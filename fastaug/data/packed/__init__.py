"""Packed sets: images in files of other programs, read where they lie, by file, offset and length.

records.py: what every format gives. tars.py, tfrecords.py, arrow.py, parquet.py, imagenet.py: the formats. places.py:
which files belong to a set, and their splits. index.py: the index of one. data/loaders/shards.py makes batches of it.
"""
