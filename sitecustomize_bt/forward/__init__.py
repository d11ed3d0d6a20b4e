"""What happens in one forward of an accelerated model.

``front`` intercepts the model's call. ``call`` is one call with bound arguments. ``guards`` say who
else observes it. ``backends`` and ``measuring`` are stages; the others are in padding and reuse.
"""
