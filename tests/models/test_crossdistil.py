"""CrossDistil: numbers by hand, who gets a gradient, and a world in which the other task's label helps."""

import math

import pytest
import torch
from torch import nn

from models import build
from models.fit import fit
from models.metrics import auc
from models.recommend._body import BODIES
from models.recommend._quadruplets import draw, grades, multi_auc, ranking_loss
from models.recommend.crossdistil import correct

SMALL = {"settings": {"experts": 2, "widths": [16], "towers": [8], "dropout": 0.1}, "towers": [8]}
HALF = (0.5, 0.5)
FOUR = torch.tensor([[0, 1, 2, 3]])  # row i is of group i: ++, +-, -+, --


def make(seed: int = 1, **settings) -> nn.Module:
    torch.manual_seed(seed)
    return build("recommend", "crossdistil", [5, 7], 2, 2, 8, **(SMALL | settings))


def rows(count: int = 64, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "categorical": torch.stack([torch.randint(0, size, (count,), generator=random) for size in (5, 7)], 1),
        "numerical": torch.rand(count, 2, generator=random),
        "labels": (torch.rand(count, 2, generator=random) < 0.4).float(),
    }


def trained(model: nn.Module, data: dict, steps: int, size: int = 256, rate: float = 5e-3) -> nn.Module:
    def batches():
        random = torch.Generator().manual_seed(0)
        for _ in range(steps):
            chosen = torch.randint(len(data["labels"]), (size,), generator=random)
            yield {name: value[chosen] for name, value in data.items()}

    own = getattr(model, "optimizer", lambda rate: torch.optim.Adam(model.parameters(), lr=rate, fused=True))
    for _ in fit(model.train(), batches(), own(rate)):
        pass
    return model.eval()


