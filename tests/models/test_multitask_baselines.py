import math

import pytest
import torch
import torch.nn.functional as F

from models import build
from models.fit import fit
from models.metrics import auc
from models.recommend._layers import gate, mix
from models.recommend.aitm import calibrate, transfer
from models.recommend.esmm import both_logit

PLAIN = {"embedding": 3, "dropout": 0.0, "norm": False, "dense_field": False}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(name: str, tasks: int = 2, **settings):
    return build("recommend", name, [4, 6], 2, tasks, **PLAIN | settings)


def rows(count: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([torch.randint(0, 4, (count,)), torch.randint(0, 6, (count,))], 1), torch.rand(count, 2)


def gradient(model, task: int, parameter: torch.Tensor) -> torch.Tensor:
    """Of one task's loss, on rows of both classes."""
    x = rows()
    label = torch.full((20, model.logits(*x).shape[1]), torch.nan)
    label[:, task] = torch.arange(20) % 2
    return torch.autograd.grad(model(*x, label)[1][f"task_{task}"], parameter)[0]


# Shared-Bottom, OMoE, MMoE


@pytest.mark.parametrize("norm", [False, True])
def test_mmoe_of_one_expert_is_shared_bottom(norm):
    shared = make("shared_bottom", bottom=(5, 4), towers=(3,), norm=norm)
    mmoe = make("mmoe", experts=1, widths=(5, 4), towers=(3,), norm=norm)
    renamed = {key.replace("bottom.", "experts."): value for key, value in shared.state_dict().items()}
    for part in ("weight", "bias"):  # the gates' rows follow the expert's
        renamed[f"first.{part}"] = torch.cat([renamed[f"first.{part}"], getattr(mmoe.first, part)[5:]])
    mmoe.load_state_dict(renamed)
    x = rows()
    torch.testing.assert_close(mmoe.logits(*x), shared.logits(*x))


def test_mmoe_with_tied_gates_is_omoe():
    omoe = make("omoe", experts=3, widths=(5, 4), towers=(3,))
    mmoe = make("mmoe", experts=3, widths=(5, 4), towers=(3,))
    tied = omoe.state_dict()
    for part in ("first.weight", "first.bias"):
        tied[part] = torch.cat([tied[part], tied[part][15:]])
    mmoe.load_state_dict(tied)
    x = rows()
    torch.testing.assert_close(mmoe.logits(*x), omoe.logits(*x))


def test_mmoe_by_hand():
    # x = 1: experts 1 and 3; gates ln 3, 0 -> (3/4, 1/4) and 0, 0 -> (1/2, 1/2); z = 3/2 and 2; towers 1 and -1.
    model = build("recommend", "mmoe", [1], 1, 2, **PLAIN | {"embedding": 1}, experts=2, widths=(1,), towers=())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.first.weight[:2, 0] = torch.tensor([1.0, 3.0])
        model.first.bias[2] = math.log(3)
        model.towers.layers[0].weight[:, 0, 0] = torch.tensor([1.0, -1.0])
    x = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    assert model.logits(*x)[0].tolist() == pytest.approx([1.5, -2.0])
    loss, _ = model(*x, torch.tensor([[1.0, 1.0]]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1.5)) + math.log1p(math.exp(2.0))) / 2)


def test_scaled_experts_scale_the_mixture():
    model = make("mmoe", experts=3, widths=(5, 4), towers=())
    x = rows()
    *first, gates = model.first(model.inputs, *x)
    weights, f = gate(gates, 2), model.experts(first)
    torch.testing.assert_close(mix(weights, 5 * f), 5 * mix(weights, f))
    torch.testing.assert_close(weights.sum(-1), torch.ones(20, 2))


def test_single_tasks_share_nothing():
    model = make("single_task", bottom=(5, 4), towers=(3,))
    for task in range(2):
        for other in range(2):
            found = gradient(model, task, model.inputs[other].table)
            assert bool(found.any()) == (task == other) if found is not None else task != other


def test_dense_field_is_one_more_field():
    model = build("recommend", "mmoe", [4, 6], 79, 2, embedding=8)
    assert model.inputs.width == (2 + 1) * 8
    assert build("recommend", "mmoe", [4, 6], 79, 2, embedding=8, dense_field=False).inputs.width == 79 + 2 * 8


# PLE


def task_rows(model, task: int, own: int, width: int) -> slice:
    return slice(task * own * width, (task + 1) * own * width)


def test_ple_of_one_level_keeps_tasks_apart_exactly():
    model = make("ple", own=2, shared=1, widths=(4,), towers=(16,))
    found = gradient(model, 0, model.first.weight)
    assert found[task_rows(model, 0, 2, 4)].any()
    assert not found[task_rows(model, 1, 2, 4)].any()
    assert found[2 * 2 * 4 : 5 * 4].any()  # the shared expert


