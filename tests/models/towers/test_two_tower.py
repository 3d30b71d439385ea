import math

import pytest
import torch
from torch import nn

from models import build
from models.recommend.retrieval._contrast import sampled_softmax
from models.recommend.towers._candidates import Frequency, Queue
from models.recommend.towers._towers import Fields, Pair, Prompt, recent

USER, ITEM = Fields((6,)), Fields((9, 4), dense=1, words=2, rows=20)


def batch(rows: int = 5, length: int = 3, seed: int = 0, negatives: int = 0) -> dict:
    torch.manual_seed(seed)
    describe = lambda *size: torch.cat([torch.randint(0, 4, (*size, 2)), torch.randint(0, 20, (*size, 2))], -1)
    found = {
        "user": torch.randint(0, 6, (rows, 1)), "user_numbers": torch.zeros(rows, 0), "item_id": torch.arange(rows),
        "item": describe(rows), "item_numbers": torch.rand(rows, 1), "history": describe(rows, length),
        "history_numbers": torch.rand(rows, length, 1), "kept": torch.rand(rows, length) > 0.4,
    }  # fmt: skip
    if negatives:
        found |= {"negative_id": torch.arange(negatives), "negative": describe(negatives),
                  "negative_numbers": torch.rand(negatives, 1)}  # fmt: skip
    return found


def model(seed: int = 0, **settings):
    torch.manual_seed(seed)
    small = {"embedding": 4, "widths": (8,), "width": 6, "queue": 0, "negatives": 0}
    return build("recommend.towers", "two_tower", USER, ITEM, 9, **small | settings)


def by_ids(items: int, contexts: int = 1, **settings):
    """A table of vectors in each place: what a softmax converges to is not bent by a tower."""
    plain = {"embedding": 8, "widths": (), "width": 8, "history": False, "cosine": False, "temperature": 1.0}
    torch.manual_seed(0)
    made = build("recommend.towers", "two_tower", Fields((contexts,)), Fields((items,)), items,
                 **plain | {"queue": 0, "negatives": 0} | settings)  # fmt: skip
    nn.init.normal_(made.towers.items.inputs.table)
    nn.init.normal_(made.towers.users.inputs.table)
    return made


def shares(score: torch.Tensor, log_q: torch.Tensor | None) -> torch.Tensor:
    """Of each of three items, were it the right one among the three: exp(-loss)."""
    losses = []
    for right in range(3):
        hit = (torch.arange(3) == right)[None]
        told = (None, None) if log_q is None else (log_q[right : right + 1], log_q)
        losses.append(sampled_softmax(score[right : right + 1], score[None], hit, *told))
    return (-torch.cat(losses)).exp()


def test_softmax_by_hand():
    # exp(2), exp(1), exp(0) over their sum; with logQ each is first divided by .6, .3 or .1.
    score, log_q = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.6, 0.3, 0.1]).log()
    assert shares(score, None).tolist() == pytest.approx([0.66524, 0.24473, 0.09003], abs=1e-5)
    assert shares(score, log_q).tolist() == pytest.approx([0.39250, 0.28879, 0.31871], abs=1e-5)
    # A constant factor of Q cancels.
    assert torch.allclose(shares(score, log_q + 3), shares(score, log_q))


def test_with_uniform_q_the_correction_changes_nothing():
    found = []
    for correction in (0.0, 0.4, 1.0):
        made = model(correction=correction)
        made.frequency.update(torch.arange(9))
        made.frequency.gap.fill_(9.0)
        loss, _ = made.eval()(**batch(negatives=4))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in made.towers.parameters())])
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_the_whole_corpus_as_negatives_is_the_full_softmax():
    made, items = by_ids(7, contexts=3), torch.arange(7)[:, None]
    user, item_id = torch.tensor([[0], [1], [2]]), torch.tensor([4, 4, 1])
    u = made.user_vectors(user, torch.zeros(3, 0))
    v = made.item_vectors(items, torch.zeros(7, 0))
    full = nn.functional.cross_entropy(u @ v.mT, item_id)
    right = (u * v[item_id]).sum(-1)
    hit = torch.arange(7) == item_id[:, None]
    assert sampled_softmax(right, u @ v.mT, hit).mean().item() == pytest.approx(full.item(), rel=1e-6)


def test_random_negatives_of_the_whole_corpus_leave_no_other_candidate_in_a_batch_of_one():
    made, items = by_ids(7), torch.arange(7)
    one = {"user": torch.zeros(1, 1, dtype=torch.int64), "user_numbers": torch.zeros(1, 0)}
    described = {"item_id": items[4:5], "item": items[4:5, None], "item_numbers": torch.zeros(1, 0)}
    drawn = {"negative_id": items, "negative": items[:, None], "negative_numbers": torch.zeros(7, 0)}
    loss, _ = made.eval()(**one, **described, **drawn)
    scores = made.user_vectors(*one.values()) @ made.item_vectors(items[:, None], torch.zeros(7, 0)).mT
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(scores, items[4:5]).item(), rel=1e-5)


