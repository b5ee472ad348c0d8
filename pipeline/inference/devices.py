"""Devices by their names in torch."""

from __future__ import annotations

import torch

from pipeline.records import UserError


def resolve(name: str) -> str:
    """Check the name of a device and resolve ``auto``.

    Args:
        name: ``auto`` (CUDA where there is one, else the CPU), or a name that torch knows: ``cpu``,
            ``cuda``, ``cuda:1``.

    Returns:
        The name, ``auto`` resolved.

    Raises:
        UserError: torch does not see the device, or does not know the name.

    Example:
        >>> resolve("cpu")
        'cpu'
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(
            f"device {name!r} is none of auto, cpu, cuda, cuda:0, cuda:1 and so on. Choose one of"
            " them."
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: no CUDA device is visible to torch. Use --device cpu, or check"
            " nvidia-smi and CUDA_VISIBLE_DEVICES."
        )
    if (
        device.type == "cuda"
        and device.index is not None
        and device.index >= torch.cuda.device_count()
    ):
        raise UserError(
            f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices, counted from 0."
            " Choose one of them."
        )
    return name


def kind(name: str) -> str:
    """Type of a device, as autocast and gradient scalers take it.

    Args:
        name: a name that torch knows, such as ``cuda:1``.

    Returns:
        The name without an index: ``cpu`` or ``cuda``.

    Example:
        >>> kind("cuda:1")
        'cuda'
    """
    return torch.device(name).type
