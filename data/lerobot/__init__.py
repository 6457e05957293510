"""LeRobot's data sets: v3.0 and v2.1 read, v3.0 written, without importing lerobot."""

from .reader import LeRobotStore

__all__ = ["LeRobotStore"]
