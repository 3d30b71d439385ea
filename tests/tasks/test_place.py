"""A teacher is put where it is told, and what is missing for it is named."""

import sys
import types

import pytest
import torch

from models.components._model import assemble
from tasks.placement import PackageMissing, place

RECIPE = {"width": 8, "vocabulary": 30, "dropout": 0.5, "target": {"cls": {"labels": 3}}, "embedding": {"word": {}},
          "encoder": {"transformer": {"layers": 2, "heads": 2, "inner": 16}}}  # fmt: skip


def teacher():
    torch.manual_seed(3)
    return assemble(RECIPE).train()


def said(model):
    with torch.no_grad():
        return model.predict("cls", ids=torch.arange(6)[None], mask=torch.ones(1, 6, dtype=torch.bool))


@pytest.mark.parametrize("how", ["device", "offload", "fsdp"])
def test_a_teacher_is_frozen_and_says_the_same(how):
    model = place(teacher(), how, "cpu")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(said(model), said(teacher().eval()))
    half = place(teacher(), how, "cpu", torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(said(half).float(), said(model), rtol=0.05, atol=0.05)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(PackageMissing, match=r"torchao, which is not installed: pip install 'rootstock\[int8\]'"):
        place(teacher(), "int8", "cpu")


def test_layers_alone_are_in_8_bits(monkeypatch):
    """What is asked of the library: every layer, at 8 bits, and no head, whose weights losses read."""
    asked = []
    library = types.SimpleNamespace(
        Int8WeightOnlyConfig=lambda **how: ("int8", how), quantize_=lambda part, how: asked.append((part, how[0]))
    )
    monkeypatch.setitem(sys.modules, "torchao", types.SimpleNamespace(quantization=library))
    monkeypatch.setitem(sys.modules, "torchao.quantization", library)
    model = place(teacher(), "int8", "cpu")
    assert asked == [(layer, "int8") for layer in model.encoder.layers]


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="one of device, offload, int8, fsdp; got 'disk'"):
        place(teacher(), "disk", "cpu")
