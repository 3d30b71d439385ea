import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build
from models.recommend.towers._towers import Fields, Pair
from models.recommend.towers.dmtl import bernoulli_kl, both_logit, reading_labels

SMALL = {"embedding": 8, "experts": 2, "expert_widths": (16, 8), "tower_widths": (8,), "widths": (16,), "width": 8,
         "history": False}  # fmt: skip
USERS, ITEMS = 30, 20
NONE = lambda rows: torch.zeros(rows, 0)


def model(seed: int = 0, **settings):
    torch.manual_seed(seed)
    return build("recommend.towers", "dmtl", Fields((USERS,)), Fields((ITEMS,)), **SMALL | settings)


def impressions(rows: int, click, read, seed: int = 0) -> dict:
    """Anybody sees anything; click (ITEMS,) and read (ITEMS,) are chances."""
    draw = torch.Generator().manual_seed(seed)
    user, item = (torch.randint(0, size, (rows, 1), generator=draw) for size in (USERS, ITEMS))
    clicked = (torch.rand(rows, generator=draw) < click[item[:, 0]]).float()
    reading = (torch.rand(rows, generator=draw) < read[item[:, 0]]).float()
    return {"user": user, "user_numbers": NONE(rows), "item": item, "item_numbers": NONE(rows), "click": clicked,
            "reading": reading}  # fmt: skip


def random(rows: int = 16, seed: int = 0) -> dict:
    return impressions(rows, torch.full((ITEMS,), 0.5), torch.full((ITEMS,), 0.5), seed)


def run(made, batches, rate: float = 0.01) -> None:
    optimizer = made.optimizer(rate)
    for given in batches:
        loss, _ = made.train()(**given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.eval()


def student(made, user, item) -> torch.Tensor:
    u, v = made.user_vectors(user, NONE(len(user))), made.item_vectors(item, NONE(len(item)))
    return (u * v).sum(-1)


def test_divergence_by_hand():
    # 1/2 ln 2 + 1/2 ln(2/3), and nothing between equals.
    kl = bernoulli_kl(torch.tensor([0.5, 0.2]).logit(), torch.tensor([0.25, 0.2]).logit())
    assert kl.tolist() == pytest.approx([0.143841, 0.0], abs=1e-6)


def test_divergence_is_not_negative_and_pulls_by_the_difference():
    torch.manual_seed(0)
    p, q = torch.randn(50) * 3, (torch.randn(50) * 3).requires_grad_()
    kl = bernoulli_kl(p, q)
    assert (kl >= 0).all()
    kl.mean().backward()
    torch.testing.assert_close(q.grad, (q.detach().sigmoid() - p.sigmoid()) / 50)


def test_a_product_of_probabilities_is_at_most_either():
    a, b = torch.linspace(-50, 50, 41), torch.linspace(50, -50, 41)
    both = both_logit(a, b)
    assert (both <= torch.minimum(a, b)).all()
    assert torch.allclose(both.double().sigmoid(), a.double().sigmoid() * b.double().sigmoid(), atol=1e-9)


@pytest.mark.parametrize("logits", [(50.0, 50.0), (50.0, -50.0), (-50.0, 50.0), (-50.0, -50.0)])
def test_extreme_teachers_give_numbers(logits):
    made, given = model(), random()
    told = torch.tensor([logits]).expand(16, 2).clone().requires_grad_()
    made.teacher = Told(told)
    loss, terms = made(**given)
    loss.backward()
    assert all(term.isfinite() for term in terms.values()) and told.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in made.towers.parameters())


