"""What every way of combining teachers promises, also the one added tomorrow."""

import dataclasses

import pytest
import torch

from models import build, names
from models.distill._objective import Objective
from models.distill._signals import LISTS, Shape, Signals
from tests.models.distill._draw import SMALL, signals

LARGE = Shape(layers=4, width=8, heads=2, vocabulary=11, classes=3)
TEACHERS = [SMALL, LARGE]
FAMILY = "distill.teachers"
COMBINERS = names(FAMILY)
STAGES = {"tmkd": "finetune", "rl_kd": "policy"}  # the last one, in which all that there is takes part
METHODS = sorted(
    set(names("distill"))
    - {"diito", "theseus", "wid"}  # change what flows through the models: tested below and on their own
    - {"distillm", "glmd", "minillm", "on_policy"}  # of language models: they read no more than logits
)
SETTINGS = {"mgskd": {"heads": 4}, "minilmv2": {"relation_heads": 4}}


def make(name: str, **settings):
    torch.manual_seed(0)
    stage = {"stage": STAGES[name]} if name in STAGES else {}
    return build(FAMILY, name, SMALL, TEACHERS, **stage | settings).double()


def batch(lengths=(5, 3), **more) -> tuple[Signals, list[Signals]]:
    return signals(1, lengths=lengths, **more), [signals(n, s, lengths, **more) for n, s in ((2, SMALL), (3, LARGE))]


def narrowed(seen: Signals, wants: dict[str, list[int]], needs) -> Signals:
    kept = {"mask": seen.mask}
    for name in needs:
        value = getattr(seen, name)
        kept[name] = [x if i in wants.get(name, ()) else None for i, x in enumerate(value)] if name in LISTS else value
    return Signals(**kept)


def test_all_are_here():
    assert names(FAMILY) == ["dgkd", "mt_bert", "rl_kd", "tmkd", "uncertainty"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", COMBINERS)
def test_any_single_teacher_method_goes_under_any_combiner(name, method):
    combiner = make(name, method={method: SETTINGS.get(method, {})})
    combiner.set_total(10)
    student, teachers = batch()
    for seen in (student, *teachers):
        for leaf in (seen.logits, seen.task, seen.embedding, *(x for n in LISTS for x in getattr(seen, n))):
            leaf.requires_grad_(seen is student)
    wants, needs = combiner.layers(), combiner.needs
    loss = combiner(
        narrowed(student, wants["student"], needs),
        [narrowed(t, w, needs) for t, w in zip(teachers, wants["teachers"], strict=True)],
    )
    assert torch.isfinite(loss) and loss.dim() == 0
    if loss.requires_grad:  # else no teacher was chosen in this step
        loss.backward()
    assert all(x.grad is None for t in teachers for x in (t.logits, t.task, *t.hidden))


@pytest.mark.parametrize("name", COMBINERS)
def test_padding_never_counts(name):
    clean, noisy = (make(name)(*batch(padding=p)) for p in (0.0, 9.0))
    torch.testing.assert_close(clean, noisy)


@pytest.mark.parametrize("name", COMBINERS)
def test_the_whole_state_is_in_the_state_dict(name):
    first, second = make(name), make(name)
    first.set_total(10)
    for _ in range(3):
        first(*batch())
        first.advance()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*batch()), second(*batch()))
    assert second.methods[1].step == 3


@pytest.mark.parametrize("name", COMBINERS)
def test_the_hard_loss_is_the_combiners_and_enters_once(name):
    combiner = make(name, method={"kd": {"hard": 5.0}})
    student, teachers = batch()
    objective = Objective({name: combiner})
    combiner.eval()
    loss, terms = objective(student, teachers)
    expected = combiner(student, teachers) + combiner.hard_weight() * student.hard.mean()
    torch.testing.assert_close(loss, expected, check_dtype=False)
    assert combiner.hard_weight() <= 1 and set(terms) == {name, "hard"}


def test_rows_alone_are_the_same_in_one_call_and_in_many():
    student, teachers = batch((5, 3, 4))
    for method in ("kd", "pd", "annealing_kd", "continuation_kd"):
        combiner = make("mt_bert", method=method, hidden=0.0)
        combiner.set_total(10)
        expected = [
            [
                one(dataclasses.replace(student, task=student.task[[i]]), dataclasses.replace(t, task=t.task[[i]]))
                for i in range(3)
            ]
            for one, t in zip(combiner.methods, teachers, strict=True)
        ]
        torch.testing.assert_close(combiner.each_row(student, teachers), torch.tensor(expected).double())


def test_interchange_and_second_passes_go_through():
    combiner = make("tmkd", method={"diito": {"layer": 2}})
    assert list(combiner.edits()) == [
        "student.output.1", "teachers.0.output.1", "teachers.1.output.2", "teachers.1.output.3",
    ]  # fmt: skip
    assert make("tmkd", method="lrc_bert").perturbed and not make("tmkd", method="kd").perturbed


def test_bad_inputs():
    with pytest.raises(ValueError, match="TMKD needs at least 2 teachers, got 1"):
        build(FAMILY, "tmkd", SMALL, [SMALL])
    with pytest.raises(ValueError, match="needs at least 1 teachers, got 0"):
        build(FAMILY, "dgkd", SMALL, [])
    other = dataclasses.replace(SMALL, classes=4)
    with pytest.raises(ValueError, match="classes of student and teachers differ: 3, 4"):
        build(FAMILY, "mt_bert", SMALL, [SMALL, other])
    words = dataclasses.replace(SMALL, vocabulary=12)
    with pytest.raises(ValueError, match="vocabulary of student and teachers differ: 11, 12"):
        build(FAMILY, "tmkd", SMALL, [SMALL, words])
    assert build(FAMILY, "dgkd", SMALL, [SMALL, words]) is not None  # words play no part there
    with pytest.raises(LookupError, match="has no 'kdd'; closest: kd"):
        make("tmkd", method="kdd")
    with pytest.raises(ValueError, match="one method serves all teachers, not 2: kd, pd"):
        make("tmkd", method={"kd": {}, "pd": {}})
    with pytest.raises(ValueError, match="theseus compares nothing with a teacher"):
        make("tmkd", method="theseus")
    student, teachers = batch()
    for name in COMBINERS:
        with pytest.raises(ValueError, match="was built for 2 teachers, got 1"):
            make(name)(student, teachers[:1])