def test_ple_levels_connect_tasks_through_the_shared_path_only():
    model = make("ple", own=2, shared=1, widths=(4, 3), towers=(16,))
    assert gradient(model, 0, model.first.weight)[task_rows(model, 1, 2, 4)].any()
    last = model.reads[0]
    assert not gradient(model, 0, last.tasks.weight)[1].any()
    with torch.no_grad():  # close the path: the shared experts of the last level see nothing
        last.shared.weight.zero_()
    assert not gradient(model, 0, model.first.weight)[task_rows(model, 1, 2, 4)].any()


def test_ple_without_shared_experts_is_a_perceptron_per_task():
    model = make("ple", own=1, shared=0, widths=(4,), towers=(3,))
    x = rows()
    e = model.inputs(*x)
    hidden = F.relu(F.linear(e, model.first.weight[:8], model.first.bias[:8])).view(20, 2, 4)
    torch.testing.assert_close(model.logits(*x), model.towers(hidden))


def test_ple_by_hand_with_two_levels():
    # x = 1. Level 1: own 1, 2, shared 3; all gates even: out = 2, 5/2, shared path (1 + 2 + 3) / 3 = 2.
    # Level 2, all weights 1: own 2, 5/2, shared 2; out = 2, 9/4.
    model = build("recommend", "ple", [1], 1, 2, **PLAIN | {"embedding": 1}, own=1, shared=1, widths=(1, 1), towers=())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.first.weight[:3, 0] = torch.tensor([1.0, 2.0, 3.0])
        model.reads[0].tasks.weight[:, 0, 0] = 1.0
        model.reads[0].shared.weight[0, 0, 0] = 1.0
        model.towers.layers[0].weight.fill_(1.0)
    x = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    assert model.logits(*x)[0].tolist() == pytest.approx([2.0, 2.25])
    shown = model.eval().represent(*x)
    assert shown["x"].tolist() == [[2.0]]
    assert shown["f"].flatten().tolist() == [2.0, 2.5, 2.0]


def test_ple_last_level_has_no_shared_gate():
    tasks, own, shared, widths, width = 3, 2, 4, (5, 4), 2 + 2 * 3
    model = make("ple", tasks=tasks, own=own, shared=shared, widths=widths, towers=())
    count = tasks * own + shared
    linear = lambda read, out: read * out + out
    level = lambda read, out: count * linear(read, out) + tasks * linear(read, own + shared)
    with_gate = level(width, 5) + linear(width, count) + level(5, 4)
    towers, tables = tasks * linear(4, 1), (4 + 6) * 3
    assert sum(parameter.numel() for parameter in model.parameters()) == with_gate + towers + tables
    assert [len(level.sizes) for level in model.levels] == [count + 2, count + 1]


def test_ple_norm_keeps_experts_apart():
    model = make("ple", own=2, shared=1, widths=(4,), towers=(16,), norm=True)
    assert not gradient(model, 0, model.first.weight)[task_rows(model, 1, 2, 4)].any()


def test_ple_refuses_impossible_expert_counts():
    with pytest.raises(ValueError, match="own >= 1 and shared >= 0"):
        make("ple", own=0)


# ESMM


def test_product_of_probabilities_on_logits():
    a, b = torch.randn(2, 1000, dtype=torch.float64) * 4
    torch.testing.assert_close(both_logit(a, b).sigmoid(), a.sigmoid() * b.sigmoid())
    far = both_logit(torch.tensor([-200.0, 200.0]), torch.tensor([-200.0, 200.0]))
    assert far[0].item() == pytest.approx(-400.0)
    assert far[1].item() == pytest.approx(200 - math.log(2))


def test_esmm_conversion_is_no_likelier_than_its_factors():
    model, x = make("esmm", towers=(8,)), rows(200)
    click, conversion = model.factors(*x).sigmoid().unbind(-1)
    score = model.score(*x)
    torch.testing.assert_close(score[:, 1], click * conversion)
    assert bool((score[:, 1] <= torch.minimum(click, conversion)).all())
    served = make("esmm", towers=(8,), serve="cvr")
    served.load_state_dict(model.state_dict())
    torch.testing.assert_close(served.score(*x), torch.stack([click, conversion], 1))


