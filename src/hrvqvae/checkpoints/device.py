"""The device that a name stands for."""

from __future__ import annotations

import torch

from hrvqvae.utils.errors import InputError


def resolve_device(name: str) -> torch.device:
    """The device of that name; auto takes a GPU where there is one. Raises InputError where there is none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device is {name!r}, but there are {torch.cuda.device_count()} GPUs here; use --device cpu")
    return device
