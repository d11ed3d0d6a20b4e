"""Padding skip: which columns are computed, and how the output gets its length back."""
