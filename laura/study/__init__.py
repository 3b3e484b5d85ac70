"""Wiring: a study from recipe to summary."""
