"""PoDiRe and the estimates: numbers by hand, a world whose values are known, and feedback that positions bias."""

import math

import pytest
import torch
from torch import Tensor, nn

from models import build
from models.fit import fit
from models.recommend.bandit._estimates import effective, estimates, importance
from models.recommend.bandit._logged import Logged, LoggedError
from models.recommend.bandit._policies import ClickModel, greedy, popularity, uniform
from models.recommend.bandit.podire import target

ACTIONS, WIDTH, PLACES = 6, 4, torch.tensor([1.0, 0.5, 0.1])
DRAWN = torch.Generator().manual_seed(5)
TASTE, OLD = torch.randn(WIDTH, ACTIONS, generator=DRAWN), 3 * torch.randn(ACTIONS, generator=DRAWN)
SMALL = {"teacher": [32], "student": [16]}


def make(seed: int = 0, **settings) -> nn.Module:
    torch.manual_seed(seed)
    return build("recommend.bandit", "podire", WIDTH, ACTIONS, **(SMALL | settings))


def relevance(context: Tensor) -> Tensor:
    return (context @ TASTE - 1).sigmoid()


def world(rows: int, seed: int) -> Logged:
    """An old policy puts its favourites on top, where more is clicked, whatever they are worth; the rest lies below."""
    random = torch.Generator().manual_seed(seed)
    context = torch.randn(rows, WIDTH, generator=random)
    place = torch.randint(3, (rows,), generator=random)
    likely = (OLD * (0.7 - 0.7 * place[:, None])).softmax(-1)
    action = torch.multinomial(likely, 1, generator=random)
    rate = PLACES[place] * relevance(context).gather(1, action).squeeze(1)
    clicked = (torch.rand(rows, generator=random) < rate).float()
    return Logged.of(context, action.squeeze(1), clicked, likely.gather(1, action).squeeze(1), ACTIONS)


def worth(policy: Tensor, context: Tensor) -> float:
    return float((policy * relevance(context)).sum(1).mean() * PLACES.mean())


def learn(model: nn.Module, logged: Logged, steps: int, rate: float = 5e-3) -> nn.Module:
    random = torch.Generator().manual_seed(0)
    batches = (logged.batch(torch.randint(len(logged), (128,), generator=random)) for _ in range(steps))
    trained = [each for each in model.parameters() if each.requires_grad]
    for _ in fit(model.train(), batches, torch.optim.Adam(trained, lr=rate)):
        pass
    return model.eval()


def log(*rows: tuple[int, float, float], actions: int = 2) -> Logged:
    action, reward, propensity = (torch.tensor(part) for part in zip(*rows, strict=True))
    return Logged.of(torch.zeros(len(rows), 1), action, reward, propensity, actions)


def test_the_estimates_by_hand():
    # w = 0.8/0.5, 0.2/0.5, 0.8/0.25 = 1.6, 0.4, 3.2 and r = 1, 1, 0.
    logged = log((0, 1.0, 0.5), (1, 1.0, 0.5), (0, 0.0, 0.25))
    policy, value = torch.tensor([[0.8, 0.2]] * 3), torch.tensor([[0.5, 0.1]] * 3)
    found = estimates(policy, logged, value_NA=value)
    assert found["ips"].value == pytest.approx(2 / 3)
    assert found["snips"].value == pytest.approx(2 / 5.2)
    assert found["dm"].value == pytest.approx(0.42)
    # residuals 0.5, 0.9 and -0.5: (1.6 * 0.5 + 0.4 * 0.9 - 3.2 * 0.5) / 3 = -0.1466...
    assert found["dr"].value == pytest.approx(0.42 - 0.44 / 3)
    assert importance(policy, logged, clip=2.0).tolist() == pytest.approx([1.6, 0.4, 2.0])
    assert effective(torch.tensor([3.0, 1.0])) == pytest.approx(1.6)
    assert all(each.low <= each.value <= each.high for each in found.values())


def test_the_logging_policy_is_worth_what_was_logged():
    logged = log((0, 1.0, 0.5), (1, 0.0, 0.5), (1, 1.0, 0.5))
    found = estimates(uniform(3, 2), logged)
    assert set(found) == {"ips", "snips"}
    assert all(each.value == pytest.approx(2 / 3) for each in found.values())


def test_a_policy_that_shows_nothing_logged_has_no_snips():
    found = estimates(torch.tensor([[0.0, 1.0]]), log((0, 1.0, 0.5)))
    assert math.isnan(found["snips"].value) and found["ips"].value == 0


