"""Runs as recordings for rerun's viewer. rerun is an optional dependency, imported by `recorder` alone."""
