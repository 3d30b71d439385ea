"""How much of the hardware a training run uses: model FLOPs utilisation (MFU).

    FLOPs/token = 6 (N - N_emb) + 6 L H (d_qk + d_v) T        MFU = FLOPs/token x tokens/s ÷ peak

6 = a multiply and an add, once forward and twice backward. Causal masks are not discounted, recomputation (activation
checkpointing) is not counted. Source: Chowdhery et al., 2022, arXiv:2204.02311, appendix B; without the embedding.
"""

import re

from torch import nn

from models import parallel

__all__ = ["flops_of", "flops_per_token", "mfu", "peak"]

# Dense bfloat16 operations a second, without sparsity, by the manufacturer; the more special name comes first.
PEAKS = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,  # SXM
    "H200": 989e12,
    "A100": 312e12,
    "A6000": 154.85e12,
}


def flops_per_token(
    parameters: float, embedding: int, layers: int, heads: int, query_width: float, value_width: float, length: int
) -> float:
    """Operations to train on one token.

    Args:
        parameters: all of the model, tied tensors once.
        embedding: of tables that are only looked up; 0 when the table is tied to a head that reads it at every token.
        layers, heads: of attention; 0 for a model without.
        query_width, value_width: of one head.
        length: tokens of a row, T.

    >>> f"{flops_per_token(8_030_261_248, 128_256 * 4096, 32, 32, 128, 128, 8192):.3e}"
    '5.791e+10'
    """
    return 6.0 * (parameters - embedding) + 6.0 * layers * heads * (query_width + value_width) * length


def flops_of(model: nn.Module, length: int) -> float | None:
    """Operations to train an assembled model on one token of rows of `length`; never more than it does.

    A head of masked words reads few tokens and is left out with its table. None for a model with a decoder or of two
    streams, where source and target tokens cost differently.
    """
    if getattr(model, "decoder", None) is not None or getattr(model.embedding, "dual", False):
        return None
    rare = [part.head for name, part in model.targets.items() if name != "lm" and hasattr(part, "head")]
    read = {id(part.head.weight) for name, part in model.targets.items() if name == "lm"}
    left_out = {id(p): p for p in [*parallel.tables(model), *(p for head in rare for p in head.parameters())]}
    embedding = sum(p.numel() for p in left_out.values() if id(p) not in read)
    heads = [
        part for part in model.modules() if all(hasattr(part, name) for name in ("query", "key", "value", "output"))
    ]
    passes = getattr(model.encoder, "depth", 1) / max(1, len(parallel.blocks(model)))  # layers may share their weights
    again = (passes - 1) * sum(p.numel() for block in parallel.blocks(model) for p in block.parameters())
    widths = passes * sum(part.query.out_features + part.output.in_features for part in heads)
    return flops_per_token(sum(p.numel() for p in model.parameters()) + again, embedding, 1, 1, widths, 0, length)


def mfu(flops: float, tokens_per_second: float, peak: float) -> float:
    """Share of a device's peak, in 0..1, of `flops` a token at so many tokens a second and device."""
    return flops * tokens_per_second / peak


def peak(device_name: str) -> float | None:
    """Peak of a device by the name that torch.cuda.get_device_name gives; None where it is not known, as for a CPU.

    >>> peak("NVIDIA H100 80GB HBM3"), peak("NVIDIA H100 PCIe"), peak("NVIDIA GeForce RTX 4090")
    (989000000000000.0, 756000000000000.0, None)
    """
    for name, value in PEAKS.items():
        if all(re.search(rf"\b{word}\b", device_name) for word in name.split()):
            return value
    return None
