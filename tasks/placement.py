"""Where and how a frozen teacher is held: on the device, in the CPU's memory, in 8 bits, or shared among ranks."""

import torch
from torch import nn

from models import parallel
from models.distill._placement import offload, shard

__all__ = ["HOW", "PackageMissing", "place", "rounding"]

HOW = ("device", "offload", "int8", "fsdp")
INEXACT = ("int8",)  # those that round weights, and so change what the teacher says


class PackageMissing(LookupError):
    """An optional package is asked for, but not installed."""


def place(teacher: nn.Module, how: str, device: str | torch.device, precision: torch.dtype = torch.float32):
    """Freeze a teacher, in evaluation mode, and put its weights where they are to be; changed in place, and returned.

    Args:
        how: "device"; "offload", layers on the CPU, one at a time on the device (exact, slower); "int8", weights of the
            layers' products in 8 bits with a scale for each output (torchao; a quarter of float32, not exact); "fsdp",
            a share of every layer on each rank (exact).
        precision: of what is not in 8 bits.

    Raises:
        PackageMissing: torchao is not installed.
        ValueError: another word; a model without layers.
    """
    if how not in HOW:
        raise ValueError(f"a teacher is placed as one of {', '.join(HOW)}; got {how!r}")
    teacher.eval().requires_grad_(False).to(precision)
    if how == "offload":
        return offload(teacher, device)
    if how == "fsdp":
        return shard(teacher, device)
    if how == "int8":
        _to_8_bits(teacher)
    return teacher.to(device)


def rounding(how: str) -> str | None:
    """What a placement does to the weights' numbers: teachers of equal rounding say the same wherever they are held."""
    return how if how in INEXACT else None


def _to_8_bits(model: nn.Module) -> None:
    """Heads are left out: losses read their weights."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise PackageMissing("a teacher in 8 bits needs the package torchao, which is not installed: "
                             "pip install 'rootstock[int8]', or place the teacher otherwise") from None  # fmt: skip
    for block in parallel.blocks(model):
        quantize_(block, Int8WeightOnlyConfig(version=2, set_inductor_config=False))
