"""A log of pairs, and batches of them with sampled negatives."""

import pytest
import torch

from models.recommend.retrieval._log import Log, LogError
from models.recommend.retrieval._sampling import Pairs, Unseen


def small() -> Log:
    return Log.of(torch.tensor([2, 0, 2, 0, 2]), torch.tensor([1, 3, 0, 1, 1]), users=4, items=5)


def test_pairs_are_unique_and_sorted():
    log = small()
    assert (log.users, log.items, len(log)) == (4, 5, 4)
    assert log.user.tolist() == [0, 0, 2, 2]
    assert log.item.tolist() == [1, 3, 0, 1]
    assert log.starts.tolist() == [0, 2, 2, 4, 4]
    assert log.user_degree.tolist() == [2, 0, 2, 0]
    assert log.item_degree.tolist() == [1, 2, 0, 1, 0]


def test_counts_follow_from_the_largest_ids():
    log = Log.of(torch.tensor([0, 3]), torch.tensor([6, 1], dtype=torch.int32))
    assert (log.users, log.items) == (4, 7)
    assert log.item.dtype == torch.int64


def test_items_of_users_come_in_the_order_asked_for():
    row, item = small().of_users(torch.tensor([2, 1, 0, 2]))
    assert row.tolist() == [0, 0, 2, 2, 3, 3]
    assert item.tolist() == [0, 1, 1, 3, 0, 1]


def test_has_knows_every_pair():
    log = small()
    user, item = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    assert log.has(user, item).nonzero().tolist() == [[0, 1], [0, 3], [2, 0], [2, 1]]


@pytest.mark.parametrize(
    ("user", "item", "users", "said"),
    [
        ([], [], 3, "at least one pair"),
        ([0, 1], [0], 3, "one item for each user"),
        ([0, -1], [0, 1], 3, "1 of 2 user ids are outside 0..2"),
        ([0, 5], [0, 1], 3, "1 of 2 user ids are outside 0..2 .they run from 0 to 5"),
        ([0.0, 1.0], [0, 1], 3, "must be integers"),
    ],
)
def test_what_is_no_log_is_refused(user, item, users, said):
    with pytest.raises(LogError, match=said):
        Log.of(torch.tensor(user), torch.tensor(item), users=users)


def test_every_epoch_holds_each_pair_once():
    pairs = Pairs(small(), batch=3, seed=1)
    assert len(pairs) == 2
    batches = [batch for batch, _ in zip(pairs, range(6), strict=False)]
    epochs = [torch.cat([b["user"] * 5 + b["item"] for b in batches[i : i + 2]]).tolist() for i in (0, 2, 4)]
    assert all(sorted(epoch) == small().key.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert all("negative" not in batch for batch in batches)


def test_a_negative_is_never_a_seen_item_and_each_unseen_one_equally_likely():
    log = small()
    user = torch.tensor([0]).repeat(30_000)
    drawn = Unseen(log).draw(user, 2, torch.Generator().manual_seed(0))
    share = drawn.flatten().bincount(minlength=5) / drawn.numel()
    assert share[[1, 3]].sum() == 0
    torch.testing.assert_close(share[[0, 2, 4]], torch.full((3,), 1 / 3), atol=0.01, rtol=0)


def test_a_user_without_pairs_can_draw_any_item():
    drawn = Unseen(small()).draw(torch.tensor([3]).repeat(500), 1, torch.Generator().manual_seed(0))
    assert drawn.unique().tolist() == [0, 1, 2, 3, 4]


def test_a_user_who_has_seen_everything_is_refused():
    with pytest.raises(LogError, match="1 of 2 users have a pair with every item"):
        Pairs(Log.of(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])), batch=2, negatives=1)


def test_batches_continue_where_a_state_was_taken():
    whole = Pairs(small(), batch=3, negatives=2, seed=5)
    kept, state = [], None
    for place, batch in zip(range(7), whole, strict=False):
        kept.append(batch)
        if place == 2:
            state = whole.state_dict()
    again = Pairs(small(), batch=3, negatives=2, seed=5)
    again.load_state_dict(state)
    for expected, batch in zip(kept[3:], again, strict=False):
        assert batch.keys() == expected.keys() == {"user", "item", "negative"}
        assert all(torch.equal(batch[key], expected[key]) for key in batch)


def test_seeds_differ():
    draws = [next(iter(Pairs(small(), batch=4, negatives=8, seed=seed)))["negative"] for seed in (0, 1)]
    assert not torch.equal(*draws)
