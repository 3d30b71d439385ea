import time

import pytest
import torch

from models.recommend.rerank._rerank import unit
from models.recommend.rerank.cdm import CDM, gumbel_top_k, teacher_ranks
from models.recommend.rerank.mmr import MMR

PLACES, TEACHER = 8, MMR(0.6)


def requests(count, seed, size=40, groups=12):
    """Candidates in groups of copies almost alike, some groups more relevant: relevance alone shows copies."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(count, 16, groups, generator=draw)).Q.transpose(1, 2)
    group = torch.randint(groups, (count, size), generator=draw)
    noise = 0.05 * torch.randn(count, size, 16, generator=draw)
    vectors = unit(centres.gather(1, group[..., None].expand(-1, -1, 16)) + noise)
    worth = 0.5 * torch.rand(count, groups, generator=draw).gather(1, group)
    return worth + 0.5 * torch.rand(count, size, generator=draw), vectors


def overlap(lists, others):
    return (lists[:, :, None] == others[:, None, :]).any(2).double().mean().item()


def fit(shuffled=False, steps=700):
    torch.manual_seed(0)
    model = CDM(16, members=4, places=PLACES, gamma=10.0)
    relevance, vectors = requests(1500, 1)
    ranks = teacher_ranks(TEACHER, relevance, vectors)
    if shuffled:
        ranks = ranks.gather(1, torch.rand(ranks.shape).argsort(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, steps)
    for step in range(steps):
        part = torch.arange(step * 32, step * 32 + 32) % len(ranks)
        optimizer.zero_grad()
        model(relevance[part], vectors[part], ranks[part])[0].backward()
        optimizer.step()
        scheduler.step()
    return model.eval()


def test_it_learns_the_teacher_and_nothing_from_a_shuffled_one():
    relevance, vectors = requests(200, 2)
    wanted = TEACHER.order(relevance, vectors, PLACES)
    plain = relevance.topk(PLACES).indices
    learned = fit().order(relevance, vectors, PLACES)
    assert overlap(learned, wanted) >= 0.8
    assert overlap(learned, wanted) > overlap(plain, wanted) + 0.1
    assert (
        overlap(fit(shuffled=True, steps=100).order(relevance, vectors, PLACES), wanted) < overlap(plain, wanted) + 0.05
    )


def test_loss_by_hand():
    torch.manual_seed(0)
    model = CDM(2, places=1, beta=0.5, rank_temperature=1.0).eval()
    for parameter in model.judge[-1].parameters():
        torch.nn.init.zeros_(parameter)
    # z = 0: the first part is ln 2; KL(softmax(0, -1) || 1/2) = .73106 ln(1.46212) + .26894 ln(.53788), twice.
    loss, terms = model(torch.tensor([[1.0, 0.5]]), torch.randn(1, 2, 2), torch.tensor([[0, 1]]))
    assert terms["shown"].item() == pytest.approx(0.693147, abs=1e-5)
    assert terms["ranks"].item() == pytest.approx(2 * 0.110944, abs=2e-5)
    assert loss.item() == pytest.approx(0.693147 + 0.110944, abs=3e-5)


def test_serving():
    torch.manual_seed(1)
    relevance, vectors = requests(5, 3)
    model = CDM(16).eval()
    z = model.logits(relevance, vectors)
    shuffled = torch.randperm(40)
    assert torch.allclose(model.logits(relevance[:, shuffled], vectors[:, shuffled]), z[:, shuffled], atol=1e-5)
    assert torch.equal(model.logits(relevance, vectors), z)
    model.gamma = 0.0
    assert torch.equal(
        model.order(relevance, vectors, 10), relevance.sort(descending=True, stable=True).indices[:, :10]
    )
    vectors[:, 1], relevance[:, 1] = vectors[:, 0], relevance[:, 0]
    z = model.logits(relevance, vectors)
    assert torch.allclose(z[:, 0], z[:, 1], atol=1e-4)


def test_padding_and_a_lone_candidate():
    torch.manual_seed(1)
    model, (relevance, vectors) = CDM(16), requests(2, 4)
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, :7], mask[1, :1] = True, True
    ranks = teacher_ranks(MMR(), relevance, vectors, mask)
    loss, _ = model(relevance, vectors, ranks, mask)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.step.zero_()
    other = vectors.clone()
    other[~mask] = 5.0
    assert model(relevance, other, ranks, mask)[0].item() == pytest.approx(loss.item(), abs=1e-6)
    with pytest.raises(ValueError, match="1 of 2 requests have no candidate"):
        model(relevance, vectors, ranks, mask & torch.tensor([[True], [False]]))


def test_noise_is_a_function_of_the_step():
    torch.manual_seed(2)
    model, (relevance, vectors) = CDM(16, members=3).train(), requests(4, 5)
    ranks = teacher_ranks(MMR(), relevance, vectors)
    first, second = (model(relevance, vectors, ranks)[0].item() for _ in range(2))
    assert first != second
    model.step.zero_()
    assert model(relevance, vectors, ranks)[0].item() == first


def test_gumbel_top_k_draws_as_softmax_without_replacement():
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    share = logits.softmax(0)
    expected = {
        (i, j): float(share[i] * share[j] / (1 - share[i]) + share[j] * share[i] / (1 - share[j]))
        for i in range(4) for j in range(i + 1, 4)
    }  # fmt: skip
    draws = gumbel_top_k(logits.expand(20_000, 4), 2, torch.Generator().manual_seed(0))
    assert (draws.sum(1) == 2).all()
    chi = sum(
        ((draws[:, i] & draws[:, j]).sum().item() - 20_000 * p) ** 2 / (20_000 * p) for (i, j), p in expected.items()
    )
    assert chi < 15.1  # 99 % of chi-square with 5 degrees of freedom
    assert gumbel_top_k(logits, 2, None).tolist() == [True, False, False, True]


def test_cost_grows_with_the_candidates_and_not_with_their_square():
    model = CDM(16, pool=50).eval()
    sizes, spent = (500, 8000), []
    for size in sizes:
        relevance, vectors = torch.rand(1, size), torch.randn(1, size, 16)
        model.order(relevance, vectors, 10)
        times = []
        for _ in range(7):
            began = time.process_time()
            model.order(relevance, vectors, 10)
            times.append(time.process_time() - began)
        spent.append(min(times))
    assert spent[1] / spent[0] < 4 * sizes[1] / sizes[0]  # squared, it would be 16 times


def test_bad_settings():
    with pytest.raises(ValueError, match="at least 1"):
        CDM(16, members=0)
    with pytest.raises(ValueError, match="temperatures are above 0"):
        CDM(16, temperature=0)
