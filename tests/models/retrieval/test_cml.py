"""CML: distances, the rank weight, the ball, features of new items, and the prompt of weights."""

import math

import pytest
import torch

from models import build
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._sampling import Unseen
from models.recommend.retrieval.cml import MetricPrompt, clip, hinge, off_diagonal
from tests.models.retrieval._small_log import blocks, random_log, recall, run, unlike_after_resume


def make(log, seed=1, **settings):
    torch.manual_seed(seed)
    return build("recommend.retrieval", "cml", log, **({"width": 6, "negatives": 4} | settings))


def test_by_hand():
    # 1 impostor of 20 among 1,682 items: ln(1 + 84.1) = 4.4438. m + d - d_j = 1 + 0.5 - 1.2 = 0.3.
    far = torch.full((1, 20), 9.0)
    far[0, 7] = 1.2
    assert hinge(torch.tensor([0.5]), far, 1.0, None).item() == pytest.approx(0.3)
    assert hinge(torch.tensor([0.5]), far, 1.0, 1682).item() == pytest.approx(4.4438 * 0.3, abs=1e-4)
    # All 20 are impostors: ln(1 + 1682); none: 0.
    assert hinge(torch.tensor([0.5]), far.fill_(0.5), 1.0, 1682).item() == pytest.approx(math.log(1683))
    assert hinge(torch.tensor([0.5]), far.fill_(1.6), 1.0, 1682).item() == 0


def test_scores_are_distances():
    log = random_log()
    model = make(log).double()
    score = model.score(torch.arange(log.users))
    expected = -(model.user.detach()[:, None] - model.item.detach()).square().sum(-1)
    torch.testing.assert_close(score, expected)
    assert (score <= 1e-12).all()
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    with torch.no_grad():
        model.user.copy_(model.user @ turn + 0.3)
        model.item.copy_(model.item @ turn + 0.3)
    torch.testing.assert_close(model.score(torch.arange(log.users)), expected)


def test_only_the_nearest_negative_and_no_rank_weight_get_gradient():
    d = torch.tensor([0.5], requires_grad=True)
    far = torch.tensor([[1.0, 0.8, 1.2, 9.0]], requires_grad=True)
    loss = hinge(d, far, 1.0, 100)
    weight = math.log1p(100 * 3 / 4)
    assert torch.autograd.grad(loss, [d, far])[0].item() == pytest.approx(weight)
    loss = hinge(d, far, 1.0, 100)
    assert torch.autograd.grad(loss, far)[0].tolist() == [[0, pytest.approx(-weight), 0, 0]]


def test_satisfied_triples_cost_and_teach_nothing():
    log = random_log()
    model = make(log, margin=0.5)
    with torch.no_grad():
        model.user.zero_()
        model.item.zero_()
        model.item[1:, 0] = 1.0
    loss, _ = model(torch.tensor([0]), torch.tensor([0]), torch.tensor([[1, 2, 3, 4]]))
    loss.backward()
    assert loss == 0
    assert not model.user.grad.any() and not model.item.grad.any()


def test_a_step_pulls_and_pushes():
    log = random_log()
    model = make(log)
    user, item, negative = torch.tensor([0]), torch.tensor([1]), torch.tensor([[2, 3, 4, 5]])
    before = -model.score(user)[0]
    nearest = negative[0][before[negative[0]].argmin()]
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model(user, item, negative)[0].backward()
    optimizer.step()
    model.after_step()
    after = -model.score(user)[0]
    assert after[1] < before[1]
    assert after[nearest] > before[nearest]


def test_points_stay_in_the_ball():
    log = random_log()
    model = make(log, clip=0.7, margin=1.0)
    run(model, log, range(10), rate=0.5, negatives=Unseen(log))
    for table in (model.user, model.item):
        assert (table.norm(dim=-1) <= 0.7 + 1e-6).all()
    inside = torch.tensor([[0.1, 0.2], [3.0, 4.0]])
    clipped = clip(inside, 1.0)
    assert torch.equal(clipped[0], inside[0])
    torch.testing.assert_close(clipped[1], torch.tensor([0.6, 0.8]))


def test_covariance_is_0_for_decorrelated_columns_and_never_below():
    white = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert off_diagonal(white).item() == 0
    # Columns opposite to each other: Cov_01 = -1, twice squared, over 4 points. With its sign it would be below 0.
    assert off_diagonal(torch.stack([white[:, 0], -white[:, 0]], 1)).item() == pytest.approx(0.5)
    log = random_log()
    _, terms = make(log, covariance=10.0)(log.user[:2], log.item[:2], torch.zeros(2, 4, dtype=torch.int64))
    assert terms["covariance"] > 0