class Told(nn.Module):
    """A teacher with these logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, *described):
        return self.logits


def test_the_teacher_learns_as_if_it_were_alone():
    batches = [random(seed=seed) for seed in range(6)]
    joint, alone = model(), model(warm_up=100)
    run(joint, batches)
    run(alone, batches)
    for name, value in joint.teacher.state_dict().items():
        assert torch.equal(value, alone.teacher.state_dict()[name]), name
    moved = [not torch.equal(a, b) for a, b in zip(joint.towers.parameters(), alone.towers.parameters(), strict=True)]
    assert all(moved)


def test_reading_of_what_was_not_clicked_changes_nothing_but_its_row_teaches():
    given, losses = random(), []
    for other in (0.0, 1.0, torch.nan):
        made = model()
        reading = torch.where(given["click"] > 0, given["reading"], other)
        loss, _ = made(**given | {"reading": reading})
        losses.append(loss.item())
    assert losses[0] == losses[1] == losses[2]
    logits = torch.zeros(16, 2, requires_grad=True)
    made = model()
    made.teacher = Told(logits)
    made(**given)[0].backward()
    assert (logits.grad[given["click"] == 0, 1] > 0).all()  # through the product, unlike a loss of clicked rows only


def test_scores_factorise_and_the_students_list_is_that_of_its_vectors():
    made = model().eval()
    everybody, everything = torch.arange(USERS)[:, None], torch.arange(ITEMS)[:, None]
    u, v = made.user_vectors(everybody, NONE(USERS)), made.item_vectors(everything, NONE(ITEMS))
    scores = made.towers.score(u, v)
    assert torch.linalg.matrix_rank(scores) <= 8
    one_by_one = torch.stack([student(made, torch.full((ITEMS, 1), user), everything) for user in range(USERS)])
    torch.testing.assert_close(scores, one_by_one)
    assert torch.equal(scores.topk(5).indices, one_by_one.topk(5).indices)


@pytest.mark.parametrize("history", [False, True])
def test_a_teacher_ranks_all_items_for_one_as_it_judges_pairs(history):
    made = model(history=history).eval()
    read = (torch.tensor([[[3], [7], [0]]]), torch.zeros(1, 3, 0), torch.tensor([[True, True, False]]))
    one = (torch.tensor([[4]]), NONE(1), *(read if history else ()))
    everything = torch.arange(ITEMS)[:, None], NONE(ITEMS)
    ranked = made.teacher.judge(made.teacher.known(*one), *everything)
    repeated = [part.expand(ITEMS, *part.shape[1:]) for part in one] + [None] * (0 if history else 3)
    torch.testing.assert_close(ranked, made.teacher(*repeated, *everything))
    assert ranked.std(0).min() > 0


def test_a_teacher_that_a_product_can_express_is_matched():
    torch.manual_seed(0)
    logit = (torch.randn(6, 4) @ torch.randn(4, 6)).flatten()
    towers = Pair(Fields((6,)), Fields((6,)), 8, (), 8, history=False, cosine=False)
    user, item = (part.reshape(-1, 1) for part in torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"))
    optimizer = torch.optim.Adam(towers.parameters(), 0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        found = (towers.user_vectors(user, NONE(36)) * towers.item_vectors(item, NONE(36))).sum(-1)
        loss = bernoulli_kl(logit, found).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    assert loss.item() < 1e-4


def test_click_bait_comes_after_what_is_read():
    # The first half is bait: clicked often, hardly read; ctcvr .06 against .24.
    bait = torch.arange(ITEMS) < ITEMS // 2
    click, read = torch.where(bait, 0.6, 0.3), torch.where(bait, 0.1, 0.8)
    batches = [impressions(256, click, read, seed) for seed in range(150)]
    made = model()
    run(made, batches)
    torch.manual_seed(0)
    clicks = Pair(Fields((USERS,)), Fields((ITEMS,)), 8, (16,), 8, history=False, cosine=False)
    optimizer = torch.optim.Adam(clicks.parameters(), 0.01)
    for given in batches:
        u, v = clicks.user_vectors(given["user"], NONE(256)), clicks.item_vectors(given["item"], NONE(256))
        loss = F.binary_cross_entropy_with_logits((u * v).sum(-1), given["click"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = impressions(4000, click, read, 999)
    both = (test["click"] * test["reading"]).bool()
    with torch.no_grad():
        everybody, everything = torch.arange(USERS)[:, None], torch.arange(ITEMS)[:, None]
        order = lambda towers: towers.score(towers.user_vectors(everybody, NONE(USERS)),
                                            towers.item_vectors(everything, NONE(ITEMS)))  # fmt: skip
        baited = [bait[order(towers).topk(5).indices].float().mean().item() for towers in (clicks, made.towers)]
        scores = [order(towers)[test["user"][:, 0], test["item"][:, 0]] for towers in (clicks, made.towers)]
        areas = [auc(score, both) for score in scores]
    assert baited[0] > 0.9 and baited[1] < 0.1
    assert areas[1] > areas[0] + 0.2 and areas[1] > 0.6
    known = order(made.towers).detach().sigmoid()
    assert known[:, ~bait].mean().item() == pytest.approx(0.24, abs=0.06)  # a probability, not only an order
    assert known[:, bait].mean().item() == pytest.approx(0.06, abs=0.04)


def auc(score: torch.Tensor, label: torch.Tensor) -> float:
    above = score[label][:, None] - score[~label]
    return ((above > 0).float() + (above == 0).float() / 2).mean().item()


def test_where_everything_is_read_a_click_is_imitated():
    click = torch.linspace(0.1, 0.9, ITEMS)
    made = model()
    run(made, [impressions(256, click, torch.ones(ITEMS), seed) for seed in range(150)])
    with torch.no_grad():
        everything = torch.arange(ITEMS)[:, None]
        found = student(made, torch.zeros(ITEMS, 1, dtype=torch.int64), everything)
    assert torch.corrcoef(torch.stack([found, click.logit()]))[0, 1] > 0.95


def test_the_other_target_is_reading_after_a_click():
    click, read = torch.linspace(0.2, 0.9, ITEMS), torch.linspace(0.9, 0.2, ITEMS)
    made = model(target="cvr")
    run(made, [impressions(256, click, read, seed) for seed in range(150)])
    with torch.no_grad():
        found = student(made, torch.zeros(ITEMS, 1, dtype=torch.int64), torch.arange(ITEMS)[:, None])
    assert torch.corrcoef(torch.stack([found, read.logit()]))[0, 1] > 0.9


def test_the_step_is_saved_and_what_is_served_has_no_teacher():
    made = model(warm_up=3)
    run(made, [random()] * 2)
    assert made.state_dict()["step"] == 2
    assert not any("teacher" in name or "experts" in name for name in made.towers.state_dict())
    served = sum(p.numel() for p in made.towers.parameters())
    assert served < sum(p.numel() for p in made.parameters())


def test_reading_is_a_click_longer_than_theta():
    click, seconds = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([51.0, 50.0, 99.0])
    assert reading_labels(click, seconds, 50.0).tolist() == [1, 0, 0]


def test_refusals():
    with pytest.raises(ValueError, match="target ctcvr or cvr"):
        model(target="ctr")
    with pytest.raises(ValueError, match="warm_up >= 0"):
        model(warm_up=-1)
