"""What times fastaug beside other libraries, and itself on a GPU: `python -m benchmarks.loader`, and so on.

Nothing in `fastaug/` imports it, and it is not in the wheel.
"""