def test_dr_and_ips_are_unbiased_and_dr_is_calmer():
    policy_of = lambda context: (2 * context @ TASTE).softmax(-1)
    context = torch.randn(50_000, WIDTH, generator=torch.Generator().manual_seed(9))
    known = worth(policy_of(context), context)
    found = []
    for seed in range(80):
        logged = world(1000, 10 + seed)
        rough = 0.7 * relevance(logged.context) * PLACES.mean()  # a model that is wrong, but not silly
        one = estimates(policy_of(logged.context), logged, value_NA=rough, samples=2)
        found.append([one[name].value for name in ("ips", "dm", "dr")])
    found = torch.tensor(found)
    error, noise = found.mean(0) - known, found.std(0) / len(found) ** 0.5
    assert abs(error[0]) < 3 * noise[0]
    assert abs(error[2]) < 3 * noise[2]
    assert error[1] < -0.2 * known  # the model alone says 30 % too little
    assert noise[2] < noise[0]


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    policy_of = lambda context: (context @ TASTE).softmax(-1)
    context = torch.randn(50_000, WIDTH, generator=torch.Generator().manual_seed(9))
    known, held = worth(policy_of(context), context), 0
    for seed in range(60):
        logged = world(1000, 200 + seed)
        low, high = estimates(policy_of(logged.context), logged, samples=200, level=0.8)["ips"][1:]
        held += low <= known <= high
    assert 0.65 * 60 <= held <= 0.95 * 60


def test_the_policy_is_better_than_a_click_model_on_biased_feedback():
    context = torch.randn(20_000, WIDTH, generator=torch.Generator().manual_seed(9))
    best = worth(greedy(relevance(context)), context)
    for seed in (0, 1):
        logged = world(20_000, 100 * seed)
        plain, model = learn(ClickModel(WIDTH, ACTIONS), logged, 400), learn(make(seed, teach=400), logged, 800)
        ours = worth(greedy(model.score(context)[:, 0]), context)
        theirs = worth(greedy(plain.values(context)), context)
        popular = worth(greedy(popularity(logged).expand(len(context), -1)), context)
        assert popular < theirs < ours - 0.005 < best
    # What other logs say of it, with a reward model of the training log, is what it is worth.
    fair, held = learn(ClickModel(WIDTH, ACTIONS, weighted=True), logged, 250), 0
    for seed in range(1, 21):
        test = world(2000, seed)
        policy = model.score(test.context)[:, 0]
        told = estimates(policy, test, value_NA=fair.values(test.context), samples=200)["dr"]
        held += told.low < worth(policy, test.context) < told.high
    assert held >= 16, "95 % intervals: 19 of 20 expected"


def test_the_target_by_hand():
    q = torch.tensor([[[1.0, 3.0]]])
    made, spread = target(q, 1.0)  # centred -1 and 1, spread 1
    assert spread.item() == 1
    assert made[0, 0, 1].item() == pytest.approx(1 / (1 + math.exp(-2)))
    torch.testing.assert_close(target(1000 * q + 7, 1.0)[0], made)  # rewards of another scale teach the same
    assert target(torch.ones(1, 1, 2), 1.0)[0].tolist() == [[[0.5, 0.5]]]


def test_the_students_loss_by_hand():
    model = make(tasks=1, teach=0, value=0.5, temperature=1.0, clip=1.5).eval()
    for part in (model.teachers[0][-1], model.policy.net[-1]):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    model.teachers[0][-1].bias.data[0] = 6.0  # Q = 6, 0, 0 ..., centred 5, -1 ...: spread sqrt(30 / 6)
    _, terms = model(torch.zeros(1, WIDTH), torch.tensor([0]), torch.tensor([[8.0]]), torch.tensor([0.1]))
    # pi = 1/6 each; w = (1/6)/0.1 = 1.67, clipped to 1.5: 1 + 1.5 (8 - 6) = 4
    assert terms["value_0"].item() == pytest.approx(4)
    first = math.exp(5 / 5**0.5) / (math.exp(5 / 5**0.5) + 5 * math.exp(-1 / 5**0.5))
    rest = (1 - first) / 5
    kl = first * math.log(6 * first) + 5 * rest * math.log(6 * rest)
    assert terms["distilled_0"].item() == pytest.approx(kl, rel=1e-4)
    assert terms["loss"].item() == pytest.approx(kl - 0.5 * 4 / 5**0.5, rel=1e-4)


def test_teachers_first_then_frozen():
    model, data = make(tasks=2, teach=2).train(), world(64, 0).batch(torch.arange(64))
    data["reward"] = data["reward"].expand(-1, 2)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad])
    for step in range(4):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for _ in fit(model, [data], optimizer):
            pass
        moved = {
            name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
        }
        assert moved - {"step"} == ({"teachers"} if step < 2 else {"policy"})


