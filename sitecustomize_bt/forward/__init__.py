"""The way of one forward of an accelerated model."""
