"""Scripted demonstrators of LIBERO's tasks: from a BDDL goal to skills, executed through the environment's own actions."""

from .expert import LiberoExpert

__all__ = ["LiberoExpert"]
