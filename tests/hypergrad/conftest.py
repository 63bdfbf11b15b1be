import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # `tiny_nets`, as tests are no package