def test_the_feature_term():
    log = random_log()
    features = torch.randn(log.items, 5, generator=torch.Generator().manual_seed(3))
    model = make(log, features=features, feature_scale=0.5, hidden=7)
    start = model.place(features)
    torch.testing.assert_close(model.item.detach(), start)  # items start where their features say
    layer = model.content
    by_hand = (features @ layer.first.weight.T + layer.first.bias).clamp(min=0) @ layer.last.weight.T + layer.last.bias
    torch.testing.assert_close(start, clip(0.5 * by_hand, 1.0).detach())
    with torch.no_grad():
        model.item += 0.1
    _, terms = model.eval()(log.user[:1], log.item[:1], torch.zeros(1, 4, dtype=torch.int64))
    assert terms["feature"].item() == pytest.approx(0.1 * log.items * 6 * 0.01, rel=1e-4)


def circle(count: int, shift: float = 0.0):
    angle = (torch.arange(count) + shift) / count * 2 * math.pi
    return angle, torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], 1)


def test_new_items_find_their_place_on_a_circle():
    """Users buy the items at angles near theirs; new items, between the old ones, are placed by features alone."""
    angles, features = circle(40)
    people, _ = circle(60, 0.3)
    gap = (people[:, None] - angles + math.pi).remainder(2 * math.pi) - math.pi
    log = Log.of(*(gap.abs() < 0.4).nonzero().T, 60, 40)
    model = make(log, width=4, features=features, hidden=32, item_dropout=0.3, dropout=0.0, margin=1.0)
    run(model, log, range(200), batch=64, negatives=Unseen(log))
    new_angles, new = circle(20, 0.5)
    placed = model.place(new)
    torch.testing.assert_close(model.place(new[[3, 3]])[0], placed[3])  # equal features, equal place

    def found(points):
        """Angle of each point: the mean direction of the five users nearest to it."""
        near = (model.user.detach()[:, None] - points).square().sum(-1).topk(5, dim=0, largest=False).indices
        return torch.atan2(people[near].sin().mean(0), people[near].cos().mean(0))

    off = (found(placed) - new_angles + math.pi).remainder(2 * math.pi) - math.pi
    assert off.cos().mean() > 0.98
    order = (new_angles + off).argsort().argsort().double()
    assert torch.corrcoef(torch.stack([order, torch.arange(20.0, dtype=torch.float64)]))[0, 1] > 0.9
    shuffled = new[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    assert (found(model.place(shuffled)) - new_angles).cos().mean() < 0.5


def test_it_learns_blocks():
    train, held = blocks()
    model = make(train, negatives=10)
    run(model, train, range(200), batch=64, negatives=Unseen(train))
    assert recall(model.score(torch.arange(train.users)), train, held) > 0.7


def test_a_resumed_run_is_the_unbroken_one():
    log = random_log()
    features = torch.randn(log.items, 5, generator=torch.Generator().manual_seed(3))
    settings = {"features": features, "item_dropout": 0.5, "hidden": 8}
    assert unlike_after_resume(lambda seed: make(log, seed, **settings), log, Unseen(log)) == []


def test_the_prompt_starts_as_the_backbone_and_leaves_it_alone():
    train, _ = blocks()
    model = make(train)
    run(model, train, range(50), batch=64, negatives=Unseen(train))
    prompt = MetricPrompt(model.user, model.item)
    users, items = prompt.vectors()
    assert torch.equal((users @ items.mT).argsort(-1), model.score(torch.arange(train.users)).argsort(-1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer, draws = torch.optim.Adam(prompt.parameters(), 0.05), Unseen(train)
    first = None
    for step in range(40):
        draw = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        loss, _ = prompt(train.user, train.item, draws.draw(train.user, 4, draw))
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    assert loss.item() < first
    assert list(prompt.state_dict()) == ["root"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": 4.0}, "always violated"),
        ({"negatives": 0}, "negatives >= 1"),
        ({"features": torch.zeros(3, 2)}, "one row an item"),
        ({"item_dropout": 0.5}, "needs features"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        make(random_log(), **settings)


def test_without_features_nothing_new_can_be_placed():
    with pytest.raises(ValueError, match="trained without features"):
        make(random_log()).place(torch.zeros(1, 2))


def test_a_new_user_stands_in_the_mean_of_the_items():
    log = random_log()
    model = make(log)
    # Items 0 and 1 at (1, 0) and (0, 1): the mean is (1/2, 1/2), 1/2 from each; item 2 at the origin is 1/2 away too.
    with torch.no_grad():
        model.item.zero_()
        model.item[0, 0] = model.item[1, 1] = model.item[3, 2] = 1
    score = model.score_histories(Log.of(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 3]), 3, log.items))
    assert score[0, :4].tolist() == pytest.approx([-0.5, -0.5, -0.5, -1.5])
    assert score[1, :4].tolist() == pytest.approx([-2, -2, -1, 0])
    assert score[2].tolist() == [0.0] * log.items
