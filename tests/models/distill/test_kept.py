"""What a teacher said is kept without padding, and comes back to wherever the real tokens are."""

import math
from dataclasses import fields

import pytest
import torch

from models import build, names
from models.components._model import assemble
from models.distill._distillation import Distillation, see
from models.distill._kept import BORROWED, FIELD, Kept, inputs_of, wanted_by
from models.distill._objective import Objective
from models.distill._signals import LISTS, Signals
from models.distill._student import new_student, shape_of, student_recipe
from models.distill._words import TopK
from tests.models.distill._draw import SMALL, signals

EVERY = {"task": [], "logits": [], "embedding": [], **{name: [0, 1] for name in LISTS}}
EXACT = Kept(EVERY, 2, 11, words=11, store="float32")
OWN_LOOP = {"on_policy", "minillm", "distillm", "wid"}
LIVE = ("diito", "theseus")


def single(found: Signals) -> Signals:
    """In float32, as models speak."""
    cast = lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
    told = {f.name: getattr(found, f.name) for f in fields(found)}
    return Signals(**{k: [cast(x) for x in v] if k in LISTS else cast(v) for k, v in told.items()})


def back(kept: Kept, packed, mask, rows=None) -> Signals:
    starts = Kept.starts_of(packed["lengths"])
    rows = range(len(packed["lengths"])) if rows is None else rows
    return kept.signals(kept.fields([Kept.row(packed, starts, i) for i in rows], mask) | {"mask": mask})


def places(value: torch.Tensor, name: str, mask: torch.Tensor) -> torch.Tensor:
    """Values at real tokens (pairs of them), in order."""
    if name == "scores":
        return value.permute(0, 2, 3, 1)[mask[:, :, None] & mask[:, None, :]]
    return (value.transpose(1, 2) if name in ("query", "key", "value") else value)[mask]


@pytest.mark.parametrize(("shift", "width"), [(0, 5), (0, 9), (2, 8)])
def test_every_signal_comes_back_wherever_the_padding_is(shift, width):
    told = single(signals(3))
    mask = torch.zeros(2, width, dtype=torch.bool)
    mask[:, shift : shift + 5] = told.mask
    again = back(EXACT, EXACT.pack(told), mask)
    assert torch.equal(again.task, told.task)
    for name in ("embedding", *LISTS):
        pairs = [(told.embedding, again.embedding)] if name == "embedding" else None
        for one, two in pairs or zip(getattr(told, name), getattr(again, name), strict=True):
            assert two.shape[-1] == (width if name == "scores" else one.shape[-1])
            assert torch.equal(places(two, name, mask), places(one, name, told.mask)), name
    assert isinstance(again.logits, TopK)
    whole = torch.zeros(mask.sum(), 11).scatter(-1, again.logits.ids[mask], again.logits.log_probs[mask])
    torch.testing.assert_close(whole, told.logits[told.mask].log_softmax(-1))


def test_a_row_without_tokens_holds_nothing():
    told = single(signals(3, lengths=(4, 0)))
    packed = EXACT.pack(told)
    again = back(EXACT, packed, told.mask)
    assert packed["lengths"].tolist() == [4, 0] and packed["scores_0"].shape == (16, 2)
    assert torch.equal(again.hidden[0][0], told.hidden[0][0]) and again.scores[1].shape == (2, 2, 4, 4)


def test_rows_in_another_order_and_batch():
    told = single(signals(4, lengths=(5, 3, 4)))
    packed = EXACT.pack(told)
    again = back(EXACT, packed, torch.arange(4) < torch.tensor([[4], [3]]), [2, 1])
    assert torch.equal(again.hidden[1][0], told.hidden[1][2, :4])
    assert torch.equal(again.task, told.task[[2, 1]])


