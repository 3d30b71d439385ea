import math

import pytest
import torch
import torch.nn.functional as F

from models.fit import fit
from models.metrics import auc
from models.recommend.mpt_rec import MPTRec, PromptHead


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def small(tasks: int = 2, **settings) -> MPTRec:
    return MPTRec([4, 5], 1, tasks, **{"experts": (8, 6), "towers": (4,)} | settings)


def rows(count: int = 12, tasks: int = 2) -> dict[str, torch.Tensor]:
    return {
        "categorical": torch.stack([torch.randint(0, 4, (count,)), torch.randint(0, 5, (count,))], 1),
        "numerical": torch.rand(count, 1),
        "labels": torch.randint(0, 2, (count, tasks)).float(),
        "domain": torch.arange(count) % tasks,
    }


def table(count: int = 12, tasks: int = 3, rank: int = 4, width: int = 5) -> dict[str, torch.Tensor]:
    """A frozen backbone's representations, made up."""
    return {"e": torch.rand(count, width), "s": torch.rand(count, rank), "p": torch.rand(count, tasks, rank)}


def prompt(tasks: int = 3, rank: int = 4, width: int = 5, **settings) -> PromptHead:
    bank = settings.pop("bank", torch.randn(tasks, rank))
    settings = {"towers": (3,), "temperature": 150.0, "weight_penalty": 0.0} | settings
    return PromptHead(bank, width, **settings)


# Stage 1


def by_hand() -> MPTRec:
    """One input x, all widths 1: F_s = 1, F_1 = 1/2, F_2 = 2; q = 3, -1; gates 1/2; towers 1; a blind classifier."""
    model = MPTRec([1], 1, 2, embedding=1, experts=(1,), towers=())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.first.weight[:3, 0] = torch.tensor([1.0, 0.5, 2.0])
        model.bank.copy_(torch.tensor([[3.0], [-1.0]]))
        model.towers.layers[0].weight.fill_(1.0)
    return model


def test_stage_one_by_hand():
    # x = 2: s = 2, p = 1, 4, so h = 1/2 (1 * 3) + 1/2 * 2 = 5/2 and 1/2 (4 * -1) + 1/2 * 2 = -1; generic: 2, 2.
    model = by_hand()
    x = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[2.0]])
    assert model.logits(*x).tolist() == [[2.5, -1.0]]
    loss, terms = model(*x, torch.tensor([[1.0, 0.0]]), domain=torch.tensor([1]))
    expected = {
        "task_0": softplus(-2.5),
        "task_1": softplus(-1.0),
        "generic": softplus(-2.0) + softplus(2.0),
        "adversary": math.log(2),
        "embedding": 0.0,
        "weight": 0.5 * (1 + 0.25 + 4 + 1 + 1),  # experts and towers; no gate, no q, no classifier
    }
    assert {name: term.item() for name, term in terms.items() if name != "loss"} == pytest.approx(expected)
    total = expected["task_0"] + expected["task_1"] + 0.9 * expected["generic"] + 0.1 * math.log(2) + 3e-5 * 3.625
    assert loss.item() == pytest.approx(total)


def test_embedding_penalty_counts_whole_tables():
    model = small(embedding=2)
    _, terms = model(**rows(1))
    assert terms["embedding"].item() == pytest.approx(model.inputs.table.square().sum().item() / 2)


def test_penalties_of_zero_are_not_computed():
    _, terms = small(embedding_penalty=0.0, weight_penalty=0.0, generic=0.0, adversarial=0.0)(**rows())
    assert set(terms) == {"loss", "task_0", "task_1"}


def test_weight_penalty_covers_all_layers_of_experts_and_towers():
    model = small()
    _, terms = model(**rows())
    linear = [model.experts.layers[1], model.towers.layers[0], model.towers.layers[2]]
    penalised = [model.first.weight[: 3 * 8], *(layer.weight for layer in linear)]
    assert terms["weight"].item() == pytest.approx(sum(w.square().sum().item() for w in penalised) / 2)


@pytest.mark.parametrize(("share", "alpha"), [(0.0, 0.0), (0.5, 0.98661), (1.0, 0.99991)])
def test_alpha_by_true_progress(share, alpha):
    model = small()
    model.total.fill_(1000)
    model.step.fill_(round(1000 * share))
    assert model.alpha().item() == pytest.approx(alpha, abs=5e-6)


