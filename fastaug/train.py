"""Trains one recipe: accelerate launch fastaug/train.py RECIPE.yaml [section.key=value ...]; `fastaug train` as a file.

It is a script, for launchers and for clones that are not installed. `fastaug.train` is the function of that name.
"""

import os
import sys

if __name__ == "fastaug.train":
    raise ImportError("fastaug/train.py is a script; the function is `from fastaug import train` (docs/python.md)")
if __package__ in (None, ""):  # run as a script: Python put fastaug/ first on sys.path
    HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(HERE), *(entry for entry in sys.path if entry != HERE)]

from fastaug.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
