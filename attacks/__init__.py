"""Attacks on a run: damaged and changing files, kills, broken run folders, bad recipes; and what has to come of each.

Tests take some of them, `tools/torture.py` all. Not in the wheel.
"""
