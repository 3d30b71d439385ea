"""Divergences between word distributions: by hand, against autograd, in chunks, over shards, and in memory."""

import math
import multiprocessing
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from models.distill._divergence import KINDS, Divergence, _Head, chosen_log_probs, word_divergence
from models.distill._maths import token_kl
from models.distill._words import TopK, Words, columns

TOKENS, WIDTH, VOCABULARY = 10, 6, 13
EVEN, SKEW = [0.0, 0.0], [math.log(3), 0.0]  # (1/2, 1/2) and (3/4, 1/4)


def plain(student, teacher, which: Divergence) -> torch.Tensor:
    """The definition, word by word, left to autograd: (N,)."""
    p, q = (teacher / which.temperature).softmax(-1), (student / which.temperature).softmax(-1)
    kl = lambda x, y: (x * (x.log() - y.log())).sum(-1)
    a = which.mix
    value = {
        "forward": lambda: kl(p, q),
        "reverse": lambda: kl(q, p),
        "jsd": lambda: a * kl(p, a * p + (1 - a) * q) + (1 - a) * kl(q, a * p + (1 - a) * q),
        "skew_forward": lambda: kl(p, a * p + (1 - a) * q),
        "skew_reverse": lambda: kl(q, (1 - a) * p + a * q),
        "variation": lambda: (p - q).abs().sum(-1) / 2,
    }[which.kind]()
    return which.temperature**2 * value