def test_esmm_loss_by_hand():
    # pCTR = 3/4, pCVR = 1/3, product 1/4. Rows: bought, only clicked, not clicked.
    model = make("esmm", towers=(4,))
    model.factors = lambda *_: torch.tensor([[math.log(3), -math.log(2)]]).expand(3, 2)
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, torch.nan]])
    _, terms = model(*rows(3), labels)
    click = -(2 * math.log(3 / 4) + math.log(1 / 4)) / 3
    both = -(math.log(1 / 4) + 2 * math.log(3 / 4)) / 3
    assert terms["task_0"].item() == pytest.approx(click)
    assert terms["task_1"].item() == pytest.approx(both)
    assert terms["loss"].item() == pytest.approx(click + both)


def test_esmm_labels_settle_the_product_or_leave_it_open():
    nan = torch.nan
    model, x = make("esmm", towers=(4,)), rows(1)
    product = model.logits(*x)[0, 1]
    positive, negative = F.softplus(-product).item(), F.softplus(product).item()
    cases = [((1, 1), positive), ((1, 0), negative), ((0, nan), negative), ((nan, 0), negative), ((0, 1), negative),
             ((1, nan), 0.0), ((nan, 1), 0.0), ((nan, nan), 0.0), ((-1, 1), 0.0), ((1, -1), 0.0)]  # fmt: skip
    for label, expected in cases:
        _, terms = model(*x, torch.tensor([label], dtype=torch.float32))
        assert terms["task_1"].item() == pytest.approx(expected), label


def test_rows_without_a_click_train_the_conversion_tower():
    model = make("esmm", towers=(8,))
    loss, _ = model(*rows(), torch.tensor([[0.0, torch.nan]]).expand(20, 2))
    loss.backward()
    assert model.towers.layers[0].weight.grad[1].any()


def test_esmm_of_certain_clicks_is_the_conversion_rate():
    conversion = torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(both_logit(torch.full_like(conversion, 60.0), conversion), conversion)


def test_esmm_has_two_tasks():
    with pytest.raises(ValueError, match="click and conversion; got 3"):
        make("esmm", tasks=3)
    with pytest.raises(ValueError, match="ctcvr or cvr"):
        make("esmm", serve="ctr")


# AITM


def test_transfer_of_two_equal_links_is_their_value():
    matrices, link = torch.randn(3, 4, 4), torch.randn(6, 4)
    torch.testing.assert_close(transfer(link, link, matrices), F.linear(link, matrices[0]))


def test_transfer_of_orthonormal_links_is_their_mean():
    identity = torch.eye(4).repeat(3, 1, 1)
    p, q = torch.eye(4)[None, 0], torch.eye(4)[None, 2]
    torch.testing.assert_close(transfer(p, q, identity), (p + q) / 2)


def test_transfer_by_hand():
    # k = 1, V = 2, K = 1, Q = ln 3 / 3: logits u^2 ln 3 / 3. Those of p = 2 and q = 1 differ by ln 3: weights 3/4, 1/4.
    matrices = torch.tensor([2.0, 1.0, math.log(3) / 3]).view(3, 1, 1)
    assert transfer(torch.tensor([[2.0]]), torch.tensor([[1.0]]), matrices).item() == pytest.approx(0.75 * 4 + 0.25 * 2)


def test_calibrator_asks_later_steps_to_be_rarer():
    assert calibrate(torch.tensor([[0.9, 0.5, 0.5], [0.3, 0.3, 0.1]])) == 0
    assert calibrate(torch.tensor([[0.2, 0.5, 0.9], [0.3, 0.1, 0.2]])).item() == pytest.approx((0.3 + 0.4 + 0.1) / 2)


def test_calibrator_is_weighed_into_the_loss():
    model, x = make("aitm", bottom=(6, 4), calibrator=0.6), rows()
    labels = torch.randint(0, 2, (20, 2)).float()
    loss, terms = model(*x, labels)
    assert terms["calibrator"].item() == pytest.approx(calibrate(model.score(*x)).item())
    expected = terms["task_0"] + terms["task_1"] + 0.6 * terms["calibrator"]
    torch.testing.assert_close(loss, expected)


def test_aitm_passes_from_earlier_to_later_tasks_only():
    model = make("aitm", tasks=3, bottom=(6, 4), calibrator=0.0)
    own = lambda task: slice(6 * task, 6 * task + 6)
    first = gradient(model, 0, model.first.weight)
    assert first[own(0)].any()
    assert not first[own(1)].any()
    last = gradient(model, 2, model.first.weight)
    assert all(last[own(task)].any() for task in range(3))


