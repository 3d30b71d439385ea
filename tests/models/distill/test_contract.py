"""What every distillation method promises, also the one added tomorrow."""

import dataclasses

import pytest
import torch

from models import build, method, names
from models.distill._signals import LISTS, Method, Signals
from tests.models.distill._draw import SMALL, signals

# A method that cannot be built for two small equal models says here what it needs instead.
SETTINGS = {"mgskd": {"heads": 4}, "minilmv2": {"relation_heads": 4}}
ZERO_AT_THE_TEACHER = {
    "distilbert",
    "mgskd",
    "minilm",
    "minilmv2",
    "mobilebert",
    "pkd",
    "sid",
    "tinybert",
}  # grows with the methods whose paper has it so
ACTS_INSIDE = {"diito", "theseus", "wid"}  # nothing to compare here: tested by what they do to the forward pass


def make(name: str) -> Method:
    torch.manual_seed(0)
    return build("distill", name, SMALL, SMALL, **SETTINGS.get(name, {})).double()


def narrowed(seen: Signals, wants: dict[str, list[int]], needs: tuple[str, ...]) -> Signals:
    """Only what the method asked for; the rest is absent, as in a real run."""
    kept = {"mask": seen.mask}
    for name in needs:
        value = getattr(seen, name)
        kept[name] = [x if i in wants[name] else None for i, x in enumerate(value)] if name in LISTS else value
    return Signals(**kept)


def compare(it: Method, student: Signals, teacher: Signals) -> torch.Tensor:
    wants = it.layers()
    return it(narrowed(student, wants["student"], it.needs), narrowed(teacher, wants["teacher"], it.needs))


COMPARED = sorted(set(names("distill")) - ACTS_INSIDE)


@pytest.mark.parametrize("name", COMPARED)
def test_padding_never_counts_and_what_was_not_asked_for_is_not_read(name):
    it = make(name)
    clean, noisy = (compare(it, signals(1, padding=p), signals(2, padding=p)) for p in (0.0, 9.0))
    assert torch.isfinite(clean)
    torch.testing.assert_close(clean, noisy)


@pytest.mark.parametrize("name", COMPARED)
def test_gradient_reaches_the_student_only(name):
    student, teacher = signals(1), signals(2)
    leaves = {}
    for who, seen in (("student", student), ("teacher", teacher)):
        leaves[who] = [getattr(seen, n) for n in ("logits", "task", "embedding")] + [
            x for n in LISTS for x in getattr(seen, n)
        ]
        for leaf in leaves[who]:
            leaf.requires_grad_(who == "student")
    compare(make(name), student, teacher).backward()
    grads = [leaf.grad for leaf in leaves["student"] if leaf.grad is not None]
    assert any(grad.abs().sum() > 0 for grad in grads)
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert all(leaf.grad is None for leaf in leaves["teacher"])


@pytest.mark.parametrize("name", COMPARED)
def test_a_row_of_padding_alone_gives_no_nan(name):
    student, teacher = signals(1, lengths=(5, 0)), signals(2, lengths=(5, 0))
    student.hidden[-1].requires_grad_(), student.task.requires_grad_(), student.logits.requires_grad_()
    assert torch.isfinite(compare(make(name), student, teacher))


@pytest.mark.parametrize("name", COMPARED)
def test_autocast_gives_the_same_loss(name):
    student, teacher = (narrow(signals(seed)) for seed in (1, 2))
    plain = compare(make(name).float(), student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        half = compare(make(name).float(), student, teacher)
    torch.testing.assert_close(half.float(), plain, rtol=1e-2, atol=1e-3)


def narrow(seen: Signals) -> Signals:
    """In float32, the least double still the least number."""
    cast = lambda x: x if x is None else x.clamp(min=torch.finfo(torch.float32).min).float()
    told = {name: getattr(seen, name) for name in ("logits", "task", "hard", "embedding", *LISTS)}
    return dataclasses.replace(seen, **{n: [cast(x) for x in v] if n in LISTS else cast(v) for n, v in told.items()})


@pytest.mark.parametrize("name", sorted(ZERO_AT_THE_TEACHER & set(COMPARED)))
def test_the_teacher_itself_loses_nothing(name):
    seen = signals(1)
    assert abs(compare(make(name), seen, seen).item()) < 1e-6
    other = dataclasses.replace(
        seen, **{n: [x + 0.1 * x.cos() for x in getattr(seen, n)] for n in LISTS if n != "scores"}
    )
    assert compare(make(name), other, seen).item() > 1e-6


@pytest.mark.parametrize("name", names("distill"))
def test_the_whole_state_is_in_the_state_dict(name):
    first, second = make(name), make(name)
    first.set_total(10)
    for _ in range(3):
        first.advance()
    second.load_state_dict(first.state_dict())
    if name not in ACTS_INSIDE:
        results = [compare(it, signals(1), signals(2)) for it in (first, second)]
        assert torch.equal(*results)
    assert second.progress == 0.3


@pytest.mark.parametrize("name", names("distill"))
def test_only_known_signals_are_asked_for(name):
    known = {field.name for field in dataclasses.fields(Signals)} - {"mask"}
    assert set(method("distill", name).needs) <= known
