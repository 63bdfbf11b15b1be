"""The loaders and training loops that the benchmarks compare: one file each, every one in a process of its own.

`catalog.py` lists them, `serve.py` is the process that runs one, `client.py` the side that asks it for rounds.
Nothing here is imported by fastaug.
"""
