"""What the meta step can learn, one class in each file; fastaug/meta/parameters.py has their names."""
