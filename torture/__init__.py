"""Attacks on a run: odd and damaged files, kills, damaged run folders, bad recipes. tools/torture.py runs them."""