def test_steps_count_in_training_only():
    model = small()
    model(**rows())
    model.eval()(**rows())
    assert model.step == 1


def test_adversary_reaches_the_shared_expert_times_minus_alpha():
    model, data = small(), rows()
    model.total.fill_(1000)
    model.step.fill_(500)
    reversed_ = torch.autograd.grad(model.eval()(**data)[1]["adversary"], model.first.weight)[0]
    s = model._represent(data["categorical"], data["numerical"])[0]
    plain = F.cross_entropy(model.classifier(s), data["domain"])
    forward = torch.autograd.grad(plain, model.first.weight)[0]
    torch.testing.assert_close(reversed_, -model.alpha() * forward)
    assert not reversed_[8:].any()  # specific experts and gates are out of its reach
    assert forward[:8].any()


def test_adversary_at_alpha_zero_moves_the_classifier_only():
    model = small()
    model.total.fill_(1000)
    adversary = model(**rows())[1]["adversary"]
    classifier, first = torch.autograd.grad(adversary, [model.classifier.weight, model.first.weight])
    assert classifier.any()
    assert not first.any()


def test_without_the_adversary_the_classifier_has_no_gradient():
    model = small(generic=0.0, adversarial=0.0)
    model(**rows())[0].backward()
    assert model.classifier.weight.grad is None


def test_adversary_rests_while_a_domain_is_almost_empty():
    model, data = small(), rows()
    model.set_shares(torch.tensor([0] * 995 + [1] * 5))
    assert model.share.tolist() == pytest.approx([0.995, 0.005])
    _, terms = model(**data)
    assert terms["adversary"] == 0
    model.set_shares(torch.tensor([0] * 98 + [1] * 2 + [-1] * 50))  # rows without a domain do not count
    assert model.share.tolist() == pytest.approx([0.98, 0.02])
    assert model(**data)[1]["adversary"] > 0


def test_rows_without_a_domain_do_not_train_the_classifier():
    model, data = small().eval(), rows()
    full = model(**data)[1]["adversary"]
    data["domain"][6:] = -1
    half = model(**data)[1]["adversary"]
    first = {key: value[:6] for key, value in data.items()}
    torch.testing.assert_close(half, model(**first)[1]["adversary"])
    assert half != full
    data["domain"][:] = -1
    assert model(**data)[1]["adversary"] == 0


def test_training_without_domains_is_refused():
    data = rows()
    del data["domain"]
    with pytest.raises(ValueError, match="pass domain="):
        small().train()(**data)
    small(adversarial=0.0).train()(**data)
    small().eval()(**data)


def test_assign_by_hand():
    # Logits are 5/2 and -1 as above. BCE of labels (1, 0): .079, .313; (0, 0): 2.58, .313; (1, 1): .079, 1.31.
    model = by_hand().eval()
    labels = torch.tensor([[1.0, 0], [0, 0], [1, 1], [torch.nan, 1], [0, torch.nan], [torch.nan, torch.nan]])
    x = torch.zeros(6, 1, dtype=torch.int64), torch.full((6, 1), 2.0)
    assert model.assign(*x, labels).tolist() == [0, 1, 0, 1, 0, -1]


def test_a_row_keeps_its_domain_in_any_order():
    model, data = small().eval(), rows(30)
    columns = [data[key] for key in ("categorical", "numerical", "labels")]
    order = torch.randperm(30)
    assert torch.equal(model.assign(*(c[order] for c in columns)), model.assign(*columns)[order])
    with pytest.raises(RuntimeError, match="training mode"):
        model.train().assign(*columns)


def test_dropout_of_each_layer_is_off_when_frozen():
    model = small(dropout=(0.1, 0.3))
    data = rows()
    x = data["categorical"], data["numerical"]
    assert not torch.equal(model.train().logits(*x), model.logits(*x))
    assert torch.equal(model.eval().logits(*x), model.logits(*x))


