"""Learned parts, one class in each file; meta/parameters.py has their names, meta/reweighting.py the instant ones."""
