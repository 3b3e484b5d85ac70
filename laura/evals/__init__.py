"""Measuring: one file per task, what grades them, and what runs them."""
