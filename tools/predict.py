"""Classifies image files with the network of a run; the body is fastaug/commands/predict.py."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from fastaug.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
