import math

import pytest
import torch
import torch.nn.functional as F

from models import build
from models.recommend.towers._towers import Fields

ITEM, NOBODY = Fields((12,)), Fields()
NO = lambda *size: torch.zeros(*size, 0)


def model(seed: int = 0, user: Fields = NOBODY, **settings):
    torch.manual_seed(seed)
    small = {"embedding": 8, "widths": (), "width": 8, "interests": 2, "prototypes": 3, "queue": 0, "negatives": 0}
    return build("recommend.towers", "prototypes", user, ITEM, 12, **small | settings)


def batch(rows: int = 6, length: int = 4, seed: int = 0) -> dict:
    """Users of two of three groups of items, 0-3, 4-7 and 8-11; the item to find is of either."""
    draw = torch.Generator().manual_seed(seed)
    group = torch.rand(rows, 3, generator=draw).argsort(1)[:, :2]
    pick = lambda count: (4 * group.gather(1, torch.randint(0, 2, (rows, count), generator=draw))
                          + torch.randint(0, 4, (rows, count), generator=draw))  # fmt: skip
    item, history = pick(1), pick(length)
    return {"user": NO(rows), "user_numbers": NO(rows), "item_id": item[:, 0], "item": item, "item_numbers": NO(rows),
            "history": history[..., None], "history_numbers": NO(rows, length),
            "kept": torch.ones(rows, length, dtype=torch.bool)}  # fmt: skip


def test_prototypical_contrast_by_hand():
    # Cosines 1 and 0 with two prototypes, concentration 1/2: -ln(e^2 / (e^2 + 1)).
    made = model(width=2, prototypes=3, concentration=0.5)
    made.centre.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]))
    made.weight.copy_(torch.tensor([1.0, 1.0, 0.0]))  # the third has had no item
    assert made.contrast(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    made.weight.zero_()
    assert made.contrast(torch.tensor([[1.0, 0.0]])).item() == 0


def test_prototypes_find_the_clusters_of_items():
    made = model(width=2, prototypes=3, momentum=0.9)
    angles, draw = torch.tensor([0.0, 2.1, 4.2]), torch.Generator().manual_seed(0)
    for _ in range(60):
        angle = angles[torch.randint(0, 3, (32,), generator=draw)] + 0.1 * torch.randn(32, generator=draw)
        made._move(torch.stack([angle.cos(), angle.sin()], -1))
    truth = torch.stack([angles.cos(), angles.sin()], -1)
    assert (truth @ made.centre.mT).amax(1).min() > 0.99
    assert torch.allclose(made.centre.norm(dim=1), torch.ones(3), atol=1e-5)
    assert made.weight.tolist() == pytest.approx([32 / 3] * 3, rel=0.3)


def test_an_interest_that_is_not_kept_answers_nothing():
    made, given = model().eval(), batch()
    named = [given[name] for name in ("user", "user_numbers", "history", "history_numbers", "kept")]
    all_of_them, _ = made.towers.interests_of(*named)
    items = made.item_vectors(torch.arange(12)[:, None], NO(12))
    assert torch.equal(made.user_vectors(*named), all_of_them)  # at first all are kept
    made.towers.keep.bias.data.fill_(-50.0)
    kept = made.user_vectors(*named)
    assert torch.equal(kept[:, 0], kept[:, 1])  # one is always kept: the best
    _, keep = made.towers.interests_of(*named)
    best = all_of_them[torch.arange(6), keep.argmax(-1)]
    torch.testing.assert_close(made.towers.score(kept, items), best @ items.mT)


def test_the_more_active_keep_more():
    made = model().eval()
    made.towers.keep.weight.data.zero_()
    made.towers.keep.weight.data[0, -1], made.towers.keep.bias.data[0] = 1.0, -math.log(3)
    history, numbers = torch.zeros(2, 4, 1, dtype=torch.int64), NO(2, 4)
    kept = torch.tensor([[False, False, False, True], [True] * 4])
    _, keep = made.towers.interests_of(NO(2), NO(2), history, numbers, kept)
    # ln(1 + 1) < ln 3 < ln(1 + 4)
    assert (keep[0] < 0.5).all() and (keep[1] > 0.5).all()


def test_the_keep_probability_learns():
    made = model(sparsity=0.0)
    loss, _ = made.train()(**batch())
    loss.backward()
    assert made.towers.keep.weight.grad.abs().max() > 0
    alone = model(sparsity=1.0)
    alone.train()(**batch())[0].backward()
    assert alone.towers.keep.bias.grad[0] > made.towers.keep.bias.grad[0]  # a price on each interest


def test_what_is_not_kept_and_an_empty_history_are_no_interest():
    made, given = model().eval(), batch()
    given["kept"][0] = False
    named = [given[name] for name in ("user", "user_numbers", "history", "history_numbers", "kept")]
    before = made.user_vectors(*named)
    named[2] = named[2].clone()
    named[2][0] = 0
    assert torch.equal(before, made.user_vectors(*named)) and before.isfinite().all()


def test_several_interests_find_items_of_both_groups():
    made = model(temperature=0.2)
    optimizer = torch.optim.Adam(made.parameters(), 0.01)
    for seed in range(120):
        loss, _ = made.train()(**batch(64, seed=seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = batch(200, seed=999)
    named = [test[name] for name in ("user", "user_numbers", "history", "history_numbers", "kept")]
    with torch.no_grad():
        score = made.eval().towers.score(
            made.user_vectors(*named), made.item_vectors(torch.arange(12)[:, None], NO(12))
        )
    groups = score.view(200, 3, 4).mean(-1)
    present = torch.zeros(200, 3, dtype=torch.bool).scatter_(1, test["history"][..., 0] // 4, True)
    right = (groups.masked_fill(~present, -9).amax(1) > groups.masked_fill(present, -9).amax(1)).float().mean()
    assert right > 0.9
    # Items of a group are near each other.
    vectors = made.item_vectors(torch.arange(12)[:, None], NO(12)).detach()
    same = torch.arange(12)[:, None] // 4 == torch.arange(12) // 4
    near = vectors @ vectors.mT
    assert near[same].mean() > near[~same].mean() + 0.3


def test_a_checkpoint_continues_as_an_unbroken_run():
    def steps(made, optimizer, numbers):
        for number in numbers:
            loss, _ = made.train()(**batch(seed=number))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    whole = model(queue=8)
    expected = steps(whole, torch.optim.Adam(whole.parameters(), 0.01), range(6))
    part = model(queue=8)
    optimizer = torch.optim.Adam(part.parameters(), 0.01)
    steps(part, optimizer, range(3))
    again = model(seed=3, queue=8)
    again.load_state_dict(part.state_dict())
    continued = torch.optim.Adam(again.parameters(), 0.01)
    continued.load_state_dict(optimizer.state_dict())
    assert steps(again, continued, range(3, 6)) == expected


def test_user_fields_are_heard():
    made = model(user=Fields((5,))).eval()
    given = batch()
    named = [given[name] for name in ("history", "history_numbers", "kept")]
    found = [made.user_vectors(torch.full((6, 1), user), NO(6), *named) for user in (1, 2)]
    assert not torch.allclose(*found)
    assert torch.allclose(found[0].norm(dim=-1), torch.ones(6, 2), atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="momentum in"):
        model(momentum=1.0)
    with pytest.raises(ValueError, match="interests=0"):
        model(interests=0)
    with pytest.raises(ValueError, match="negatives >= 0"):
        model(negatives=-1)
    assert F.relu(model().train()(**batch(rows=1))[0]).isfinite()
