import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # `nets`, as tests are no package