def draw(*size: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def head(seed: int, dtype=torch.float64, grad: bool = True, **shape) -> Words:
    parts = (draw(*s, seed=seed + i, dtype=dtype) for i, s in enumerate(((TOKENS, WIDTH), (VOCABULARY, WIDTH), (13,))))
    return Words(*(x.requires_grad_(grad) for x in parts), **shape)


def leaves(words: Words) -> list[torch.Tensor]:
    return [words.hidden, words.weight, words.bias]


@pytest.mark.parametrize(
    ("kind", "mix", "value", "first"),  # teacher even, student skew; d/d(first logit)
    [
        ("forward", 0.5, math.log(4 / 3) / 2, 1 / 4),
        ("reverse", 0.5, 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2), 3 / 16 * math.log(3)),
        (
            "jsd",  # m = (5/8, 3/8)
            0.5,
            0.25 * (math.log(4 / 5) + math.log(4 / 3)) + 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)),
            3 / 16 * 0.5 * math.log(9 / 5),
        ),
        ("skew_forward", 0.5, 0.5 * (math.log(4 / 5) + math.log(4 / 3)), 3 / 16 * 0.5 * (4 / 3 - 4 / 5)),
        (
            "skew_reverse",
            0.5,
            0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3),
            3 / 16 * (math.log(9 / 5) - 0.5 * (6 / 5 - 2 / 3)),
        ),
        ("variation", 0.5, 1 / 4, 3 / 16),
    ],
)
def test_by_hand(kind, mix, value, first):
    student = torch.tensor([SKEW], dtype=torch.float64, requires_grad=True)
    loss = word_divergence(student, torch.tensor([EVEN], dtype=torch.float64), Divergence(kind, mix))
    loss.backward()
    assert loss.item() == pytest.approx(value)
    torch.testing.assert_close(student.grad, torch.tensor([[first, -first]], dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("mix", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_autograd(kind, mix, temperature):
    which, teacher = Divergence(kind, mix, temperature), 2 * draw(TOKENS, VOCABULARY, seed=5)
    student = (2 * draw(TOKENS, VOCABULARY)).requires_grad_()
    ours, wanted = word_divergence(student, teacher, which), plain(student, teacher, which).mean()
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)
    pair = (torch.autograd.grad(loss, student)[0] for loss in (3 * ours, 3 * wanted))
    torch.testing.assert_close(*pair, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_at_the_teacher_and_shifts_are_free(kind):
    which, teacher, student = Divergence(kind, 0.3), draw(TOKENS, VOCABULARY), draw(TOKENS, VOCABULARY, seed=1)
    same = (teacher + draw(TOKENS, 1, seed=2)).requires_grad_()
    assert abs(word_divergence(same, teacher, which).item()) < 1e-12
    if kind != "variation":  # which has a kink there
        assert torch.autograd.grad(word_divergence(same, teacher, which), same)[0].abs().max() < 1e-12
    apart = word_divergence(student, teacher, which)
    assert apart > 1e-3
    moved = word_divergence(student + draw(TOKENS, 1, seed=3), teacher - draw(TOKENS, 1, seed=4), which)
    torch.testing.assert_close(moved, apart, rtol=0, atol=1e-12)


def test_the_jsd_is_symmetric_and_tends_to_the_two_divergences():
    x, y = draw(TOKENS, VOCABULARY), draw(TOKENS, VOCABULARY, seed=1)
    torch.testing.assert_close(
        word_divergence(x, y, Divergence("jsd", 0.2)), word_divergence(y, x, Divergence("jsd", 0.8))
    )
    for mix, kind in ((1e-4, "forward"), (1 - 1e-4, "reverse")):
        scaled = word_divergence(x, y, Divergence("jsd", mix)) / 1e-4
        torch.testing.assert_close(scaled, word_divergence(x, y, Divergence(kind)), rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [{}, {"scale": 0.7}, {"cap": 2.0}, {"scale": 3.0, "cap": 1.5}])
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_head_all_gradients_equal_those_of_autograd(kind, shape):
    which, student, teacher = Divergence(kind, 0.3, 2.0), head(0, **shape), head(9, grad=False, **shape)
    weights = draw(TOKENS, seed=20).abs()
    z = F.linear(student.hidden, student.weight, student.bias) * shape.get("scale", 1)
    z = shape["cap"] * (z / shape["cap"]).tanh() if "cap" in shape else z
    wanted = (weights * plain(z, teacher.tensor(), which)).sum()
    ours = word_divergence(student, teacher, which, weights, rows=3)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)
    pairs = zip(*(torch.autograd.grad(2 * loss, leaves(student)) for loss in (ours, wanted)), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rows", [1, 3, 5, 10, 64])
@pytest.mark.parametrize("masked", [(), (0, 4), range(8)])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind, masked, rows):
    which, student, teacher = Divergence(kind, 0.3), head(0, torch.float32), head(9, torch.float32, grad=False)
    weights = torch.ones(TOKENS)
    weights[list(masked)] = 0
    wide = [x.detach().double().requires_grad_() for x in leaves(student)]
    wanted = (weights * plain(F.linear(*wide), teacher.tensor().double(), which)).sum()
    ours = word_divergence(student, teacher, which, weights, rows=rows)
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-6, atol=1e-6)
    pairs = zip(torch.autograd.grad(ours, leaves(student)), torch.autograd.grad(wanted, wide), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_at_all_is_zero(kind):
    student, teacher = head(0), head(9, grad=False)
    for loss in (
        word_divergence(student, teacher, Divergence(kind), torch.zeros(TOKENS)),
        word_divergence(student[:0], teacher[:0], Divergence(kind)),
        token_kl(student, teacher, torch.zeros(TOKENS, dtype=torch.bool)),
    ):
        assert loss.item() == 0
        assert all(not grad.any() for grad in torch.autograd.grad(loss, leaves(student)))


def test_without_gradients_none_are_computed(monkeypatch):
    student, teacher = head(0), head(9, grad=False)
    wanted = word_divergence(student, teacher)
    monkeypatch.setattr(_Head, "grow", lambda *_: pytest.fail("a gradient nobody wants"))
    with torch.no_grad():
        assert torch.equal(word_divergence(student, teacher), wanted)


def test_only_what_learns_gets_a_gradient():
    student = head(0)
    frozen = Words(student.hidden, student.weight.detach(), None)
    teacher = head(9)
    word_divergence(frozen, teacher).backward()
    assert student.hidden.grad is not None and student.weight.grad is None
    assert all(x.grad is None for x in leaves(teacher))
    assert not word_divergence(student.detach(), teacher).requires_grad


def test_token_kl_reads_a_head_as_it_reads_logits():
    student, teacher = head(0), head(9, grad=False)
    mask = torch.arange(TOKENS).view(2, 5) % 4 != 3
    square = lambda words: Words(words.hidden.view(2, 5, WIDTH), words.weight, words.bias)
    ours = token_kl(square(student), square(teacher), mask, 2.0)
    wanted = token_kl(square(student).tensor(), square(teacher).tensor(), mask, 2.0)
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(torch.autograd.grad(ours, student.weight), torch.autograd.grad(wanted, student.weight))


def test_words_that_cannot_be_stay_finite():
    # The teacher never says the first word: p = (0, 1) against (1/2, 1/2).
    student = torch.zeros(1, 2, requires_grad=True)
    loss = word_divergence(student, torch.tensor([[-math.inf, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert student.grad.tolist() == [[0.5, -0.5]]
    both = torch.tensor([[-math.inf, 0.0, 1.0]])  # neither says it
    for kind in KINDS:
        assert word_divergence(both, both + 1, Divergence(kind)).item() == pytest.approx(0, abs=1e-6)


def test_halves_are_compared_in_float32():
    student, teacher = head(0, torch.bfloat16), head(9, torch.bfloat16, grad=False)
    for kind in KINDS:
        loss = word_divergence(student, teacher, Divergence(kind))
        wanted = plain(student.tensor().float(), teacher.tensor().float(), Divergence(kind)).mean()
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad(loss, leaves(student))
        assert [g.dtype for g in grads] == [torch.bfloat16] * 3
        for got, expected in zip(grads, torch.autograd.grad(wanted, leaves(student)), strict=True):
            torch.testing.assert_close(got, expected, rtol=0.05, atol=0.01)


def test_the_gradient_of_a_head_in_halves_is_summed_in_float32():
    # 2,000 equal tokens, one at a time: a sum in bfloat16 stops growing at 256 times the first term.
    hidden = torch.ones(2000, 1, dtype=torch.bfloat16)
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = word_divergence(Words(hidden, weight), torch.zeros(2000, 2), weights=torch.ones(2000), rows=1)
    (grad,) = torch.autograd.grad(loss, weight)
    assert grad[0].item() == pytest.approx(2000 * (1 / (1 + math.exp(-1)) - 0.5), rel=0.01)


def test_under_autocast_the_products_are_halves_and_the_gradients_are_not():
    student, teacher = head(0, torch.float32), head(9, torch.float32, grad=False)
    exact = word_divergence(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        loss = word_divergence(student, teacher)
    assert loss.dtype == torch.float32 and loss != exact
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(loss, leaves(student)))


# The teacher's most likely words


@pytest.mark.parametrize("kind", KINDS)
def test_all_words_kept_are_the_full_divergence(kind):
    which, student, teacher = Divergence(kind, 0.3, 2.0), draw(TOKENS, VOCABULARY).requires_grad_(), draw(TOKENS, 13)
    ours = word_divergence(student, TopK.of(teacher.roll(1, -1), VOCABULARY, 2.0), which)
    wanted = word_divergence(student, teacher.roll(1, -1), which)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)
    pair = (torch.autograd.grad(loss, student)[0] for loss in (ours, wanted))
    torch.testing.assert_close(*pair, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_is_one_more_word(kind):
    which, student, teacher = Divergence(kind, 0.3), head(0), 3 * draw(TOKENS, VOCABULARY, seed=5)
    values = []
    for k in (1, 4, 9, 13):
        ids = teacher.topk(k).indices
        gathered = lambda z, ids=ids: torch.cat(
            [
                (p := z.softmax(-1)).gather(-1, ids),
                1 - p.gather(-1, ids).sum(-1, keepdim=True) + 1e-15 * (ids.shape[-1] == 13),
            ],
            -1,
        ).clamp(min=1e-15)
        wanted = plain(gathered(student.tensor()).log(), gathered(teacher).log(), which).mean()
        ours = word_divergence(student, TopK.of(teacher, k), which, rows=4)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-9)
        if k < 13:
            pairs = zip(*(torch.autograd.grad(loss, leaves(student)) for loss in (ours, wanted)), strict=True)
            for got, expected in pairs:
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
        values.append(ours.item())
    assert values == sorted(values)  # at k = V it is the full one, so all are lower bounds
    assert values[0] < values[-1]


def test_the_most_likely_words_of_a_head():
    words = head(0)
    square = Words(words.hidden.view(2, 5, WIDTH), words.weight, words.bias)
    ours, wanted = TopK.of(square, 3, 2.0, rows=4), TopK.of(square.tensor(), 3, 2.0)
    assert torch.equal(ours.ids, wanted.ids) and ours.shape == wanted.shape == (2, 5, VOCABULARY)
    torch.testing.assert_close(ours.log_probs, wanted.log_probs)
    assert not ours.log_probs.requires_grad


def test_without_the_rest_the_kept_words_sum_to_one():
    student, teacher = draw(TOKENS, VOCABULARY).requires_grad_(), draw(TOKENS, VOCABULARY, seed=1)
    best = teacher.topk(4)
    share = best.values.softmax(-1)
    wanted = (share * (share.log() - student.log_softmax(-1).gather(-1, best.indices))).sum(-1).mean()
    ours = word_divergence(student, TopK.of(teacher, 4, rest=False))
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(torch.autograd.grad(ours, student), torch.autograd.grad(wanted, student))
    with pytest.raises(ValueError, match="infinite"):
        word_divergence(student, TopK.of(teacher, 4, rest=False), Divergence("reverse"))


def test_a_student_sure_of_the_kept_words_has_a_finite_gradient():
    student = torch.tensor([[60.0, 0.0, -60.0]], requires_grad=True)  # in float32 nothing is left for the rest
    loss = word_divergence(student, TopK.of(torch.zeros(1, 3), 1))
    loss.backward()
    assert loss.item() == pytest.approx(2 / 3 * 60 + 1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3), rel=1e-5)
    torch.testing.assert_close(student.grad, torch.tensor([[2 / 3, -2 / 3, 0.0]]))


# Words chosen


@pytest.mark.parametrize("shape", [{}, {"scale": 3.0, "cap": 1.5}])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_log_probabilities_of_chosen_words(rows, shape):
    words, ids, upstream = head(0, **shape), torch.arange(TOKENS) % VOCABULARY, draw(TOKENS, seed=7)
    ours = chosen_log_probs(words, ids, 2.0, rows)
    wanted = (words.tensor() / 2).log_softmax(-1)[torch.arange(TOKENS), ids]
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(chosen_log_probs(words.tensor(), ids, 2.0), wanted)
    pairs = zip(*(torch.autograd.grad(x, leaves(words), upstream) for x in (ours, wanted)), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


# Shards of the vocabulary


def _shard(rank: int, port: int, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mine = slice(0, 5) if rank == 0 else slice(5, VOCABULARY)
    for kind in KINDS:
        student, teacher = head(0, cap=2.0), head(9, grad=False, cap=2.0)
        local = columns(student, mine)
        loss = word_divergence(
            local, columns(teacher, mine), Divergence(kind, 0.3, 2.0), group=dist.group.WORLD, rows=4
        )
        grads = torch.autograd.grad(loss, [student.hidden, student.weight, student.bias])
        results.put((rank, kind, loss.item(), [g.tolist() for g in grads]))
    dist.destroy_process_group()


def test_two_shards_of_the_vocabulary_equal_one():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=_shard, args=(rank, port, results)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    got = [results.get(timeout=60) for _ in range(2 * len(KINDS))]
    for rank in ranks:
        rank.join(30)
        assert rank.exitcode == 0
    for kind in KINDS:
        student, teacher = head(0, cap=2.0), head(9, grad=False, cap=2.0)
        loss = word_divergence(student, teacher, Divergence(kind, 0.3, 2.0))
        wanted = torch.autograd.grad(loss, leaves(student))
        parts = sorted(r for r in got if r[1] == kind)
        for _, _, value, grads in parts:
            assert value == pytest.approx(loss.item(), rel=1e-12)
            torch.testing.assert_close(torch.tensor(grads[0]).double(), wanted[0], rtol=0, atol=1e-7)
        for place in (1, 2):  # each rank knows its own rows of the head
            both = sum(torch.tensor(grads[place]).double() for _, _, _, grads in parts)
            torch.testing.assert_close(both, wanted[place], rtol=0, atol=1e-7)


# Memory and time


def test_memory_does_not_grow_with_the_tokens():
    cases = [f"{kind}/chunked/{tokens}" for kind in ("forward", "jsd") for tokens in (1024, 4096)]
    cases += ["forward/plain/1024", "forward/plain/4096"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.distill._peak", *cases],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    held = dict(zip(cases, map(int, done.stdout.split()), strict=True))
    for kind in ("forward", "jsd"):
        assert held[f"{kind}/chunked/4096"] < 1.1 * held[f"{kind}/chunked/1024"]
    assert held["forward/plain/4096"] > 3 * held["forward/plain/1024"]
    assert held["forward/chunked/4096"] < held["forward/plain/4096"] / 10


# Bad input


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 6\).*true words"):
        word_divergence(torch.zeros(2, 5), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="temperature 1.0, but the divergence is at 2.0"):
        word_divergence(torch.zeros(2, 5), TopK.of(torch.zeros(2, 5), 2), Divergence(temperature=2.0))
    with pytest.raises(ValueError, match="6 wide, but the head reads 5"):
        Words(torch.zeros(2, 6), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="cap"):
        Words(torch.zeros(2, 6), torch.zeros(3, 6), cap=0.0)
    with pytest.raises(ValueError, match="1..5"):
        TopK.of(torch.zeros(2, 5), 6)
    with pytest.raises(TypeError, match="left out"):
        columns(TopK.of(torch.zeros(2, 5), 2), torch.tensor([0]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "kl"}, "no divergence 'kl'; there are: forward"),
        ({"kind": "jsd", "mix": 0.0}, "use forward or reverse"),
        ({"kind": "skew_forward", "mix": 1.0}, "between 0 and 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": math.nan}, "above 0"),
        ({"temperature": math.inf}, "and finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Divergence(**settings)
