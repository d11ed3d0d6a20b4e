"""Patches on other libraries' modules, through which we are called. Only this room imports wrapt.

These modules are imported while the host imports transformers, before huggingface_hub and torch.
The host may not have said yet where their files are (FramePack sets HF_HOME in its script). So
anything that imports either is imported inside functions that run later.
"""
