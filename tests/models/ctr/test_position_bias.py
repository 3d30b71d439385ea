"""Position bias: in a world whose examination and relevance are known, the student ranks by relevance."""

import inspect

import pytest
import torch
from safetensors.torch import save
from scipy.stats import kendalltau

from models import build
from models.fit import fit
from models.metrics import auc
from models.recommend.ctr._ctr import click_loss
from models.recommend.ctr._position import between, ipw_weight, pal_logit, pauc
from models.recommend.ctr.position_bias import PositionBias

ITEMS, PLACES, LISTS = 40, 8, 6000
TINY = {"method": "deepfm", "settings": {"deep": [8], "dropout": 0.0}, "embedding": 4, "positions": PLACES}


def world(eta: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """A ranker with prejudices places 8 of 40 items; click = seen, with chance p^-eta, and relevant."""
    draw = torch.Generator().manual_seed(seed)
    relevance = torch.linspace(0.03, 0.45, ITEMS)[torch.randperm(ITEMS, generator=draw)]
    shown = torch.rand(LISTS, ITEMS, generator=draw).topk(PLACES).indices
    liked = relevance + 0.2 * torch.randn(ITEMS, generator=draw)  # by the ranker, for no reason
    noisy = liked[shown] + 0.15 * torch.randn(LISTS, PLACES, generator=draw)
    item = shown.gather(1, noisy.argsort(1, descending=True))
    position = torch.arange(1, PLACES + 1).expand_as(item)
    click = torch.rand(item.shape, generator=draw) < relevance[item] * position.float() ** -eta
    rows = torch.randperm(item.numel(), generator=draw)
    flat = {"item": item, "position": position, "label": click.float()}
    return {key: value.flatten()[rows] for key, value in flat.items()} | {"relevance": relevance}


def rows_of(data: dict, size: int = 1000):
    for start in range(0, len(data["item"]), size):
        part = {key: data[key][start : start + size] for key in ("item", "position", "label")}
        yield {"categorical": part.pop("item")[:, None], "numerical": torch.empty(len(part["label"]), 0), **part}


def trained(data: dict, epochs: int = 4, **settings) -> PositionBias:
    torch.manual_seed(1)
    model = build("recommend.ctr", "position_bias", [ITEMS], 0, **{**TINY, **settings})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in fit(model.train(), [batch for _ in range(epochs) for batch in rows_of(data)], optimizer):
        pass
    return model.eval()


def plain(data: dict, loss=None, epochs: int = 4) -> torch.nn.Module:
    """The click model alone, with a loss of its logits, labels and positions."""
    torch.manual_seed(1)
    model = build("recommend.ctr", "deepfm", [ITEMS], 0, embedding=4, deep=[8], dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(epochs):
        for batch in rows_of(data):
            optimizer.zero_grad()
            logit = model.logits(batch["categorical"], batch["numerical"])
            found = click_loss(logit, batch["label"]) if loss is None else loss(logit, batch)
            found.backward()
            optimizer.step()
    return model.eval()


def order(model: torch.nn.Module, data: dict) -> float:
    """Kendall's tau of an item's score with its true relevance."""
    score = model.logits(torch.arange(ITEMS)[:, None], torch.empty(ITEMS, 0)).detach()
    return kendalltau(score.numpy(), data["relevance"].numpy()).statistic


@pytest.fixture(scope="module")
def biased() -> dict:
    return world(1.0)


@pytest.fixture(scope="module")
def student(biased) -> PositionBias:
    return trained(biased, alpha=1.0)


def theta() -> torch.Tensor:
    return torch.arange(1, PLACES + 1).float() ** -1.0


def calibrated(data: dict, model: torch.nn.Module) -> float:
    """Mean absolute error of log relevance up to a factor: bias shows here even where the order survives."""
    score = model.logits(torch.arange(ITEMS)[:, None], torch.empty(ITEMS, 0)).detach().sigmoid().log()
    truth = data["relevance"].log()
    return ((score - score.mean()) - (truth - truth.mean())).abs().mean().item()


def test_the_student_undoes_the_bias_that_a_plain_model_learns(biased, student):
    naive, factual = plain(biased), trained(biased, alpha=1.0, teach="factual")
    found = {"plain": order(naive, biased), "factual": order(factual, biased), "student": order(student, biased)}
    assert found["student"] > found["plain"] + 0.1
    assert found["student"] > found["factual"] + 0.1
    assert calibrated(biased, student) < 0.6 * calibrated(biased, naive)
    # Half of its ear at the teacher, the default, is between.
    assert found["plain"] + 0.02 < order(trained(biased), biased) < found["student"]


def test_the_classic_corrections_with_true_examination_beat_the_plain_model_too(biased):
    def ipw(logit, batch):  # of the clicks only: an unseen item may be relevant
        clicked = batch["label"] * ipw_weight(batch["position"], theta())
        return (torch.nn.functional.softplus(logit) - clicked * logit).mean()

    def pal(logit, batch):
        seen = theta()[batch["position"] - 1].clamp(max=1 - 1e-6).logit()
        return click_loss(pal_logit(logit, seen), batch["label"])

    base = order(plain(biased), biased)
    assert order(plain(biased, ipw), biased) > base + 0.1
    assert order(plain(biased, pal), biased) > base + 0.1


def test_the_teacher_finds_the_examination(biased, student):
    effect = student.effect(torch.zeros(1, 1, dtype=torch.long))[0].detach()
    relevance = biased["relevance"].mean()
    truth = (relevance * theta()).logit()  # of an average item: the effect is one of log-odds
    share = (effect - effect[0]).exp() / (truth - truth[0]).exp()
    assert bool((effect[1:6] < effect[:5]).all())
    assert share[:5].tolist() == pytest.approx([1.0] * 5, rel=0.25)


def test_without_bias_nothing_is_harmed():
    data = world(0.0)
    found = [order(plain(data), data), order(trained(data), data), order(trained(data, teach="factual"), data)]
    assert min(found) > 0.9
    assert max(found) - min(found) < 0.05


def test_shuffled_positions_tell_nothing(biased):
    data = dict(biased, position=biased["position"][torch.randperm(len(biased["position"]))])
    model = trained(data)
    effect = model.effect(torch.zeros(1, 1, dtype=torch.long))[0].detach()
    assert (effect - effect.mean()).abs().mean() < 0.1
    naive = plain(data)
    ids, none = data["item"][:, None], torch.empty(len(data["item"]), 0)
    scores = [auc(each.logits(ids, none).detach(), data["label"]).item() for each in (model, naive)]
    assert scores[0] == pytest.approx(scores[1], abs=0.01)


def test_the_names_of_positions_do_not_matter(biased):
    data = {key: value[:4000] if key != "relevance" else value for key, value in biased.items()}
    renamed = dict(data, position=PLACES + 1 - data["position"])
    settings = {"epochs": 1, "decorrelate": 0.1}
    one, two = (trained(each, **settings) for each in (data, renamed))
    row, none = torch.arange(ITEMS)[:, None], torch.empty(ITEMS, 0)
    torch.testing.assert_close(one.logits(row, none), two.logits(row, none), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.effect.effect, two.effect.effect.flip(0), rtol=1e-4, atol=1e-5)


def few(model: PositionBias, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "categorical": torch.randint(0, 5, (64, 2), generator=draw),
        "numerical": torch.rand(64, 1, generator=draw),
        "position": torch.randint(1, model.positions + 1, (64,), generator=draw),
        "label": (torch.rand(64, generator=draw) < 0.4).float(),
    }


def small(seed: int = 0, **settings) -> PositionBias:
    torch.manual_seed(seed)
    return build("recommend.ctr", "position_bias", [5, 5], 1, **{**TINY, **settings})


def test_the_student_knows_no_position():
    model = small(context=[1])
    assert "position" not in inspect.signature(model.logits).parameters
    assert "position" not in inspect.signature(model.student.forward).parameters
    data = few(model)
    moved = dict(data, position=model.positions + 1 - data["position"])
    assert model(**data)[1]["click"] == model(**moved)[1]["click"]
    assert not any("effect" in key for key in model.student.state_dict())


def test_the_exported_student_scores_alone():
    model, data = small().eval(), few(small())
    twin = build("recommend.ctr", "deepfm", [5, 5], 1, 4, **TINY["settings"]).eval()
    twin.load_state_dict(model.student.state_dict())
    columns = data["categorical"], data["numerical"]
    assert torch.equal(twin.score(*columns), model.score(*columns))


def test_the_teacher_does_not_learn_from_the_student():
    model = small(joint=False, dropout=0.0)
    _, terms = model(**few(model))
    (terms["click"] + terms["distilled"]).backward()
    teacher = [*model.content.parameters(), *model.effect.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in teacher)
    assert any(p.grad is not None and p.grad.any() for p in model.student.parameters())


def test_without_listening_it_is_plain_training():
    model = small(joint=False, alpha=0.0)
    alone = build("recommend.ctr", "deepfm", [5, 5], 1, 4, **TINY["settings"])
    alone.load_state_dict(model.student.state_dict())
    for learner, names in ((model, None), (alone, ("categorical", "numerical", "label"))):
        batches = [few(model, seed) for seed in range(3)]
        steps = [{k: v for k, v in b.items() if names is None or k in names} for b in batches]
        for _ in fit(learner, steps, torch.optim.Adam(learner.parameters(), lr=0.01)):
            pass
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(model.student.state_dict()[key], value)


def test_joint_models_share_one_table_and_save_it_once():
    model = small()
    assert model.content.fields.inputs.table is model.student.fields.inputs.table
    state = model.state_dict()
    assert "student.fields.inputs.table" in state and "content.fields.inputs.table" not in state
    assert save(state)
    apart = small(joint=False)
    assert "content.fields.inputs.table" in apart.state_dict()


def test_a_gradient_of_soft_labels_is_the_difference_of_probabilities():
    logit = torch.tensor([0.0, 1.0, -2.0], requires_grad=True)
    soft = torch.tensor([0.3, 0.9, 0.2])
    click_loss(logit, soft).backward()
    torch.testing.assert_close(logit.grad, (logit.sigmoid() - soft).detach() / 3)


def test_the_neutral_logit_by_hand():
    # f_T = 0 and effects 0, 1, 2 ... 7: at the mean of all places 3.5, at the first 0, at the logged one its own.
    for settings, expected in (({}, 3.5), ({"reference": "first"}, 0.0), ({"teach": "factual"}, 5.0)):
        model = small(dropout=0.0, joint=False, **settings).eval().requires_grad_(False)
        for part in (model.student, model.content):
            for parameter in part.parameters():
                parameter.zero_()
        model.effect.effect.copy_(torch.arange(8.0))
        data = {key: value[:4] for key, value in few(model).items()}
        data["position"][:] = 6
        _, terms = model(**data)
        soft = torch.tensor(expected).sigmoid()
        assert terms["distilled"].item() == pytest.approx(torch.log(torch.tensor(2.0)).item())  # student says 1/2
        model.student.first_order.bias.fill_(expected)  # the student that agrees pays the entropy only
        entropy = -(soft * soft.log() + (1 - soft) * (1 - soft).log())
        assert model(**data)[1]["distilled"].item() == pytest.approx(entropy.item(), rel=1e-4)


def test_all_positions_hidden_leave_the_content():
    model = small(dropout=1.0).train()
    data = few(model)
    before = model(**data)[1]["teacher"]
    model.effect.effect.data.fill_(3.0)
    assert model(**data)[1]["teacher"] == before


def test_the_students_weight_rises_while_it_warms_up():
    model = small(warmup=4, joint=False, dropout=0.0)
    data = few(model)
    for step in range(6):
        loss, terms = model(**data)
        alpha = 0.5 * min(step / 4, 1)
        assert loss.item() == pytest.approx(
            (terms["teacher"] + (1 - alpha) * terms["click"] + alpha * terms["distilled"]).item(), rel=1e-6
        )
    assert model.step == 6


def test_context_bends_the_effect():
    model = small(context=[1])
    effect = model.effect(torch.tensor([[0, 0], [1, 0], [0, 3]]))
    assert torch.equal(effect[0], effect[1])
    assert not torch.equal(effect[0], effect[2])


def test_pauc_forgives_what_the_position_alone_tells():
    position = torch.tensor([1, 1, 1, 2, 2, 2])
    label = torch.tensor([1, 1, 0, 1, 0, 0])
    score = -position.float()
    assert auc(score, label) > 0.5
    assert pauc(score, label, position) == 0.5


def test_weights_and_products_by_hand():
    assert ipw_weight(torch.tensor([2, 1]), torch.tensor([1.0, 0.25])).tolist() == [4.0, 1.0]
    assert ipw_weight(torch.tensor([1, 2, 3]), torch.ones(3)).tolist() == [1.0] * 3
    a, b = torch.randn(5), torch.randn(5)
    product = pal_logit(a, b).sigmoid()
    torch.testing.assert_close(product, a.sigmoid() * b.sigmoid())
    torch.testing.assert_close(pal_logit(a, torch.full((5,), 60.0)), a)
    # Two groups with means 0 and 2 around 1, each with variance 1: half of the variance lies between.
    assert between(torch.tensor([-1.0, 1.0, 1.0, 3.0]), torch.tensor([0, 0, 1, 1]), 2).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"teach": "both"}, "teach is counterfactual or factual"),
        ({"reference": "last"}, "reference is uniform or first"),
        ({"alpha": 1.5}, "alpha is a share"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"method": "position_bias"}, "a method other than this one"),
        ({"context": [7]}, r"fields 0..1; got \[7\]"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        small(**settings)


def test_positions_outside_their_range_are_refused():
    model = small()
    data = few(model)
    data["position"][:3] = 0
    with pytest.raises(ValueError, match=r"3 of 64 positions are outside 1..8, from 0"):
        model(**data)
    data["position"] = data["position"].float()
    with pytest.raises(ValueError, match="integers"):
        model(**data)