def test_words_by_hand():
    """Of (1/2, 1/4, 1/8, 1/8) two are kept: ln 1/2, ln 1/4, and ln 1/4 for the rest."""
    logits = torch.tensor([[[8.0, 2.0, 4.0, 2.0]]]).log()
    kept = Kept({"logits": []}, 1, 4, words=2, store="float32")
    packed = kept.pack(Signals(torch.ones(1, 1, dtype=torch.bool), logits=logits))
    assert packed["word_ids"].tolist() == [[0, 2]] and packed["word_ids"].dtype == torch.uint16
    assert packed["word_log_probs"].exp()[0].tolist() == pytest.approx([0.5, 0.25])
    assert packed["word_rest"].exp().tolist() == pytest.approx([0.25])
    wide = Kept({"logits": []}, 1, 70_000, words=2)
    assert wide.pack(Signals(torch.ones(1, 1, dtype=torch.bool), logits=torch.zeros(1, 1, 70_000)))[
        "word_ids"
    ].dtype == (torch.int32)


@pytest.mark.parametrize("store", ["float16", "bfloat16"])
def test_halves_are_as_near_as_they_say(store):
    told, share = single(signals(5)), {"float16": 2**-11, "bfloat16": 2**-8}[store]
    kept = Kept(EVERY, 2, 11, words=4, store=store)
    again = back(kept, kept.pack(told), told.mask)
    torch.testing.assert_close(again.hidden[0][told.mask], told.hidden[0][told.mask], rtol=share, atol=1e-7)
    assert not torch.equal(again.hidden[0][told.mask], told.hidden[0][told.mask])
    likely = again.logits[told.mask].log_probs
    true = told.logits[told.mask].log_softmax(-1).topk(4).values
    assert ((likely.exp() - true.exp()).abs() <= 2 * share / math.e * 1.1).all()


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_kept_words_and_the_rest_sum_to_one(store):
    """A sure teacher's rest is tiny: halves alone would lose it, and with it what pulls the student off other words."""
    logits = torch.tensor([[[14.0, 13.0, 3.0, 1.0, 0.0, 0.0]]])
    kept = Kept({"logits": []}, 1, 6, words=2, store=store)
    mask = torch.ones(1, 1, dtype=torch.bool)
    again = back(kept, kept.pack(Signals(mask, logits=logits)), mask).logits
    rest = -torch.expm1(again.log_probs.logsumexp(-1))
    true = 1 - logits.double().softmax(-1)[..., :2].sum(-1)
    assert true.item() == pytest.approx(1.5e-5, rel=0.2)
    torch.testing.assert_close(rest.double(), true, rtol=0.02, atol=0)


@pytest.mark.parametrize("store", ["float32", "float16", "bfloat16"])
def test_impossible_scores_stay_impossible(store):
    mask = torch.ones(1, 2, dtype=torch.bool)
    scores = torch.tensor([[[[0.5, torch.finfo(torch.float32).min], [0.25, 1.0]]]])
    kept = Kept({"scores": [0]}, 1, store=store)
    again = back(kept, kept.pack(Signals(mask, scores=[scores])), mask).scores[0]
    assert torch.equal(again, scores)


def test_sizes_are_those_of_the_files():
    told = single(signals(6))
    for store in ("float32", "float16"):
        kept = Kept(EVERY, 2, 11, words=4, store=store)
        packed = kept.pack(told)
        true = sum(value.nbytes for value in packed.values())
        assert kept.size([5, 3], SMALL.width, SMALL.heads, SMALL.width // SMALL.heads, SMALL.classes) == true
        assert Kept.size_like(packed, [5, 3]) == true
    assert Kept.size_like({"lengths": torch.tensor([2]), "hidden_0": torch.zeros(2, 3)}, [4, 4]) == 8 * 12 + 2 * 8


def test_what_cannot_be_kept_is_refused():
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"hidden_0 has numbers up to 100000, which float16 cannot hold"):
        Kept({"hidden": [0]}, 1).pack(Signals(mask, hidden=[torch.full((1, 1, 2), 1e5)]))
    with pytest.raises(ValueError, match="task has numbers up to nan"):
        Kept({"task": []}, 1).pack(Signals(mask, task=torch.full((1, 2), math.nan)))
    with pytest.raises(LookupError, match="edited cannot be kept"):
        Kept({"edited": []}, 1)
    with pytest.raises(ValueError, match=r"layers \[2\] are to be kept, but the teacher has 2"):
        Kept({"hidden": [0, 2]}, 2)
    with pytest.raises(ValueError, match="one of float32, float16, bfloat16; got 'int4'"):
        Kept({"task": []}, 2, store="int4")
    with pytest.raises(ValueError, match=r"must be in 1..11, the vocabulary; got 12"):
        Kept({"logits": []}, 2, 11, words=12)
    kept = Kept({"hidden": [0], "task": []}, 2)
    kept.refuse_missing({"hidden": [0], "hard": [], "spans": []})
    with pytest.raises(LookupError, match=r"without hidden of layers \[1\], embedding; there are hidden of layers"):
        kept.refuse_missing({"hidden": [0, 1], "embedding": []})
    with pytest.raises(ValueError, match="row 1 of the batch has 4 tokens, but 3 were kept"):
        back(EXACT, EXACT.pack(single(signals(3))), torch.arange(5) < torch.tensor([[5], [4]]))


