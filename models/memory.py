"""How much memory a transformer takes on an accelerator: weights, optimizer, and what the backward pass keeps.

    a layer keeps of each token    s (4 D + 2 D_kv + g I)    inputs of its products, its heads (s bytes each)
                                 + 4 n D + 4 m + 4 H         inputs of its norms, their moments, attention's log-sums
                                 + 2 D                       where dropout acts: one byte a number
    g = 2 for a plain feed-forward layer, 4 for a gated one; n = 2, m = 4 for layer norms, n = 4, m = 2 for RMS norms
    s = 4, or 2 under autocast, which also keeps the products' weights in 2 bytes

Recomputed layers keep their input, 4 D, and one layer at a time the rest. Exact for the layers of models/components
with fused attention, as tests measure; an accelerator's kernels may keep less (RMS norms: n = 2). Counting as in
Korthikanti et al., 2022, arXiv:2205.05198, for the tensors that this implementation keeps.
"""

import re
from dataclasses import dataclass

from torch import nn

from models import parallel
from models.components._norm import RMSNorm

__all__ = ["Sizes", "activations", "capacity", "states"]

# Bytes by the manufacturer; the more special name comes first.
CAPACITIES = {"H100 NVL": 94e9, "H100": 80e9, "H200": 141e9, "A100": 80e9, "A6000": 48e9}


@dataclass(frozen=True)
class Sizes:
    """What memory follows from; numbers of parameters count tied tensors once."""

    parameters: int
    in_layers: int  # parameters of all layers, those that are shared once
    products: int  # parameters that products in the layers read
    head: int  # V x D of word logits, also where it is tied to the embedding; 0 without
    layers: int  # how many are run
    stored: int  # how many have weights of their own
    width: int  # D
    inner: int  # I
    heads: int  # H
    query_width: int  # of all heads
    kv_width: int  # D_kv, of all heads of keys, and of values
    gated: bool
    rms: bool
    dropout: bool

    @classmethod
    def of(cls, model: nn.Module) -> "Sizes":
        """Of a model of components with a transformer encoder alone; it may be on the meta device.

        Raises:
            LookupError: it has a decoder, or no layers of attention.
        """
        layers = parallel.blocks(model.encoder)
        if getattr(model, "decoder", None) is not None or not layers or not hasattr(layers[0], "attention"):
            raise LookupError("memory is worked out for models of one transformer encoder, causal or not; this one "
                              "has a decoder, or other layers")  # fmt: skip
        one = layers[0]
        count = lambda parts: sum({id(p): p.numel() for part in parts for p in part.parameters()}.values())
        linear = [part for layer in layers for part in layer.modules() if isinstance(part, nn.Linear)]
        heads = [part.head for name, part in model.targets.items() if name in ("lm", "mlm")]
        return cls(
            parameters=count([model]),
            in_layers=count(layers),
            products=sum(part.weight.numel() for part in linear),
            head=heads[0].weight.numel() if heads else 0,
            layers=model.encoder.depth,
            stored=len(layers),
            width=one.attention.query.in_features,
            inner=one.feedforward.inner.out_features,
            heads=one.attention.query.out_features // one.attention.head_width,
            query_width=one.attention.query.out_features,
            kv_width=one.attention.key.out_features,
            gated=one.feedforward.gate is not None,
            rms=isinstance(one.feedforward_norm, RMSNorm),
            dropout=one.dropout > 0,
        )

    def kept(self, half: bool = False) -> int:
        """Bytes that one layer keeps of each token for the backward pass; `half`: under autocast."""
        each, norms = 2 if half else 4, (4, 2) if self.rms else (2, 4)
        numbers = 2 * self.width + 2 * self.query_width + 2 * self.kv_width + (4 if self.gated else 2) * self.inner
        bare = each * numbers + 4 * (norms[0] * self.width + norms[1] + self.heads)
        return bare + 2 * self.width * self.dropout


def states(sizes: Sizes, optimizer: str = "adamw", half: bool = False, ranks: int = 1) -> dict[str, float]:
    """Bytes that a trained model takes on each device, whatever the batch.

    Args:
        optimizer: "adamw", "muon" or "adafactor".
        half: products read weights in 2 bytes: all of them under autocast, two layers' at a time where ranks share.
        ranks: that share weights, gradients and moments (FSDP); 1 where each has all.
    """
    moments = 0.05 * sizes.parameters
    if optimizer != "adafactor":  # muon has one moment of what products read, not two
        moments = 8 * sizes.parameters - (4 * sizes.products if optimizer == "muon" else 0)
    read = sizes.products / sizes.stored * 2 if ranks > 1 else sizes.products
    gathered = 0 if ranks == 1 else 2 * sizes.in_layers / sizes.stored * (0 if half else 4)
    return {
        "weights": 4 * sizes.parameters / ranks,
        "weights in use": 2 * read if half else gathered,
        "gradients": 4 * sizes.parameters / ranks,
        "optimizer": moments / ranks,
    }


def activations(sizes: Sizes, tokens: int, half: bool = False, recompute: bool = False) -> float:
    """Bytes that layers keep of so many tokens for the backward pass; `recompute`: all but each layer's input."""
    if not recompute:
        return tokens * sizes.layers * sizes.kept(half)
    return tokens * (sizes.layers * 4 * sizes.width + sizes.kept(half))


def capacity(device_name: str) -> float | None:
    """Bytes of a device by name; None where it is not known.

    >>> capacity("NVIDIA H100 80GB HBM3"), capacity("NVIDIA H200"), capacity("abacus")
    (80000000000.0, 141000000000.0, None)
    """
    for name, value in CAPACITIES.items():
        if all(re.search(rf"\b{word}\b", device_name) for word in name.split()):
            return value
    return None
