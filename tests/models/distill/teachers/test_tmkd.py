"""TMKD by hand."""

import pytest
import torch

from models import build
from models.distill._signals import Shape, Signals
from models.distill._words import Words

SHAPE = Shape(1, 2, 1, vocabulary=2, classes=2)


def seen(task=None, logits=None) -> Signals:
    mask = torch.tensor([[True, False]])
    return Signals(mask, task=None if task is None else torch.tensor(task), logits=logits)


def test_fine_tuning_by_hand():
    # (1 - 0)^2 and (2 - 0)^2: mean 5/2. Against (1, 0): 0 and 4: mean 2. Their mean is 9/4; the labels weigh 1/2.
    method = build("distill.teachers", "tmkd", SHAPE, [SHAPE, SHAPE], stage="finetune")
    loss = method(seen([[1.0, 2.0]]), [seen([[0.0, 0.0]]), seen([[1.0, 0.0]])])
    assert loss.item() == pytest.approx(2.25)
    assert method.hard_weight() == 0.5 and method.needs == ("hard", "task")
    assert build("distill.teachers", "tmkd", SHAPE, [SHAPE] * 4, stage="finetune").hard_weight() == 0.25


def test_pre_training_by_hand():
    # the same numbers at the one real token; the other one pads
    logits = lambda *real: torch.tensor([[list(real), [9.0, 9.0 * real[0]]]])
    method = build("distill.teachers", "tmkd", SHAPE, [SHAPE, SHAPE])
    teachers = [seen(logits=logits(0.0, 0.0)), seen(logits=logits(1.0, 0.0))]
    assert method(seen(logits=logits(1.0, 2.0)), teachers).item() == pytest.approx(2.25)
    assert method.hard_weight() == 0 and method.needs == ("logits",)
    head = Words(torch.tensor([[[1.0, 2.0], [3.0, 3.0]]]), torch.eye(2))
    assert method(seen(logits=head), teachers).item() == pytest.approx(2.25)


def test_stages():
    with pytest.raises(ValueError, match="TMKD has no stage 'policy'; its stages: pretrain, finetune"):
        build("distill.teachers", "tmkd", SHAPE, [SHAPE, SHAPE], stage="policy")