def test_penalties_stay_in_float32_under_autocast():
    model, data = small(), rows()
    exact = model(**data)[1]
    with torch.autocast("cpu", torch.bfloat16):
        _, terms = model(**data)
    for name in ("embedding", "weight"):
        assert terms[name].item() == pytest.approx(exact[name].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("sizes", "dense", "settings", "backbone", "head"),
    [
        ([16] * 28 + [23], 7, {}, 217_548, 27_063),  # Census-income
        (
            [1] * 15 + [1_044_436],
            0,
            {"embedding": 5, "experts": (128, 64), "towers": (32, 32)},
            5_285_043,
            8_129,
        ),  # Ali-CCP
    ],
)
def test_parameters_as_published(sizes, dense, settings, backbone, head):
    with torch.device("meta"):
        model = MPTRec(sizes, dense, 2, **settings)
        tuned = model.head()
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())
    assert (count(model), count(tuned)) == (backbone, head)


def test_byterec_parameters_follow_the_formula():
    model = MPTRec([3] * 8, 0, 2, embedding=4, experts=(128, 64), towers=(32, 32))
    d, r = 32, 64
    tower = (64 * 32 + 32) + (32 * 32 + 32) + (32 + 1)
    formula = r + (d * r // 2 + r * r // 2) + 2 * r + 2 * d + tower
    assert sum(parameter.numel() for parameter in model.head().parameters()) == formula == 6_497
    without = sum(parameter.numel() for parameter in model.parameters()) - model.inputs.table.numel()
    assert formula / without == pytest.approx(0.147, abs=5e-4)


def test_controls_are_smaller_heads():
    model = MPTRec([16] * 28 + [23], 7, 2)
    count = lambda mixture: sum(parameter.numel() for parameter in model.head(mixture=mixture).parameters())
    assert (count("mean"), count("shared")) == (10_743, 10_369)
    with pytest.raises(ValueError, match="attention, mean or shared"):
        model.head(mixture="sum")
    with pytest.raises(ValueError, match="temperature must be above 0"):
        model.head(temperature=0)


# Stage 2


def test_stage_two_by_hand():
    # LayerNorm of (2, 0) is (1, -1); q_1 = (1, 0), q_2 = (0, 1): logits 1, -1. With tau = 2 / ln 3, a = 3/4, 1/4.
    # p_new = 3/4 (4, 0) + 1/4 (0, 8) = (3, 2); h = 1/2 (3 * 2, 2 * 3) + 1/2 (1, 5) = (3.5, 5.5); the tower adds: 9.
    head = prompt(bank=torch.eye(2), width=1, towers=(), temperature=2 / math.log(3), weight_penalty=0.5)
    with torch.no_grad():
        head.project[0].weight.fill_(1.0)
        head.project[2].weight.copy_(torch.tensor([[2.0], [0.0]]))
        head.prompt.copy_(torch.tensor([2.0, 3.0]))
        head.gate.weight.zero_()
        head.tower.layers[0].weight.fill_(1.0)
        head.tower.layers[0].bias.zero_()
    given = {"e": torch.ones(1, 1), "s": torch.tensor([[1.0, 5.0]]), "p": torch.tensor([[[4.0, 0.0], [0.0, 8.0]]])}
    torch.testing.assert_close(head.attention(given["e"]), torch.tensor([[0.75, 0.25]]), rtol=0, atol=1e-5)
    assert head(given).item() == pytest.approx(9.0, abs=1e-4)
    loss = head.loss(given, torch.tensor([0.0]))
    assert loss.item() == pytest.approx(softplus(9.0) + 0.5 * 0.5 * 2, abs=1e-4)


def test_one_old_task_takes_all_attention():
    assert torch.equal(prompt(tasks=1).attention(torch.randn(9, 5)), torch.ones(9, 1))


def test_equal_old_tasks_share_the_attention_equally():
    attention = prompt(bank=torch.randn(1, 4).repeat(4, 1)).attention(torch.randn(9, 5))
    assert torch.equal(attention, torch.full((9, 4), 0.25))


def test_temperature_goes_from_one_hot_to_uniform():
    e, head = torch.randn(50, 5), prompt(tasks=3, rank=16)
    head.temperature = 1e9
    torch.testing.assert_close(head.attention(e), torch.full((50, 3), 1 / 3))
    head.temperature = 1e-9
    best = (head.project(e) @ head.bank.T).argmax(-1)
    assert torch.equal(head.attention(e), F.one_hot(best, 3).float())


def test_only_pairs_of_expert_and_task_embedding_may_be_permuted():
    head, given = prompt(temperature=0.5), table()
    bank, order = head.bank.clone(), torch.tensor([2, 0, 1])
    before = head(given)
    moved = given | {"p": given["p"][:, order]}
    assert not torch.allclose(head(moved), before)
    head.bank.copy_(bank[order])
    torch.testing.assert_close(head(moved), before)
    assert not torch.allclose(head(given), before)


def test_without_a_prompt_specific_experts_do_not_matter():
    head, given = prompt(), table()
    head.prompt.data.zero_()
    assert torch.equal(head(given), head(given | {"p": torch.rand(12, 3, 4)}))


def test_a_gate_on_the_shared_side_leaves_a_tower_on_s():
    head, given = prompt(), table()
    head.gate.weight.data.copy_(torch.tensor([[-1e4], [1e4]]).expand(2, 5))
    torch.testing.assert_close(head(given), head.tower(given["s"].unsqueeze(1)).squeeze(1))
    alone = prompt(mixture="shared")
    alone.tower.load_state_dict(head.tower.state_dict())
    assert torch.equal(alone(given), head.tower(given["s"].unsqueeze(1)).squeeze(1))


def test_mean_mixture_is_attention_at_infinite_temperature():
    head, mean, given = prompt(temperature=1e12), prompt(mixture="mean"), table()
    mean.load_state_dict(head.state_dict(), strict=False)
    torch.testing.assert_close(mean(given), head(given))


def test_head_copies_the_bank_and_does_not_train_it():
    model = small()
    head = model.head()
    assert torch.equal(head.bank, model.bank)
    assert head.bank.data_ptr() != model.bank.data_ptr()
    assert "bank" in head.state_dict()
    assert {key.split(".")[0] for key, _ in head.named_parameters()} == {"prompt", "project", "gate", "tower"}


# Trained, on small made-up data


def grouped(count: int, seed: int) -> dict[str, torch.Tensor]:
    """Two kinds of rows, told apart by the last two numbers; both tasks follow these too, so that s carries them."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 2, (count,), generator=draw)
    x = torch.rand(count, 4, generator=draw)
    x[:, 2:] += 0.5 * kind[:, None]
    both = x[:, 2] + x[:, 3] - 1.5
    logit = torch.stack([4 * (x[:, 0] - 0.5) + 2 * both, 4 * (x[:, 1] - 0.5) - 2 * both], 1)
    return {
        "categorical": torch.randint(0, 3, (count, 1), generator=draw),
        "numerical": x,
        "labels": (torch.rand(count, 2, generator=draw) < logit.sigmoid()).float(),
        "domain": kind,
    }


def trained(data: dict[str, torch.Tensor], epochs: int, rate: float, classifier_rate: float, **settings) -> MPTRec:
    torch.manual_seed(1)
    model = MPTRec([3], 4, 2, **{"towers": (16,)} | settings)
    starts = range(0, len(data["domain"]), 256)
    batches = [{key: value[at : at + 256] for key, value in data.items()} for at in starts] * epochs
    model.total.fill_(len(batches))
    others = [value for key, value in model.named_parameters() if not key.startswith("classifier")]
    groups = [{"params": others, "lr": rate}, {"params": model.classifier.parameters(), "lr": classifier_rate}]
    for _ in fit(model, batches, torch.optim.Adam(groups)):
        pass
    return model.eval().requires_grad_(False)


def readable(model: MPTRec, train: dict, test: dict) -> float:
    """AUC at which a fresh linear probe of s, by least squares, tells the domain of unseen rows."""
    shown = [model.represent(part["categorical"], part["numerical"])["s"] for part in (train, test)]
    design = [torch.cat([s, torch.ones(len(s), 1)], 1).double() for s in shown]
    target = train["domain"].double() * 2 - 1
    ridge = 1e-3 * torch.eye(design[0].shape[1], dtype=torch.float64)
    probe = torch.linalg.solve(design[0].T @ design[0] + ridge, design[0].T @ target)
    return auc(design[1] @ probe, test["domain"]).item()


def test_adversary_hides_the_domain_from_the_shared_representation():
    # The classifier learns faster than the experts: one that lags behind is fooled, and nothing is hidden.
    train, test = grouped(4096, 1), grouped(4096, 2)
    settings = {"epochs": 20, "rate": 1e-3, "classifier_rate": 5e-2, "experts": (32, 4)}
    without = readable(trained(train, adversarial=0.0, **settings), train, test)
    hidden = readable(trained(train, adversarial=0.3, **settings), train, test)
    assert without > 0.9
    assert hidden < without - 0.1


def tuned(
    model: MPTRec, tables: list[dict], labels: list[torch.Tensor], epochs: int, seed: int = 5, **settings
) -> PromptHead:
    torch.manual_seed(seed)
    head = model.head(**settings)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(epochs):
        for given, label in zip(tables, labels, strict=True):
            optimizer.zero_grad()
            head.loss(given, label).backward()
            optimizer.step()
    return head


@pytest.fixture(scope="module")
def frozen():
    """A backbone of two tasks that can be learned, with its train and test rows."""
    train, test = grouped(8192, 3), grouped(10_000, 4)
    model = trained(train, epochs=4, rate=3e-3, classifier_rate=3e-3, experts=(32, 16))
    return model, train, test


def batches_of(model: MPTRec, data: dict, size: int = 256) -> list[dict]:
    return [model.represent(data["categorical"][at : at + size], data["numerical"][at : at + size])
            for at in range(0, len(data["domain"]), size)]  # fmt: skip


def test_a_copy_of_an_old_task_is_learned_as_well(frozen):
    model, train, test = frozen
    head = tuned(model, batches_of(model, train), list(train["labels"][:, 0].split(256)), epochs=3)
    old = auc(model.score(test["categorical"], test["numerical"])[:, 0], test["labels"][:, 0])
    new = auc(head(model.represent(test["categorical"], test["numerical"])).detach(), test["labels"][:, 0])
    assert old > 0.7
    assert new >= old - 0.01


def test_a_task_independent_of_the_row_is_not_learned(frozen):
    model, train, test = frozen
    draw = torch.Generator().manual_seed(8)
    coin = torch.randint(0, 2, (8192,), generator=draw).float()
    head = tuned(model, batches_of(model, train), list(coin.split(256)), epochs=1)
    answer = torch.randint(0, 2, (10_000,), generator=draw)
    found = auc(head(model.represent(test["categorical"], test["numerical"])).detach(), answer)
    assert abs(found.item() - 0.5) < 0.02


def test_cached_representations_give_the_same_head(frozen):
    model, train, _ = frozen
    labels = list(train["labels"][:, 1].split(256))
    head = tuned(model, batches_of(model, train), labels, epochs=1)
    again = tuned(model, batches_of(model, train), labels, epochs=1)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in head.state_dict().items())
    whole = model.represent(train["categorical"], train["numerical"])  # one batch: the last bits may differ
    cached = [{key: value[at : at + 256] for key, value in whole.items()} for at in range(0, 8192, 256)]
    near = tuned(model, cached, labels, epochs=1)
    for key, value in head.state_dict().items():
        torch.testing.assert_close(near.state_dict()[key], value, rtol=1e-2, atol=1e-3)


def test_two_new_tasks_may_come_in_any_order(frozen):
    model, train, _ = frozen
    tables = batches_of(model, train)[:8]
    labels = {"a": list(train["labels"][:2048, 0].split(256)), "b": list((1 - train["labels"][:2048, 1]).split(256))}
    found = {}
    for order in ("ab", "ba"):
        found[order] = {name: tuned(model, tables, labels[name], 1, seed=ord(name)).state_dict() for name in order}
    for name in "ab":
        for key, value in found["ab"][name].items():
            assert torch.equal(value, found["ba"][name][key])


def test_learned_attention_is_not_worse_than_the_mean(frozen):
    model, train, test = frozen
    label, answer = (((part["numerical"][:, 0] + part["numerical"][:, 2]) > 1.2).float() for part in (train, test))
    tables, unseen = batches_of(model, train), model.represent(test["categorical"], test["numerical"])
    found = {}
    for mixture in ("attention", "mean"):
        heads = [tuned(model, tables, list(label.split(256)), 6, seed, mixture=mixture) for seed in (5, 6)]
        found[mixture] = sum(auc(head(unseen).detach(), answer).item() for head in heads) / 2
    assert found["attention"] > found["mean"] - 0.005
