"""Environments in other processes: with another interpreter, whose packages ours can't share, or on another machine."""
