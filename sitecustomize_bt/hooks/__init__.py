"""Who calls us: patches on other people's modules. wrapt is imported here and nowhere else."""