def test_two_tasks_have_two_policies_in_one_small_net():
    model, logged = make(tasks=2, teach=150), world(3000, 0)
    two = Logged(logged.context, logged.action, torch.cat([logged.reward, 1 - logged.reward], 1), logged.propensity,
                 ACTIONS)  # fmt: skip
    learn(model, two, 300)
    score = model.score(logged.context)
    torch.testing.assert_close(score.sum(-1), torch.ones(3000, 2))
    for task in (0, 1):
        taught = model.values(logged.context)[:, task].argmax(-1)
        assert (score[:, task].argmax(-1) == taught).float().mean() > 0.8
    assert (score[:, 0].argmax(-1) == score[:, 1].argmax(-1)).float().mean() < 0.5
    size = lambda part: sum(each.numel() for each in part.parameters())
    assert size(model.policy) < size(model.teachers)


def test_the_long_run_counts():
    """Action 0 earns 1 and ends the visit; action 1 earns nothing, and then 3 come for sure: worth 0.9 * 3 = 2.7."""
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    data = {
        "context": torch.cat([first, first, second, second]),
        "action": torch.tensor([0, 1, 0, 1]),
        "reward": torch.tensor([[1.0], [0.0], [3.0], [3.0]]),
        "propensity": torch.full((4,), 0.5),
        "following": torch.cat([second, second, second, second]),
        "alive": torch.tensor([0.0, 1.0, 0.0, 0.0]),
    }

    def policy(gamma):
        torch.manual_seed(0)
        model = build("recommend.bandit", "podire", 2, 2, teacher=[16], student=[8], gamma=gamma, teach=300,
                      copy_every=20, value=0.0)  # fmt: skip
        optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.02)
        for _ in fit(model.train(), [data] * 400, optimizer):
            pass
        return model

    patient = policy(0.9)
    assert patient.values(first)[0, 0].tolist() == pytest.approx([1.0, 2.7], abs=0.1)
    assert patient.score(first)[0, 0].argmax() == 1
    assert policy(0.0).score(first)[0, 0].argmax() == 0


def test_a_resumed_run_is_the_unbroken_one():
    logged = world(400, 0)
    parts = [logged.batch(torch.arange(part, part + 50)) for part in range(0, 400, 50)]

    def run(model, optimizer, some):
        for _ in fit(model.train(), some, optimizer):
            pass

    adam = lambda model: torch.optim.Adam([each for each in model.parameters() if each.requires_grad])
    straight, first, second = make(0, teach=4), make(0, teach=4), make(1, teach=4)
    run(straight, adam(straight), parts)
    before = adam(first)
    run(first, before, parts[:3])
    second.load_state_dict(first.state_dict())
    after = adam(second)
    after.load_state_dict(before.state_dict())
    run(second, after, parts[3:])
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in straight.state_dict().items())


def test_popularity_by_hand():
    logged = log((0, 1.0, 0.5), (0, 0.0, 0.5), (1, 0.0, 0.5), (1, 1.0, 0.5))
    assert popularity(logged, prior=2.0).tolist() == [0.5, 0.5]
    assert popularity(log((0, 1.0, 0.5), (1, 0.0, 0.5)), prior=1.0).tolist() == [0.75, 0.25]
    twice = popularity(
        log((0, 1.0, 0.5), (0, 0.0, 0.5), (1, 0.0, 0.5)), prior=0.0, weight=torch.tensor([2.0, 1.0, 1.0])
    )
    assert twice.tolist() == pytest.approx([2 / 3, 0.0])


def test_bad_logs_policies_and_settings_are_refused():
    good = {
        "context": torch.zeros(2, 1),
        "action": [0, 1],
        "reward": [0.0, 1.0],
        "propensity": [0.5, 0.5],
        "actions": 2,
    }
    assert len(Logged.of(**good)) == 2
    with pytest.raises(LoggedError, match=r"1 actions outside 0..1, 2 propensities not in \(0, 1\], 1 rewards"):
        Logged.of(**good | {"action": [0, 2], "propensity": [0.0, 1.5], "reward": [math.nan, 1.0]})
    with pytest.raises(LoggedError, match="at least one"):
        Logged.of(torch.zeros(0, 1), [], [], [], 2)
    with pytest.raises(LoggedError, match="one row of each"):
        Logged.of(**good | {"action": [0]})
    with pytest.raises(LoggedError, match=r"1 of 2 rows of a policy are no probabilities"):
        estimates(torch.tensor([[0.5, 0.5], [0.5, 0.6]]), Logged.of(**good))
    with pytest.raises(LoggedError, match=r"gives \(2, 2\) probabilities"):
        estimates(torch.ones(2, 1), Logged.of(**good))
    with pytest.raises(ValueError, match=r"tasks must be >= 1(.|\n)*temperature(.|\n)*gamma in"):
        make(tasks=0, temperature=0.0, gamma=1.0)
    with pytest.raises(ValueError, match="a column for each task"):
        make(tasks=2)(**world(4, 0).batch(torch.arange(4)))
