"""The source of a swapper in the manner of FramePack's."""

from __future__ import annotations

SWAPPER = '''
"""A swapper in the manner of FramePack's: every module gets a class that fetches its weights."""
import torch


class DynamicSwapInstaller:
    @staticmethod
    def install_model(model, **move):
        for module in model.modules():
            DynamicSwapInstaller._install(module, move)

    @staticmethod
    def _install(module, move):
        base = module.__class__
        module.__dict__["forge_backup_original_class"] = base

        def fetch(self, name):
            held = self.__dict__.get("_parameters", {}).get(name)
            if held is None:
                return base.__getattr__(self, name)
            return torch.nn.Parameter(held.to(**move), requires_grad=held.requires_grad)

        module.__class__ = type("Swapped" + base.__name__, (base,), {"__getattr__": fetch})

    @staticmethod
    def uninstall_model(model):
        for module in model.modules():
            module.__class__ = module.__dict__.pop("forge_backup_original_class")
'''
