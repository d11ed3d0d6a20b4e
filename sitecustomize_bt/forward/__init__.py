"""The way of one forward of an accelerated model.

``front`` stands before the model's call. ``call`` is one call, bound once. ``guards`` say who else
looks in. ``backends`` and ``measuring`` are two of the stages; the others are in padding and reuse.
"""
