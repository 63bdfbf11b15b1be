"""DALI graphs. Each definition serves GPU and CPU; nothing here draws, shuffles or reads a list of files."""