def test_what_a_teacher_reads_is_told_apart_from_padding_and_labels():
    mask = torch.tensor([[True, True, False]])
    row = {"ids": torch.tensor([[4, 5, 0]]), "labels_mlm": torch.zeros(1, 3), "step": torch.tensor(1), "mask": mask}
    assert [(name, value.tolist()) for name, value in inputs_of(row | {FIELD + "task": mask}, 0)] == [("ids", [4, 5])]
    with pytest.raises(LookupError, match="target_mask: only teachers of one stream"):
        list(inputs_of(row | {"target_mask": mask}, 0))


# ---------------------------------------------------------------- in a distillation


def made(targets):
    embedding = {"word": {}, "position": {"length": 16}}
    encoder = {"transformer": {"layers": 3, "heads": 2, "inner": 16}}
    sizes = {"width": 8, "vocabulary": 30, "dropout": 0.0, "std": 0.5}
    recipe = {**sizes, "embedding": embedding, "encoder": encoder, "target": targets}
    torch.manual_seed(5)
    return recipe, assemble(recipe).eval()


def batch():
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(6) < torch.tensor([6, 3, 4, 2])[:, None]
    ids = torch.randint(30, (4, 6), generator=generator) * mask
    labels = torch.where(mask & (ids % 2 == 0), ids, -100)
    return {"ids": ids, "mask": mask, "labels_cls": torch.tensor([0, 1, 2, 3]), "labels_mlm": labels}


def both(name, store, **settings):
    """The live distillation, the kept one of equal weights, and a batch of each."""
    targets = {"mlm": {}} if name in ("distilbert", "glmd") else {"cls": {"labels": 4}}
    recipe, teacher = made(targets)
    small = student_recipe(recipe, 2)
    method = build("distill", name, shape_of(small), shape_of(recipe), **settings)
    objective = Objective({name: method})
    objective.set_total(20, 4)
    torch.manual_seed(9)
    student = new_student(small, "random", {})
    live = Distillation(student, teacher, objective)
    kept = Kept.of_run(objective, 20, teacher, store=store)
    away, rows = Distillation(student, None, objective, kept), batch()
    packed = kept.pack(see(teacher, kept.wanted, rows, {}))
    starts = Kept.starts_of(packed["lengths"])
    told = kept.fields([Kept.row(packed, starts, i) for i in range(4)], rows["mask"])
    return live.eval(), away.eval(), rows, rows | told


METHODS = sorted(set(names("distill")) - OWN_LOOP - set(LIVE))
SETTINGS = {"minilmv2": {"relation_heads": 4}, "mgskd": {"span": 0, "heads": 4}}


@pytest.mark.parametrize(("store", "near"), [("float32", 2e-6), ("float16", 1e-3)])
@pytest.mark.parametrize("name", METHODS)
def test_a_kept_teacher_is_the_live_one(name, store, near):
    live, away, rows, told = both(name, store, **SETTINGS.get(name, {}))
    for step in (0, 11):
        at = torch.tensor(step)
        (one, terms), (two, also) = live(step=at, **rows), away(step=at, **told)
        torch.testing.assert_close(two, one, rtol=near, atol=near)
        assert set(terms) == set(also)
        learned = [p for p in live.student.parameters() if p.requires_grad]
        slopes = [torch.autograd.grad(loss, learned, allow_unused=True) for loss in (one, two)]
        for slope, wanted in zip(slopes[1], slopes[0], strict=True):
            if wanted is not None:
                torch.testing.assert_close(slope, wanted, rtol=0, atol=10 * near * max(1.0, wanted.abs().max().item()))
        assert one.item() != 0


