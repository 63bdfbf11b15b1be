"""Recipes: every key with type, limits and help; YAML and command line. Knows no torch and no code of any feature."""
