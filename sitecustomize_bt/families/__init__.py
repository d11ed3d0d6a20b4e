"""The families of encoders: what applies to each class, and how its forward is cut.

``table`` has a row for each class. ``text`` describes the adapter of a text family. Every other
file is one family. Nothing here imports torch.
"""