@pytest.mark.parametrize("name", LIVE)
def test_methods_inside_the_teacher_need_it(name):
    targets = {"mlm": {}} if name == "diito" else {"cls": {"labels": 4}}
    recipe, teacher = made(targets)
    small = student_recipe(recipe, 2)
    objective = Objective({name: build("distill", name, shape_of(small), shape_of(recipe))})
    with pytest.raises(LookupError, match="acts inside the teacher, or runs its layers .* use a live teacher"):
        wanted_by(objective, 30)
    method = objective.methods[name]
    while not any(place.startswith(BORROWED) for place in method.edits()):
        method.advance()
    kept = Kept({"task": [], "logits": [], "hidden": [2]}, 3, 30, words=4)
    with pytest.raises(LookupError, match="without edited" if name == "diito" else "runs its layers .*student.layer"):
        Distillation(new_student(small, "random", {}), None, objective, kept)


def test_words_are_kept_at_one_temperature():
    recipe, teacher = made({"mlm": {}})
    shape = shape_of(recipe)
    at = lambda *t: Objective({f"at{n}": build("distill", "distilbert", shape, shape, temperature=n) for n in t})
    assert Kept.of_run(at(3), 2, teacher).temperature == 3
    with pytest.raises(LookupError, match="compared by at3 at 3, at4 at 4; give these methods one temperature"):
        Kept.of_run(at(3, 4), 2, teacher)


def test_a_student_of_fewer_words_needs_a_live_teacher():
    recipe, _ = made({"mlm": {}})
    small = student_recipe(recipe, 2)
    few = student_recipe(recipe | {"vocabulary": 20}, 2)
    method = build("distill", "glmd", shape_of(few), shape_of(recipe), stage="corpus", keep=list(range(20)))
    with pytest.raises(LookupError, match="glmd leaves words out, .* use a live teacher"):
        Distillation(new_student(small, "random", {}), None, Objective({"glmd": method}),
                     Kept({"logits": []}, 3, 30, words=4))  # fmt: skip


def test_micro_batches_are_one_batch():
    _, away, _, told = both("kd", "float16")
    counts = away.counts(**told)
    whole, _ = away(counts=counts, **told)
    parts = [{name: value[part] for name, value in told.items()} for part in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(away(counts=counts, **part)[0] for part in parts), whole)


def test_a_run_asks_for_every_layer_that_a_step_may_draw():
    recipe, _ = made({"cls": {"labels": 4}})
    small = student_recipe(recipe, 2)
    objective = Objective({"rail_kd": build("distill", "rail_kd", shape_of(small), shape_of(recipe))})
    objective.set_total(20, 10)
    objective.methods["rail_kd"].step.fill_(4)
    assert len(objective.needs()["teacher"]["hidden"]) == 1
    assert wanted_by(objective, 20) == {"hidden": [0, 1], "task": []}
    assert objective.methods["rail_kd"].step == 4


def test_a_distillation_without_what_it_needs_is_refused():
    live, away, rows, told = both("kd", "float16")
    with pytest.raises(LookupError, match="the batch carries nothing that a teacher said"):
        away(**rows)
    with pytest.raises(ValueError, match="a live teacher and one that was kept"):
        Distillation(live.student, live.teacher, live.objective, away.kept)
    with pytest.raises(LookupError, match="kept without task; there are hidden of layers"):
        Distillation(live.student, None, live.objective, Kept({"hidden": [0]}, 3))
    _, words, _, _ = both("distilbert", "float16")
    with pytest.raises(ValueError, match="the student knows 30 words and the teacher 29"):
        Distillation(words.student, None, words.objective, Kept({"logits": [], "hidden": [2]}, 3, 29, words=5))