@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_the_fixed_point_is_popularity_or_what_is_above_it(correction):
    # One context: items are right with p, candidates are drawn with Q. (1): s = ln p + c; (0): s = ln p - ln Q + c.
    p, q = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]), torch.tensor([0.1, 0.4, 0.1, 0.2, 0.2])
    score, draw = torch.zeros(5, requires_grad=True), torch.Generator().manual_seed(1)
    optimizer, log_q = torch.optim.Adam([score], 0.1), correction * q.log()
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    no_hit = torch.zeros(2048, 8, dtype=torch.bool)  # by the theorem a draw of the right item is a candidate too
    for _ in range(300):
        item = torch.multinomial(p, 2048, replacement=True, generator=draw)
        drawn = torch.multinomial(q, 2048 * 8, replacement=True, generator=draw).view(-1, 8)
        losses = sampled_softmax(score[item], score[drawn], no_hit, log_q[item], log_q[drawn])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        decay.step()
    off = score.detach() - p.log() + (1 - correction) * q.log()
    assert (off - off.mean()).abs().max() < 0.05


def test_an_accidental_hit_is_no_negative():
    made, given = model().eval(), batch()
    given["item_id"] = torch.tensor([0, 1, 1, 3, 4])  # rows 1 and 2 bought the same item
    given["item"][2], given["item_numbers"][2] = given["item"][1], given["item_numbers"][1]
    u = made.user_vectors(*(given[name] for name in ("user", "user_numbers", "history", "history_numbers", "kept")))
    v = made.item_vectors(given["item"], given["item_numbers"])
    score = (u @ v.mT / made.temperature).detach().requires_grad_()
    allowed = given["item_id"] != given["item_id"][:, None]
    by_hand = [-score[i, i] + torch.cat([score[i, i : i + 1], score[i][allowed[i]]]).logsumexp(0) for i in range(5)]
    torch.stack(by_hand).mean().backward()
    assert score.grad[1, 2] == 0 and score.grad[2, 1] == 0
    assert made(**given)[0].item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)


def test_the_queue_is_first_in_first_out_without_gradient():
    queue = Queue(4, 1)
    for start in (0, 3, 6):
        queue.push(torch.arange(start, start + 3), torch.arange(start, start + 3.0)[:, None].requires_grad_())
    assert sorted(queue.item.tolist()) == [5, 6, 7, 8] and not queue.vector.requires_grad
    assert torch.equal(queue.vector[:, 0].long(), queue.item)
    queue.push(torch.arange(10, 16), torch.zeros(6, 1))
    assert sorted(queue.item.tolist()) == [12, 13, 14, 15]


def test_a_batch_enters_the_queue_after_its_loss_and_only_in_training():
    made, given = model(queue=7), batch()
    assert made.eval()(**given)[0].item() == pytest.approx(
        model(queue=0).eval()(**given)[0].item()
    )  # empty slots do not count
    assert (made.queue.item == -1).all() and made.frequency.clock == 0
    made.train()(**given)
    assert made.queue.item.tolist() == [0, 1, 2, 3, 4, -1, -1]
    before = made.queue.vector.clone()
    loss, _ = made(**given | {"item_id": torch.arange(5, 10) % 9})
    loss.backward()
    assert made.queue.item.tolist() == [7, 8, 0, 3, 4, 5, 6]
    assert torch.equal(before[3:5], made.queue.vector[3:5])


def test_a_checkpoint_continues_as_an_unbroken_run():
    def steps(made, optimizer, numbers):
        for number in numbers:
            loss, _ = made(**batch(seed=number, negatives=3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    whole = model(queue=8, negatives=3)
    expected = steps(whole, torch.optim.Adam(whole.parameters(), 0.01), range(6))
    part = model(queue=8, negatives=3)
    optimizer = torch.optim.Adam(part.parameters(), 0.01)
    steps(part, optimizer, range(3))
    again = model(seed=5, queue=8, negatives=3)
    again.load_state_dict(part.state_dict())
    continued = torch.optim.Adam(again.parameters(), 0.01)
    continued.load_state_dict(optimizer.state_dict())
    assert steps(again, continued, range(3, 6)) == expected


def test_the_stream_tells_how_often_an_item_comes():
    # Item 0 in every second example, item 1 in every fourth.
    even = Frequency(4)
    for _ in range(5):
        even.update(torch.tensor([2, 0, 3, 0, 1, 0, 2, 0]))
    # First gaps: 2 of item 0, 5 of item 1 and then 8 four times: (5 + 4 * 8) / 5.
    assert even.share(torch.tensor([0, 1])).tolist() == pytest.approx([1 / 2, 5 / 37])
    p = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])
    draw, errors = torch.Generator().manual_seed(0), []
    for _ in range(40):
        stream = Frequency(5)
        for part in torch.multinomial(p, 50 * 16, replacement=True, generator=draw).split(64):
            stream.update(part)
        errors.append(stream.share(torch.arange(5)) / p - 1)
    assert torch.stack(errors).mean(0).abs().max() < 0.1
    assert torch.stack(errors)[:, 3].abs().median() < 0.15  # the rarest, after 50 gaps


