"""MFU against figures published for Llama-3-8B, and the table of peaks."""

import pytest

from models.components._model import assemble
from models.flops import PEAKS, flops_of, flops_per_token, mfu, peak

LLAMA_3_8B = {"parameters": 8_030_261_248, "embedding": 128_256 * 4096, "layers": 32, "heads": 32, "query_width": 128,
                  "value_width": 128, "length": 8192}  # fmt: skip


def test_by_hand():
    # 10 numbers of which 4 are looked up; 2 layers x 3 heads x (5 + 7) x 11 tokens.
    assert flops_per_token(10, 4, 2, 3, 5, 7, 11) == 6 * 6 + 6 * 2 * 3 * 12 * 11


@pytest.mark.parametrize(("rate", "share"), [(5762, 0.337), (6667, 0.390)])
def test_llama_3_8b_on_h100(rate, share):
    assert mfu(flops_per_token(**LLAMA_3_8B), rate, peak("NVIDIA H100 80GB HBM3")) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA RTX A6000", 154.85e12),
        ("NVIDIA RTX 6000 Ada Generation", None),
        ("cpu", None),
    ],
)
def test_peaks(name, value):
    assert peak(name) == value
    assert len(PEAKS) == 6


def recipe(target: dict, tie: bool = True, **layers) -> dict:
    """Width 4, vocabulary 7, 2 heads, inner 8, no bias and no position: attention 64, feed-forward 64, norms 16."""
    settings = {"layers": 2, "heads": 2, "inner": 8, "bias": False, "mask": "causal" if "lm" in target else "full"}
    return {"width": 4, "vocabulary": 7, "embedding": {"word": {}, "norm": "none"}, "target": target, "tie": tie,
            "encoder": {"transformer": settings | layers}}  # fmt: skip


@pytest.mark.parametrize(
    ("target", "tie", "layers", "weights"),
    [
        ({"lm": {}}, True, {}, 2 * 144 + 28),  # the table is a head too: it multiplies at every token
        ({"lm": {}}, False, {}, 2 * 144 + 28),
        ({"lm": {}}, True, {"shared": True}, 2 * 144 + 28),  # one layer's weights, twice at work
        ({"mlm": {}}, True, {}, 2 * 144 + 28),  # transform 4 x 4 + 4 and norm 8; the head reads few tokens
    ],
)
def test_of_an_assembled_model(target, tie, layers, weights):
    # both matrices of attention's scores: 2 layers x 2 heads x (2 + 2) x 10 tokens
    assert flops_of(assemble(recipe(target, tie, **layers)), 10) == 6 * weights + 6 * 2 * 2 * 4 * 10
