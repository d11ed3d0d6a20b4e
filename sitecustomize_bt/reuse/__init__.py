"""Encode reuse (opt-in): inputs that a model has encoded before are not computed again.

``repeat``: the stage that answers an exact repeat. ``prefix``: the stage that continues from a
known prefix. ``key``: what one call depends on. ``watch``: whether the model is unchanged, by its
``attributes`` and ``tensors``. ``entry``: what is kept of one call. ``store``: how much is kept.

This package is imported when a model first needs it. So nothing in it can affect a program that has
not asked for it.
"""
