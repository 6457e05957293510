"""robosuite's Lift, PickPlaceCan and NutAssemblySquare as robomimic has them. robosuite is an optional dependency."""

from .env import CAMERAS, SUITES, canonical, check_made, check_recorded, make
from .upstream import TASKS

__all__ = ["CAMERAS", "SUITES", "TASKS", "canonical", "check_made", "check_recorded", "make"]
