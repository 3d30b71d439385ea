"""What a distillation is said to take is what small ones take."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.components._model import assemble
from models.distill import _placement
from models.distill._distillation import see
from models.distill._estimate import COPIES, Plan, bill
from models.distill._kept import Kept
from models.memory import Sizes

RECIPE = {"width": 64, "vocabulary": 200, "dropout": 0.0, "embedding": {"word": {}, "position": {"length": 32}},
          "encoder": {"transformer": {"layers": 3, "heads": 4, "inner": 256}}, "target": {"mlm": {}}}  # fmt: skip
SMALL = RECIPE | {"encoder": {"transformer": {"layers": 2, "heads": 4, "inner": 128}}}
LENGTH = 16


def pair():
    torch.manual_seed(0)
    return assemble(SMALL), assemble(RECIPE).eval().requires_grad_(False)


def planned(**more):
    told = {"wanted": {"logits": [], "hidden": [0, 2]}, "half": False, "teacher_bytes": 4, **more}
    return Plan(4, 8, LENGTH, **told)


def weights(model) -> int:
    return sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values())


def test_by_hand():
    """The teacher alone: 4 bytes a number; in 8 bits its layers' products take one, the rest 4."""
    student, teacher = pair()
    whole, large = bill(student, teacher, planned()), Sizes.of(teacher)
    assert whole.memory["teacher: weights"] == weights(teacher) == 4 * large.parameters
    assert large.products == 3 * (4 * 64 * 64 + 2 * 64 * 256)
    tight = bill(student, teacher, planned(teacher="int8"))
    assert tight.memory["teacher: weights"] == 4 * large.parameters - 3 * large.products
    chunk = 4 * LENGTH * 200
    assert whole.memory["logits"] == 4 * (COPIES * chunk + 2 * 200 * 64)
    assert whole.total == sum(whole.memory.values())


def test_a_cache_takes_what_its_rows_take():
    student, teacher = pair()
    plan = planned(teacher="cache", words=7)
    batch = {"ids": torch.randint(200, (4, LENGTH)), "mask": torch.ones(4, LENGTH, dtype=torch.bool)}
    packed = Kept.of(plan.wanted, teacher, words=7).pack(see(teacher, plan.wanted, batch, {}))
    cost = bill(student, teacher, plan)
    assert 4 * cost.row == sum(value.nbytes for value in packed.values()) == cost.memory["teacher: kept"]
    assert not any("weights" in name and name.startswith("teacher") for name in cost.memory)


def test_layers_that_come_and_go(monkeypatch):
    student, teacher = pair()
    plan = planned(teacher="offload")
    cost, moved = bill(student, teacher, plan), []
    monkeypatch.setattr(_placement, "_copy", lambda tensor, device: moved.append(tensor.nbytes) or tensor.clone())
    _placement.offload(teacher, "cpu")
    for _ in range(2):  # 8 rows, 4 at once
        see(teacher, plan.wanted, {"ids": torch.zeros(4, LENGTH, dtype=torch.int64),
                                   "mask": torch.ones(4, LENGTH, dtype=torch.bool)}, {})  # fmt: skip
    assert cost.moved == sum(moved)
    one = sum(p.nbytes for p in teacher.encoder.layers[0].parameters())
    outside = weights(teacher) - 3 * one
    assert cost.memory["teacher: weights"] == outside + one
    assert cost.seconds(1e12, 0.5, 1) == pytest.approx(sum(cost.flops.values()) / 5e11 + cost.moved / 50e9)


def test_operations_are_those_counted():
    """Biases and norms are counted as products are: within 3% of what torch counts, each way."""
    student, teacher = pair()
    batch = {"ids": torch.randint(200, (8, LENGTH)), "mask": torch.ones(8, LENGTH, dtype=torch.bool)}
    cost = bill(student, teacher, planned())
    words = lambda model: model.targets["mlm"].head(model.targets["mlm"].read(model.encode(**batch)[0]))
    counted = sdpa_kernel(SDPBackend.MATH)  # the counter does not know the fused one of the CPU
    with counted, FlopCounterMode(display=False) as counter, torch.no_grad():
        words(teacher)
    assert cost.flops["teacher"] == pytest.approx(counter.get_total_flops(), rel=0.03)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        words(student).sum().backward()
    assert cost.flops["student"] == pytest.approx(counter.get_total_flops(), rel=0.03)
    again = bill(student, teacher, planned(recompute=True)).flops
    assert again["student again"] == pytest.approx((again["student"] - 6 * 200 * 64 * 8 * LENGTH) / 3)
    cached = bill(student, teacher, planned(teacher="cache")).flops
    assert "teacher" not in cached and cached["student"] == cost.flops["student"]


def test_ranks_share_the_teacher():
    student, teacher = pair()
    large, plan = Sizes.of(teacher), planned(teacher="fsdp", ranks=2)
    shared = bill(student, teacher, plan).memory["teacher: weights"]
    outside = large.parameters - large.in_layers
    assert shared == 4 * (outside + large.in_layers / 2 + large.in_layers / 3)  # its half, and one layer gathered
    assert bill(student, teacher, planned(teacher="fsdp")).memory["teacher: weights"] == weights(teacher)


def test_nothing_is_held_while_it_is_worked_out():
    with torch.device("meta"):
        models = pair()
    assert bill(*models, planned()) == bill(*pair(), planned())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="one of device, offload, int8, fsdp, cache; got 'disk'"):
        planned(teacher="disk")
    with pytest.raises(ValueError, match="8 rows of a step are cut into 4 on each of 4 devices"):
        planned(ranks=4)
    with pytest.raises(ValueError, match="the teacher has 3 layers"):
        bill(*pair(), planned(wanted={"hidden": [3]}))
