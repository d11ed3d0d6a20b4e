"""Encode reuse, opt-in: what a model has computed once for the same inputs is not computed again.

``repeat``: the stage that answers an exact repeat. ``prefix``: the stage that begins behind a known
prefix. ``key``: what one call depends on. ``watch``: whether the model is still what it was, by its
``attributes`` and ``tensors``. ``entry``: what is kept of one call. ``store``: how much is kept.

Imported when a model first wants it, so that whoever has not asked for this cannot be hit by
anything in it.
"""
