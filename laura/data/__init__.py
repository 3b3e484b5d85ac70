"""Data: sources, templates, packing, splits."""
