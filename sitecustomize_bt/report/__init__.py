"""Keeping and telling what was decided."""