def test_error_correction_by_hand():
    logit, label = torch.tensor([2.0, -3.0, -2.0, 3.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    target = correct(logit, label, 1.0)
    assert target.tolist() == [2.0, 1.0, -2.0, -1.0]
    assert torch.equal(correct(target, label, 1.0), target)
    assert correct(logit, label, 0.0).tolist() == [2.0, 0.0, -2.0, 0.0]


def test_a_corrected_target_stays_a_margin_away():
    random = torch.Generator().manual_seed(0)
    logit, label = torch.randn(200, generator=random) * 4, (torch.rand(200, generator=random) < 0.5).float()
    share, edge = correct(logit, label, 0.7).sigmoid(), torch.tensor(0.7).sigmoid()
    assert bool((share[label == 1] >= edge).all())
    assert bool((share[label == 0] <= 1 - edge + 1e-7).all())


def test_the_ranking_loss_by_hand():
    # Equal logits: each pair costs ln 2, and there are b_1 + b_2 + 4 of them.
    assert ranking_loss(torch.zeros(4), FOUR, 0, (0.5, 0.25)).item() == pytest.approx(4.75 * math.log(2))
    # Logits ln 3, 0, 0, 0: three pairs hold x_++ against another, ln(4/3) each (one of them weighs b_1).
    lost = ranking_loss(torch.tensor([math.log(3), 0.0, 0.0, 0.0]), FOUR, 0, HALF).item()
    assert lost == pytest.approx(2.5 * math.log(4 / 3) + 2.5 * math.log(2))


def test_the_ranking_loss_wants_the_own_label_first_then_the_others():
    right = torch.tensor([60.0, 40.0, 20.0, 0.0])
    wrong = right[[0, 2, 1, 3]]
    assert ranking_loss(right, FOUR, 0, HALF) < 1e-6 < ranking_loss(wrong, FOUR, 0, HALF)
    assert ranking_loss(wrong, FOUR, 1, HALF) < 1e-6 < ranking_loss(right, FOUR, 1, HALF)


def test_exchanging_the_tasks_exchanges_their_losses():
    logit = torch.randn(4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ranking_loss(logit, FOUR[:, [0, 2, 1, 3]], 0, HALF), ranking_loss(logit, FOUR, 1, HALF))


def test_without_between_only_the_own_label_orders():
    logit = torch.randn(4, generator=torch.Generator().manual_seed(0))
    plain = ranking_loss(logit, FOUR, 0, (0.0, 0.0))
    torch.testing.assert_close(ranking_loss(logit, FOUR[:, [1, 0, 2, 3]], 0, (0.0, 0.0)), plain)
    assert ranking_loss(logit, FOUR[:, [1, 0, 2, 3]], 0, HALF) != ranking_loss(logit, FOUR, 0, HALF)


def test_an_empty_group_leaves_its_pairs_out():
    quadruplets = torch.tensor([[0, 1, -1, 3]])
    # b_1 for ++ over +-, and 1 for each of them over --.
    assert ranking_loss(torch.zeros(4), quadruplets, 0, HALF).item() == pytest.approx(2.5 * math.log(2))


def test_quadruplets_hold_one_row_of_each_group():
    label = rows(100)["labels"]
    label[:5, 0] = torch.nan
    drawn = draw(label, 30, 8, torch.Generator().manual_seed(0))
    assert drawn.shape == (30, 4)
    for place, pair in enumerate([(1, 1), (1, 0), (0, 1), (0, 0)]):
        assert bool((label[drawn[:, place]] == torch.tensor(pair)).all())
    assert torch.equal(drawn, draw(label, 30, 8, torch.Generator().manual_seed(0)))
    assert grades(label)[:5].tolist() == [-1] * 5
    few = torch.tensor([[1.0, 1.0]] + [[1.0, 0.0]] * 9 + [[0.0, 0.0]] * 9)
    drawn = draw(few, 1000, 8, torch.Generator().manual_seed(0))
    assert len(drawn) == 8  # the one row of ++ is shown eight times, not a thousand
    assert bool((drawn[:, 2] == -1).all())
    assert bool((draw(torch.full((3, 2), -1.0), 9, 8, torch.Generator()) == -1).all())


def test_given_quadruplets_are_used():
    model, data = make().eval(), rows()
    given = torch.tensor([[3, 5, 7, 9]])
    _, terms = model(**data, quadruplets=given)
    logit = model.teacher_logits(data["categorical"], data["numerical"])
    for t, name in enumerate("ab"):
        torch.testing.assert_close(terms[f"ranking_{name}"], ranking_loss(logit[:, t], given, t, HALF))


def test_platt_finds_the_line():
    """Labels drawn with s(2 r + 1): P = 2, Q = 1; with P > 0 the order of r stays."""
    random, model = torch.Generator().manual_seed(0), make()
    r = torch.randn(20_000, 2, generator=random)
    y = (torch.rand(20_000, 2, generator=random) < (2 * r + 1).sigmoid()).float()
    optimizer = torch.optim.Adam([model.scale, model.shift], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model.calibrated(r), y).backward()
        optimizer.step()
    torch.testing.assert_close(nn.functional.softplus(model.scale).detach(), torch.full((2,), 2.0), atol=0.1, rtol=0)
    torch.testing.assert_close(model.shift.detach(), torch.ones(2), atol=0.1, rtol=0)
    assert torch.equal(auc(model.calibrated(r)[:, 0].detach(), y[:, 0]), auc(r[:, 0], y[:, 0]))


def test_who_gets_a_gradient():
    model, data = make(warmup=0).train(), rows()
    _, terms = model(**data)
    names = [name for name, _ in model.named_parameters()]

    def touched(term):
        found = torch.autograd.grad(terms[term], list(model.parameters()), retain_graph=True, allow_unused=True)
        return {name for name, gradient in zip(names, found, strict=True) if gradient is not None and gradient.any()}

    assert touched("calibration_a") == {"scale", "shift"}
    assert all(name.startswith("student.") for name in touched("distilled_a"))
    assert touched("distilled_a")
    ranked = touched("ranking_a")
    assert any(name.startswith("teachers.") for name in ranked) and any("experts" in name for name in ranked)
    assert not any(name.startswith("student.towers") or name in ("scale", "shift") for name in ranked)


def test_without_teaching_it_is_the_plain_run_bit_for_bit():
    data = rows(512)
    torch.manual_seed(4)
    plain = trained(build("recommend", "mmoe", [5, 7], 2, 2, 8, **SMALL["settings"]), data, 12)
    taught = trained(make(4, alpha=0.0, ranking=0.0), data, 12)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in taught.student.state_dict().items())


def test_the_student_alone_is_served():
    model, data = make().eval(), rows()
    method, settings = model.serves
    other = build("recommend", method, [5, 7], 2, 2, **settings)
    other.load_state_dict(model.student.state_dict())
    columns = data["categorical"], data["numerical"]
    assert torch.equal(other.eval().score(*columns), model.score(*columns))
    assert not any("teacher" in name for name in other.state_dict())


@pytest.mark.parametrize("method", BODIES)
def test_every_body_is_taught(method):
    model = make(method=method, settings={"towers": [8]}).train()
    loss, terms = model(**rows())
    loss.backward()
    assert torch.isfinite(loss) and terms["ranking_b"] > 0


def test_warmup_then_the_student_listens():
    model, data = make(warmup=2).train(), rows()
    for step in range(4):
        loss, terms = model(**data)
        by_hand = [(1 - a) * terms[f"task_{t}"] + a * terms[f"distilled_{name}"]
                   for a in [0.5 * (step >= 2)] for t, name in enumerate("ab")]  # fmt: skip
        teaching = sum(terms[f"{kind}_{name}"] for kind in ("ranking", "calibration") for name in "ab") / 2
        torch.testing.assert_close(loss, sum(by_hand) / 2 + teaching)


def test_a_resumed_run_is_the_unbroken_one():
    parts = [rows(seed=seed) for seed in range(6)]

    def run(model, optimizer, some):
        for _ in fit(model.train(), some, optimizer):
            pass

    straight = make(warmup=1, settings=SMALL["settings"] | {"dropout": 0.0})
    run(straight, straight.optimizer(1e-2), parts)
    first, second = (make(seed, warmup=1, settings=SMALL["settings"] | {"dropout": 0.0}) for seed in (1, 2))
    before = first.optimizer(1e-2)
    run(first, before, parts[:3])
    second.load_state_dict(first.state_dict())
    after = second.optimizer(1e-2)
    after.load_state_dict(before.state_dict())
    run(second, after, parts[3:])
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in straight.state_dict().items())


