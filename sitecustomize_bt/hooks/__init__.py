"""Who calls us: patches on other people's modules. wrapt is imported here and nowhere else.

These modules are imported while the host imports transformers, before huggingface_hub and torch
are. The host may not have said yet where their files are (FramePack sets HF_HOME in its script),
so whatever imports either is imported inside functions that run later.
"""
