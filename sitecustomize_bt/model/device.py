"""CUDA devices, looked at without initialising CUDA (a child that forks afterwards would break)."""

from __future__ import annotations

import ctypes
import platform
import sys

import torch

from ..core.devices import Devices
from ..startup.faults import pass_on

_NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"


def look() -> Devices:
    """The devices this process can see."""
    if torch.version.cuda is None and torch.version.hip is None:
        return Devices(present=False)
    if torch.cuda.is_initialized():
        count = torch.cuda.device_count()
        sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(count)]
        return Devices(bool(sizes), min(sizes, default=None))
    if torch.version.hip is not None:
        return Devices(present=None)
    return _ask_nvml()


def _ask_nvml() -> Devices:
    """Ask the driver's management library, which does not touch CUDA (torch does the same).

    All of the machine's devices count, hidden ones too: where they differ, this errs towards
    calling the memory too small. https://docs.nvidia.com/deploy/nvml-api/
    """
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError as error:
        pass_on(error)
        # No library, no driver; except on boards that have CUDA without NVML.
        return Devices(present=False if platform.machine() in ("x86_64", "AMD64") else None)
    try:
        return _devices_of(nvml)
    except AttributeError:  # something else of that name
        return Devices(present=None)


def _devices_of(nvml: ctypes.CDLL) -> Devices:
    if nvml.nvmlInit_v2() != 0:
        return Devices(present=None)
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return Devices(present=None)
        sizes = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
            if (
                nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0
                or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0
            ):
                return Devices(present=True)
            sizes.append(memory[0])
        return Devices(bool(sizes), min(sizes, default=None))
    finally:
        nvml.nvmlShutdown()