def test_other_tasks_learn_as_they_would():
    torch.manual_seed(1)
    model = build("recommend", "crossdistil", [5, 7], 2, 3, 8, **SMALL, pair=(2, 0), warmup=0).eval()
    data = rows()
    data["labels"] = torch.cat([data["labels"], data["labels"][:, :1]], 1)
    _, terms = model(**data)
    expected = model.logits(data["categorical"], data["numerical"])[:, 1]
    torch.testing.assert_close(
        terms["task_1"], nn.functional.binary_cross_entropy_with_logits(expected, data["labels"][:, 1])
    )


def test_multi_auc():
    grade = torch.tensor([0, 0, 1, 2, 2, 3])
    score = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert multi_auc(score, grade) == 1
    assert multi_auc(-score, grade) == 0
    assert multi_auc(torch.zeros(6), grade) == 0.5
    two = torch.tensor([0.3, 0.1, 0.2, 0.4]), torch.tensor([0, 0, 1, 1])
    assert multi_auc(*two) == auc(*two)
    assert multi_auc(score, torch.zeros(6, dtype=torch.int64)).isnan()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="two of the tasks 0..1"):
        make(pair=(0, 2))
    with pytest.raises(ValueError, match="teaches one of mmoe"):
        make(method="esmm")
    with pytest.raises(ValueError, match=r"margin(.|\n)*teachers never learn(.|\n)*warmup"):
        make(margin=-1.0, alpha=0.5, ranking=0.0, warmup=-1)
    with pytest.raises(ValueError, match="two of the tasks 0..0, got"):
        build("recommend", "crossdistil", [5], 0, 1, 8)


def world(count: int, seed: int, tells: bool, shift: float) -> dict[str, torch.Tensor]:
    """A is a noisy sign of a latent number, above `shift`; B, if it tells, a clear sign of it, else noise."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40, (count, 2), generator=random)
    effect = torch.randn(2, 40, generator=torch.Generator().manual_seed(99))
    latent = effect[0, ids[:, 0]] + effect[1, ids[:, 1]]
    sign = lambda logit: (torch.rand(count, generator=random) < logit.sigmoid()).float()
    other = sign(3 * latent) if tells else sign(torch.zeros(count))
    return {"categorical": ids, "numerical": torch.zeros(count, 0),
            "labels": torch.stack([sign(latent - shift), other], 1)}  # fmt: skip


def scores(method: str, tells: bool, shift: float, steps: int, **settings) -> list[float]:
    """AUC of A, multi-AUC of A's four grades, and A's mean prediction over its base rate; means of two seeds."""
    data, test = world(1000, 0, tells, shift), world(6000, 1, tells, shift)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        body = {"experts": 2, "widths": [16], "towers": [8], "dropout": 0.0}
        own = body if method == "mmoe" else {"settings": body, "towers": [8], "warmup": 30} | settings
        model = trained(build("recommend", method, [40, 40], 0, 2, 8, **own), data, steps)
        score = model.score(test["categorical"], test["numerical"]).detach()[:, 0]
        told = model.score(data["categorical"], data["numerical"]).detach()[:, 0].mean()
        found.append([float(auc(score, test["labels"][:, 0])), float(multi_auc(score, 3 - grades(test["labels"]))),
                      float(told / data["labels"][:, 0].mean())])  # fmt: skip
    return torch.tensor(found).mean(0).tolist()


def test_the_other_task_orders_equal_labels():
    """Few rows, many steps: the plain network learns A's noise, the taught one what B says of the latent number."""
    plain = scores("mmoe", True, 0.0, 300)
    taught = scores("crossdistil", True, 0.0, 300, between=(1.0, 1.0), alpha=0.8)
    assert taught[0] > plain[0] + 0.01
    assert taught[1] - plain[1] > taught[0] - plain[0]


def test_noise_does_no_harm_and_base_rates_stay():
    plain, taught = (scores(method, False, 2.0, 100) for method in ("mmoe", "crossdistil"))
    assert taught[0] > plain[0] - 0.005
    assert taught[2] == pytest.approx(1, abs=0.1)