def test_scores_factorise_and_leave_what_is_not_kept_alone():
    made, given = model().eval(), batch()
    names = ("user", "user_numbers", "history", "history_numbers", "kept")
    u = made.user_vectors(*(given[name] for name in names))
    changed = {name: given[name].clone() for name in names}
    changed["history"][~given["kept"]] = 0
    changed["history_numbers"][~given["kept"]] = torch.nan
    changed["user"][0] = (changed["user"][0] + 1) % 6
    other = made.user_vectors(*changed.values())
    assert torch.equal(u[1:], other[1:]) and not torch.allclose(u[0], other[0])
    v = made.item_vectors(given["item"], given["item_numbers"])
    assert torch.equal(made.towers.score(u, v), u @ v.mT)
    assert torch.allclose(v.norm(dim=-1), torch.ones(5))


def test_the_loss_depends_on_the_ratio_of_score_and_temperature_and_a_cold_one_is_a_hinge():
    score, hit = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[True, False, False]])
    at = lambda scale, t: sampled_softmax(score[:, 0] * scale / t, score * scale / t, hit)
    assert at(1, 0.5).item() == pytest.approx(at(2, 1.0).item())
    assert (0.001 * at(1, 0.001)).item() == pytest.approx(3 - 1, abs=1e-3)


def test_less_correction_recommends_less_of_what_is_popular():
    # 40 items, the first the most popular; twelve users who also have tastes.
    draw = torch.Generator().manual_seed(0)
    popular = 1 / torch.arange(1.0, 41)
    p = popular * (1.5 * torch.randn(12, 40, generator=draw)).exp()
    p, log_popularity, shown = p / p.sum(1, keepdim=True), [], []
    for correction in (0.0, 1.0):
        made = by_ids(40, contexts=12, correction=correction, width=16, embedding=16)
        optimizer = torch.optim.Adam(made.parameters(), 0.03)
        for _ in range(150):
            user = torch.randint(0, 12, (64,), generator=draw)
            item = torch.multinomial(p[user], 1, generator=draw)
            loss, _ = made(user[:, None], torch.zeros(64, 0), item[:, 0], item, torch.zeros(64, 0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            u = made.user_vectors(torch.arange(12)[:, None], torch.zeros(12, 0))
            best = (u @ made.item_vectors(torch.arange(40)[:, None], torch.zeros(40, 0)).mT).topk(5).indices
        log_popularity.append(float(popular.log()[best].mean()))
        shown.append(best.flatten().bincount(minlength=40))
    assert log_popularity[0] < log_popularity[1] - 0.2
    assert gini(shown[0]) < gini(shown[1])


def gini(count: torch.Tensor) -> float:
    """0 where every item is shown equally often, 1 where one item is all."""
    share = count.double().sort().values.cumsum(0) / count.sum()
    return float(1 - 2 * share.mean() + 1 / len(count))


def test_a_prompt_starts_as_nothing():
    vectors = nn.functional.normalize(torch.randn(4, 6), dim=-1)
    prompt = Prompt(6)
    torch.testing.assert_close(prompt(vectors), vectors)
    prompt.shift.data[0] = 1.0
    assert not torch.allclose(prompt(vectors), vectors)


def test_recent_keeps_the_last_items_of_each_row():
    row, item = torch.tensor([0, 0, 0, 2]), torch.tensor([5, 6, 7, 8])
    assert recent(row, item, 3, 2).tolist() == [[6, 7], [-1, -1], [-1, 8]]


def test_refusals():
    with pytest.raises(ValueError, match="temperature > 0"):
        model(temperature=0.0)
    with pytest.raises(ValueError, match="correction in"):
        model(correction=1.5)
    with pytest.raises(ValueError, match="fields of items"):
        Pair(Fields(), Fields(), 4, (), 4)
    with pytest.raises(ValueError, match="2 rows or more, got 0"):
        Pair(Fields(), Fields(words=3), 4, (), 4)
    with pytest.raises(ValueError, match="got 0 slots"):
        Frequency(0)
    with pytest.raises(ValueError, match="got -1"):
        Queue(-1, 4)
    with pytest.raises(ValueError, match="expected 4 columns of ids and 1 of numbers, got 3 and 1"):
        model().item_vectors(torch.zeros(2, 3), torch.zeros(2, 1))
    assert math.isfinite(model(queue=2).train()(**batch(rows=1))[0].item())  # one row alone has no other candidate