def test_aitm_head_is_the_next_link_of_the_chain():
    model = make("aitm", tasks=2, bottom=(6, 4), towers=(3,)).eval()
    longer = make("aitm", tasks=3, bottom=(6, 4), towers=(3,)).eval()
    for part in ("inputs", "info"):
        getattr(longer, part).load_state_dict(getattr(model, part).state_dict(), strict=False)
    longer.transfer.data.copy_(model.transfer)
    with torch.no_grad():
        for mine, theirs in [
            (longer.first.weight[:12], model.first.weight),
            (longer.first.bias[:12], model.first.bias),
        ]:
            mine.copy_(theirs)
        for i in (1,):
            longer.bottoms.layers[i].weight[:2].copy_(model.bottoms.layers[i].weight)
            longer.bottoms.layers[i].bias[:2].copy_(model.bottoms.layers[i].bias)
    head = model.head().eval()
    with torch.no_grad():
        head.first.weight.copy_(longer.first.weight[12:])
        head.first.bias.copy_(longer.first.bias[12:])
        for part in ("weight", "bias"):
            getattr(head.bottom.layers[1], part).copy_(getattr(longer.bottoms.layers[1], part)[2:])
        for mine, theirs in zip(head.tower.parameters(), longer.towers.parameters(), strict=True):
            mine.copy_(theirs[2:])
    head.info.load_state_dict(longer.info[1].state_dict())
    x = rows()
    torch.testing.assert_close(head(model.represent(*x)), longer.logits(*x)[:, 2])
    assert {key.split(".")[0] for key, _ in head.named_parameters()} == {"first", "bottom", "info", "tower"}


def test_aitm_head_may_be_narrower_but_must_fit_the_chain():
    model = build("recommend", "aitm", [4, 6], 2, 2)
    assert sum(p.numel() for p in model.head(bottom=(32,)).parameters()) < sum(
        p.numel() for p in model.head().parameters()
    )
    with pytest.raises(ValueError, match="must end in 32"):
        model.head(bottom=(64, 16))


# STEM


def test_stem_gives_a_task_its_own_embeddings():
    model = make("stem", tasks=3, experts=(6, 4), towers=())
    for task in range(3):
        moved = [gradient(model, task, inputs.table) for inputs in model.inputs]
        assert [bool(table.any()) for table in moved] == [task == own for own in range(3)] + [True]


def test_stem_reads_all_experts_and_moves_its_own():
    model = make("stem", experts=(6, 4), towers=())
    x = rows()
    f, weights = model._experts(*x)
    torch.testing.assert_close(model.logits(*x), model.towers(mix(weights, f)))
    found = gradient(model, 0, model.experts.layers[1].weight)
    assert [bool(part.any()) for part in found] == [True, False, True]
    other = model.inputs[1].table
    before = model.logits(*x)[:, 0]
    other.data += 1.0
    assert not torch.allclose(model.logits(*x)[:, 0], before)


def test_stem_gate_reads_own_and_shared_embedding():
    model = make("stem", experts=(6, 4), towers=())
    x = rows()
    both = model.inputs[0](*x) + model.inputs[2](*x)
    expected = (both @ model.first[0].rows(1).T + model.first[0].bias[6:]).softmax(-1)
    torch.testing.assert_close(model._experts(*x)[1][:, 0], expected)


# Trained, on small made-up data


SMALL = {
    "shared_bottom": {"bottom": (16, 8)},
    "mmoe": {"experts": 3, "widths": (16, 8)},
    "ple": {"own": 1, "shared": 1, "widths": (16, 8)},
}


def learned(name: str, second: str) -> torch.Tensor:
    """Test AUC of both towers on the first task, after training with the same, or a random, second one."""
    torch.manual_seed(0)
    x, ids = torch.rand(12_000, 2), torch.randint(0, 4, (12_000, 2))
    first = (torch.rand(12_000) < torch.sigmoid(4 * (x[:, 0] - x[:, 1]) + ids[:, 0] - 1.5)).float()
    coin = torch.randint(0, 2, (12_000,)).float()
    labels = torch.stack([first, first if second == "same" else coin], 1)
    model = build("recommend", name, [4, 4], 2, 2, **PLAIN, **SMALL[name], towers=(8,))
    batches = [{"categorical": ids[at : at + 250], "numerical": x[at : at + 250], "labels": labels[at : at + 250]}
               for at in range(0, 4000, 250)] * 10  # fmt: skip
    for _ in fit(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3)):
        pass
    score = model.eval().score(ids[4000:], x[4000:]).detach()
    return torch.stack([auc(score[:, task], first[4000:]) for task in range(2)])


@pytest.mark.parametrize("name", SMALL)
def test_two_equal_tasks_are_learned_alike_and_a_random_one_does_no_harm(name):
    same = learned(name, "same")
    assert same.min() > 0.8
    assert abs(same[0] - same[1]) < 0.01
    assert learned(name, "random")[0] > same[0] - 0.02
