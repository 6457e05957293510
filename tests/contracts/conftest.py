"""Puts this folder on the path: worker processes import the simulator in `line_world` by its name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
