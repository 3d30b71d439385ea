"""WID: the compactors, their masks and schedule, what is drawn to zero, and the merge into a plain BERT."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from models import build
from models.components._model import Model, assemble
from models.components.pretrained import load_model, save
from models.distill._compactor import CompactNorm, Compactor, Group, cheapest
from models.distill._objective import Objective
from models.distill._signals import Shape, Signals
from models.distill.wid import WID
from models.fit import fit

WIDE = Shape(layers=2, width=48, heads=4, vocabulary=97)
DIM = Shape(layers=2, width=24, heads=4, vocabulary=97)
HEAD = Shape(layers=2, width=24, heads=2, vocabulary=97)
STUDENTS = {"dim": DIM, "head": HEAD}
RECIPE = {
    "width": 48, "vocabulary": 97, "dropout": 0.0, "eps": 1e-12, "act": "gelu",
    "embedding": {"word": {}, "position": {"length": 16}, "segment": {"kinds": 2}},
    "encoder": {"transformer": {"layers": 2, "heads": 4, "inner": 192}}, "target": {"mlm": {}}, "tie": True,
}  # fmt: skip


def teacher(seed: int = 0, std: float = 0.2) -> Model:
    """A tied BERT in float64, of which nothing is at its usual start: attention matters, norms and biases too."""
    torch.manual_seed(seed)
    model = assemble(RECIPE | {"std": std}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(seed: int = 0, rows: int = 4, places: int = 10) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(97, (rows, places), generator=generator)
    lengths = torch.randint(3, places + 1, (rows, 1), generator=generator)
    mask = torch.arange(places) < lengths
    labels = ids.masked_fill((torch.rand(ids.shape, generator=generator) > 0.4) | ~mask, -100)
    segments = torch.randint(2, ids.shape, generator=generator)
    return {"ids": ids, "mask": mask, "segments": segments, "labels_mlm": labels}


def logits(model: Model, **fields: Tensor) -> Tensor:
    fields = fields or batch()
    with torch.no_grad():
        return model.predict("mlm", **{k: v for k, v in fields.items() if k != "labels_mlm"})[fields["mask"]]


def make(strategy: str = "dim", student: Shape | None = None, **settings) -> WID:
    return build("distill", "wid", student or STUDENTS[strategy], WIDE, strategy=strategy, **settings).double()


def scatter(wid: WID, size: float = 0.1) -> None:
    """Compactors and masks at random; the masks have the student's widths."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wid.parameters():
            parameter.add_(size * torch.randn_like(parameter))
        wid.update(1000)


def fade(wid: WID) -> None:
    with torch.no_grad():
        for entries, kept in wid.compactors.masks():
            entries.mul_(kept)


def train(wid: WID, model: Model, steps: int, first: int = 0, optimizer=None, **rates) -> torch.optim.Optimizer:
    if optimizer is None:
        optimizer = torch.optim.AdamW(wid.parameter_groups(model, **rates))
    handle = wid.hook(optimizer, model)
    for _ in fit(model, [batch(first + number) for number in range(steps)], optimizer):
        wid.advance()
    handle.remove()
    return optimizer


# By hand


@pytest.mark.parametrize("tokens", [1, 10_000])
def test_a_compactor_by_hand(tokens):
    # L doubles the first input and adds it to the second, W sums, b = 1, R triples: 3 (2 x + (x + y) + 1)
    compactor = Compactor(Group(2, False), Group(1, False))
    with torch.no_grad():
        compactor.left.copy_(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
        compactor.right.fill_(3.0)
    y = compactor(torch.tensor([[5.0, 7.0]]).repeat(tokens, 1), torch.ones(1, 2), torch.ones(1))
    assert y[-1].item() == 3 * (10 + 5 + 7 + 1)


def test_a_norm_by_hand():
    # of (1, 3, 100) the first two last: mean 2, deviation 1; the lost one flows, but does not count
    group = Group(3, cut=False)
    norm = CompactNorm(nn.LayerNorm(3, eps=0.0), group)
    x = torch.tensor([[1.0, 3.0, 100.0]])
    group.kept.copy_(torch.tensor([True, True, False]))
    torch.testing.assert_close(norm(x), torch.tensor([[-1.0, 1.0, 98.0]]))
    group.cut.fill_(True)
    torch.testing.assert_close(norm(x[:, :2]), torch.tensor([[-1.0, 1.0]]))


def test_the_pull_by_hand():
    # lost: g = theta = 1, m = .9 * .5 + .1 * 19 * 1; kept: g as it is, m = .9 * .5
    wid, model = make(every=1), teacher()
    wid.attach(model)
    optimizer = torch.optim.AdamW(wid.parameter_groups(model))
    wid.advance()
    right, left = wid.compactors.embedding.right, wid.compactors.layers[0]["attention_value"].left
    lost = (~wid.compactors.states.kept).nonzero()[0].item()
    kept = wid.compactors.states.kept.nonzero()[0].item()
    for parameter in (right, left):
        parameter.grad = torch.full_like(parameter, 0.25)
        optimizer.state[parameter]["exp_avg"] = torch.full_like(parameter, 0.5)
    wid.pull(optimizer, model)
    moments = [optimizer.state[parameter]["exp_avg"] for parameter in (right, left)]
    for matrix, moment in ((right.grad, moments[0]), (left.grad.T, moments[1].T)):  # rows of R, columns of L
        assert matrix[lost, lost].item() == 1 and matrix[lost, kept].item() == 0
        assert (matrix[kept] == 0.25).all()
        assert moment[lost, lost].item() == pytest.approx(0.9 * 0.5 + 1.9)
        assert moment[kept].unique().tolist() == pytest.approx([0.45])


# Start and merge


@pytest.mark.parametrize("cut", ["gradual", "sharp"])
def test_the_student_is_the_teacher_at_first(cut):
    it = teacher()
    student = make(cut=cut).attach(copy.deepcopy(it))
    assert (logits(student) - logits(it)).abs().max() < 1e-12
    assert student.state_dict().keys() == it.state_dict().keys() and student.tied() == it.tied()
    single = it.float()
    student = make(cut=cut).float().attach(copy.deepcopy(single))
    assert (logits(student) - logits(single)).abs().max() < 1e-4


@pytest.mark.parametrize("strategy", STUDENTS)
@pytest.mark.parametrize("cut", ["gradual", "sharp"])
def test_the_merged_model_is_the_wide_one(strategy, cut):
    wid = make(strategy, cut=cut)
    student = wid.attach(teacher())
    scatter(wid)
    fade(wid)
    narrow, recipe = wid.merge(student, RECIPE)
    assert (logits(narrow) - logits(student)).abs().max() < 1e-10
    assert recipe["encoder"]["transformer"] == {"layers": 2, "heads": STUDENTS[strategy].heads, "inner": 96}
    assert RECIPE["width"] == 48 and recipe["width"] == 24


def test_without_the_scale_of_scores_it_is_another():
    wid = make()
    student = wid.attach(teacher())
    scatter(wid)
    fade(wid)
    narrow, _ = wid.merge(student, RECIPE)
    with torch.no_grad():
        for layer in narrow.encoder.layers:
            layer.attention.query.weight.mul_(math.sqrt(2))
            layer.attention.query.bias.mul_(math.sqrt(2))
    assert (logits(narrow) - logits(student)).abs().max() > 0.1


def test_before_the_cut_norms_see_kept_dimensions_only():
    wid = make()
    student = wid.attach(teacher())
    scatter(wid)
    fade(wid)
    flowing = logits(student)
    wid.settle()
    assert (logits(student) - flowing).abs().max() < 1e-10  # the cut changes nothing once all has faded
    student.embedding.norm.owned_elsewhere[0].kept.fill_(True)
    assert logits(student.double()).shape == flowing.shape
    assert (logits(student) - flowing).abs().max() > 0.1


@pytest.mark.parametrize("strategy", STUDENTS)
def test_the_merged_model_has_the_parameters_of_its_sizes(strategy):
    wid = make(strategy)
    student = wid.attach(teacher())
    scatter(wid)
    wid.settle()
    narrow, _ = wid.merge(student, RECIPE)
    layers, width, words, tables = 2, 24, 97, 97 + 16 + 2
    inner = 4 * width
    layer = 4 * (width**2 + width) + (width * inner + inner) + (inner * width + width) + 4 * width
    head = (width**2 + width) + 2 * width + words * width + words
    assert sum(p.numel() for p in narrow.parameters()) == tables * width + 2 * width + layers * layer + head
    assert not any(isinstance(module, Compactor | CompactNorm) for module in narrow.modules())


def test_the_merged_model_is_a_stock_bert(tmp_path):
    transformers = pytest.importorskip("transformers")
    wid = make()
    student = wid.attach(teacher())
    scatter(wid)
    wid.settle()
    narrow, recipe = wid.merge(student, RECIPE)
    save(narrow, recipe, tmp_path, "bert")
    stock = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert type(stock).__name__ == "BertForMaskedLM"
    fields = batch()
    with torch.no_grad():
        theirs = stock(fields["ids"], fields["mask"].long(), fields["segments"]).logits[fields["mask"]]
    assert (theirs - logits(student)).abs().max() < 1e-10
    assert (logits(load_model(tmp_path)) - logits(student)).abs().max() < 1e-4  # in float32


# Masks and schedule


@pytest.mark.parametrize("strategy", STUDENTS)
def test_who_shares_a_mask(strategy):
    wid = make(strategy)
    student = wid.attach(teacher())
    scatter(wid)
    its = wid.compactors
    for layer, attention, inner in zip(its.layers, its.attention, its.feedforward, strict=True):
        for name in ("attention_query", "attention_key", "attention_value"):
            assert layer[name].groups == (its.states, attention)
        assert layer["attention_output"].groups == (attention, its.states)
        assert layer["feedforward_inner"].groups == (its.states, inner)
        assert layer["feedforward_outer"].groups == (inner, its.states)
    assert its.embedding.groups == (None, its.states)
    assert its.transform.groups == (its.states, its.words) and its.head.groups == (its.words, None)
    norms = [module for module in student.modules() if isinstance(module, CompactNorm)]
    assert len(norms) == 6 and sum(norm.owned_elsewhere[0] is its.states for norm in norms) == 5
    assert not torch.equal(its.attention[0].kept, its.attention[1].kept)
    for group in (its.states, *its.attention):
        counts = group.kept.view(4, 12).sum(1).tolist()
        assert counts == [6] * 4 if strategy == "dim" else sorted(counts) == [0, 0, 12, 12]


def test_the_lowest_are_lost():
    wid = make(chunked=False)
    with torch.no_grad():
        value = wid.compactors.layers[0]["attention_value"].left
        value[:, 5:29] *= 0.5
        wid.compactors.layers[1]["feedforward_outer"].left[:, ::2] *= 0.5
        wid.compactors.head.left[:, :24] *= 2
    wid.update(1000)
    assert wid.compactors.states.kept.tolist() == [not 5 <= i < 29 for i in range(48)]
    assert wid.compactors.feedforward[1].kept.tolist() == [i % 2 == 1 for i in range(192)]
    assert wid.compactors.words.kept.tolist() == [i < 24 for i in range(48)]
    with torch.no_grad():  # a dimension may come back
        value[:, 5:29] *= 9
    wid.update(1000)
    assert wid.compactors.states.kept[5:29].all() and wid.compactors.states.kept.sum() == 24


def test_all_readers_may_rank():
    wid = make(chunked=False, readers="all")
    with torch.no_grad():
        for layer in wid.compactors.layers:
            layer["feedforward_inner"].left[:, :24] *= 0.1
        wid.compactors.layers[0]["attention_value"].left[:, 24:] *= 0.9
    wid.update(1000)
    assert wid.compactors.states.kept.tolist() == [i >= 24 for i in range(48)]


def test_the_published_schedule():
    base = Shape(1, 768, 12, 30)
    dim = WID(Shape(1, 192, 12, 30), base)
    # (768 - 192) / 12 = 48 a head, 6 at each update; 576 / 16 = 36 of the head, 144 of feed-forward layers
    assert dim.lost(1) == {"states": 72, "attention": 72, "inner": 144, "words": 36}
    assert dim.lost(8)["states"] == 576 and dim.lost(7)["states"] < 576
    head = WID(Shape(1, 192, 3, 30), base, strategy="head")
    assert [head.lost(n)["attention"] for n in (1, 2, 17, 18, 99)] == [0, 64, 512, 576, 576]


WIDTHS = [(768, 12, n) for n in (516, 256 + 8, 120, 756, 12, 768)] + [(384, 12, 192), (40, 5, 35), (30, 3, 3)]


@pytest.mark.parametrize(("width", "heads", "narrow"), WIDTHS)
@pytest.mark.parametrize("chunked", [True, False])
def test_the_schedule_reaches_any_width_and_never_grows_back(width, heads, narrow, chunked):
    wid = WID(Shape(1, narrow, heads), Shape(1, width, heads), chunked=chunked)
    counts = [wid.lost(number) for number in range(100)]
    target = {"states": width - narrow, "attention": width - narrow, "inner": 4 * (width - narrow)}
    for kind, most in target.items():
        lost = [count[kind] for count in counts]
        assert lost[0] == 0 and lost == sorted(lost) and lost[-1] == most
        assert all(n % heads == 0 for n in lost) or kind != "attention"
    wid.update(99)
    assert wid.reached


def test_masks_follow_the_steps():
    wid = make(every=3)
    kept = []
    for _ in range(30):
        wid.advance()
        kept.append(int(wid.compactors.states.kept.sum()))
    assert kept[:6] == [48, 48, 44, 44, 44, 40] and kept[-1] == 24 and kept == sorted(kept, reverse=True)


# Gradients and training


def test_until_the_first_update_nothing_but_training_changes_the_outputs():
    wid, it = make(every=4, cut="sharp"), teacher()
    before, student = logits(it), wid.attach(it)
    train(wid, student, 3, rate=0.0, inherited=0.0)
    assert torch.equal(logits(student), before)
    train(wid, student, 1, rate=0.0, inherited=0.0)
    assert not torch.equal(logits(student), before)


def test_in_the_first_span_all_compactors_are_drawn_to_zero():
    wid, student = make(), teacher()
    wid.attach(student)
    student(**batch())[0].backward()
    plain = {name: p.grad.clone() for name, p in wid.named_parameters()}
    wid.pull(torch.optim.SGD(wid.parameters(), lr=1.0), student)
    for name, parameter in wid.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name] + parameter.detach())


@pytest.mark.parametrize("cut", ["gradual", "sharp"])
def test_kept_entries_have_the_plain_gradient_and_lost_ones_only_the_pull(cut):
    wid, student = make(every=1, cut=cut), teacher()
    wid.attach(student)
    scatter(wid)
    wid.step.fill_(1)
    student(**batch())[0].backward()
    pairs = [*wid.compactors.masks(), *wid.compactors.vectors(student)]
    plain = [parameter.grad.clone() for parameter, _ in pairs]
    assert sum(bool(grad.abs().sum() > 0) for grad in plain) > 40
    wid.pull(torch.optim.SGD(wid.parameters(), lr=1.0), student)
    for (parameter, kept), grad in zip(pairs, plain, strict=True):
        kept = kept.expand_as(grad)
        assert torch.equal(parameter.grad[kept], grad[kept])
        assert torch.equal(parameter.grad[~kept], parameter.detach()[~kept])
    assert student.targets["mlm"].head.bias.grad.abs().sum() > 0  # all words stay: it is not among the treated
    assert all(parameter is not student.targets["mlm"].head.bias for parameter, _ in pairs)


def test_the_gradient_through_folded_weights_is_that_of_three_layers():
    torch.manual_seed(0)
    compactor = Compactor(Group(6, True), Group(8, True)).double()
    compactor.groups[0].kept[4:] = False
    compactor.groups[1].kept[5:] = False
    weight, bias = (torch.randn(*size).double().requires_grad_() for size in ((8, 6), (8,)))
    found = []
    for tokens in (1, 1000):  # one by one, and folded
        x = torch.randn(1, 4, generator=torch.Generator().manual_seed(1)).double().repeat(tokens, 1)
        y = compactor(x, weight, bias).square().sum() / tokens
        found.append((y, *torch.autograd.grad(y, [weight, bias, compactor.left, compactor.right])))
    assert cheapest(1, 5, 8, 6, 4) != cheapest(1000, 5, 8, 6, 4) == (True, True)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_lost_entries_decay_to_nothing():
    wid, steps = WID(Shape(1, 4, 2), Shape(1, 8, 2), inner=16, every=1).double(), 800
    recipe = {"width": 8, "vocabulary": 9, "embedding": {"word": {}}, "target": {"contrast": {}}}
    student = wid.attach(assemble(recipe | {"encoder": {"transformer": {"layers": 1, "heads": 2, "inner": 16}}}))
    scatter(wid, 0.01)
    wid.step.fill_(1)
    optimizer = torch.optim.AdamW(wid.parameter_groups(student, rate=1e-3))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    wid.hook(optimizer, student)
    sizes = []
    for step in range(steps):
        if step % 50 == 0:
            sizes.append(torch.stack([(p.detach() * ~kept).norm() for p, kept in wid.compactors.masks()]))
        for parameter in wid.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        optimizer.step()
        decay.step()
    sizes = torch.stack(sizes)
    assert (sizes.diff(dim=0) < 0).all()
    assert wid.residue() < 1e-4
    assert all((p.detach() * kept).abs().max() > 0.5 for p, kept in wid.compactors.masks())


def test_what_has_faded_leaves_the_forward_pass():
    wid, student = make(every=2, faded=0.3), teacher()
    wid.attach(student)
    optimizer = torch.optim.AdamW(wid.parameter_groups(student, rate=2e-3))
    while wid.step < 48:
        train(wid, student, 1, optimizer=optimizer)
    assert wid.reached and not wid.settled and not wid.compactors.states.cut
    while not wid.settled and wid.step < 150:
        train(wid, student, 1, optimizer=optimizer)
    assert wid.residue() <= 0.3 and wid.compactors.states.cut and wid.compactors.words.cut
    narrow, _ = wid.merge(student, RECIPE)
    assert (logits(narrow) - logits(student)).abs().max() < 1e-10
    masks = [group.kept.clone() for _, group in wid.compactors.groups()]
    train(wid, student, 4, optimizer=optimizer)
    assert all(torch.equal(a, group.kept) for a, (_, group) in zip(masks, wid.compactors.groups(), strict=True))


def test_the_teacher_never_runs():
    wid, it = make(), teacher()
    student = wid.attach(copy.deepcopy(it))
    calls = []
    it.register_forward_hook(lambda *args: calls.append("teacher"))
    student.encoder.register_forward_hook(lambda *args: calls.append("student"))
    train(wid, student, 3)
    assert calls == ["student"] * 3
    objective = Objective({"wid": wid})
    assert objective.needs() == {"student": {"hard": []}, "teacher": {}} and objective.hard_weight() == 1
    fields = batch()
    loss, _ = objective(Signals(fields["mask"], hard=torch.tensor([1.0, 3.0])), None)
    assert loss.item() == 2


@pytest.mark.parametrize("cut", ["gradual", "sharp"])
def test_a_resumed_run_is_the_uninterrupted_one(cut):
    def begin():
        wid = make(every=3, cut=cut)
        return wid, wid.attach(teacher())

    wid, student = begin()
    optimizer = train(wid, student, 7, rate=1e-2, inherited=1e-3)
    saved = copy.deepcopy((wid.state_dict(), student.state_dict(), optimizer.state_dict()))
    train(wid, student, 6, first=7, optimizer=optimizer)
    again, resumed = begin()
    logits(resumed)  # masks that were read before loading are read anew
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    optimizer = torch.optim.AdamW(again.parameter_groups(resumed, rate=1e-2, inherited=1e-3))
    optimizer.load_state_dict(saved[2])
    train(again, resumed, 6, first=7, optimizer=optimizer)
    assert again.step == 13 and 24 < again.compactors.states.kept.sum() < 48
    assert torch.equal(logits(resumed), logits(student))
    for one, other in ((wid, again), (student, resumed)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_settled_run_stays_settled_after_a_resume():
    wid, again = make(every=1), make(every=1)
    wid.update(1000)
    wid.settle()
    again.load_state_dict(wid.state_dict())
    with torch.no_grad():
        again.compactors.layers[0]["attention_value"].left[:, ~wid.compactors.states.kept] *= 9
    again.advance()
    assert again.settled and again.compactors.states.cut
    assert torch.equal(again.compactors.states.kept, wid.compactors.states.kept)


def test_the_order_of_the_teachers_dimensions_does_not_matter():
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    models = [teacher(), teacher()]
    with torch.no_grad():
        for name, parameter in models[1].named_parameters():
            reads = name.endswith(("query.weight", "key.weight", "value.weight", "inner.weight", "transform.weight"))
            writes = name.startswith("encoder") and "output" in name or "outer" in name
            if reads or name.startswith("embedding") and parameter.dim() == 2:
                parameter.copy_(parameter[:, order])
            elif writes or "norm" in name and "mlm" not in name:
                parameter.copy_(parameter[order])
        # the tied table is also the head's, which reads what the transform writes
        for name in ("transform.weight", "transform.bias", "norm.weight", "norm.bias"):
            parameter = models[1].get_parameter(f"targets.mlm.{name}")
            parameter.copy_(parameter[order])
    torch.testing.assert_close(logits(models[0]), logits(models[1]))
    narrow, kept = [], []
    for model in models:
        wid = make(every=2, chunked=False, cut="sharp")
        wid.attach(model)
        train(wid, model, 50, rate=1e-3, inherited=1e-4)
        kept.append(wid.compactors.states.kept)
        narrow.append(wid.merge(model, RECIPE)[0])
    assert torch.equal(kept[1], kept[0][order]) and kept[0].sum() == 24
    torch.testing.assert_close(logits(narrow[0]), logits(narrow[1]), rtol=0, atol=1e-6)


def test_in_bfloat16_means_stay_exact():
    wid = make(every=1)
    student = wid.float().attach(teacher().float())
    scatter(wid, 0.01)
    full = student(**batch())[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = student(**batch())[0]
    low.backward()
    assert all(torch.isfinite(p.grad).all() for p in wid.parameters())
    assert low.item() == pytest.approx(full.item(), rel=0.02)


# What it is for


def chains(seed: int, rows: int = 32, places: int = 16) -> dict[str, Tensor]:
    """Rows in which a token follows from the one before by one of three rules, which the first token names."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randint(3, (rows,), generator=generator)
    token = torch.randint(3, 40, (rows,), generator=generator)
    row = [rule]
    for _ in range(places - 1):
        row.append(token)
        token = 3 + (token - 3 + torch.tensor([1, 5, 11])[rule]) % 37
    ids = torch.stack(row, 1)
    hidden = torch.rand(ids.shape, generator=generator) < 0.2
    return {"ids": ids.masked_fill(hidden, 40), "labels_mlm": ids.masked_fill(~hidden, -100)}


def test_inherited_weights_beat_a_start_from_nothing():
    shape = {"width": 32, "vocabulary": 41, "dropout": 0.0, "embedding": {"word": {}, "position": {"length": 16}}}
    recipe = shape | {"encoder": {"transformer": {"layers": 2, "heads": 2, "inner": 64}}, "target": {"mlm": {}}}
    torch.manual_seed(0)

    def learn(model: Model, optimizer, steps: int, after=lambda: None) -> float:
        for _ in fit(model, [chains(seed) for seed in range(steps)], optimizer, clip=1.0):
            after()
        with torch.no_grad():
            return model(**chains(10**6, rows=256))[0].item()

    wide = assemble(recipe)
    taught = learn(wide, torch.optim.AdamW(wide.parameters(), lr=3e-3), 250)
    wid = WID(Shape(2, 16, 2, 41), Shape(2, 32, 2, 41), inner=64, every=6, cut="sharp")
    student = wid.attach(wide)
    optimizer = torch.optim.AdamW(wid.parameter_groups(student, rate=1e-3, inherited=1e-3))
    wid.hook(optimizer, student)
    learn(student, optimizer, 150, wid.advance)
    merged, told = wid.merge(student, recipe)
    with torch.no_grad():
        inherited = merged(**chains(10**6, rows=256))[0].item()
    scratch = assemble(told)
    alone = learn(scratch, torch.optim.AdamW(scratch.parameters(), lr=1e-3), 150)
    assert max(taught, inherited) < 0.85 * alone and alone < math.log(41)


def test_the_published_rates_do_not_collapse():
    wid, student = make(every=2), teacher()
    wid.attach(student)
    optimizer = torch.optim.AdamW(wid.parameter_groups(student))
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (5e-5, 0.01), (1e-6, 0.01), (1e-6, 0.0)
    ]  # fmt: skip
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        {*wid.parameters(), *student.parameters()}
    )
    spread = logits(student).std(0).mean()
    train(wid, student, 40, optimizer=optimizer)
    assert logits(student).std(0).mean() > 0.5 * spread


# Bad input


@pytest.mark.parametrize(
    ("student", "settings", "words"),
    [
        (Shape(3, 24, 4, 97), {}, "3 layers.*2"),
        (Shape(2, 96, 4, 97), {}, "96 wide and the teacher 48"),
        (Shape(2, 24, 4, 96), {}, "96.*97"),
        (Shape(2, 24, 2, 97), {}, "2 and the teacher 4.*strategy head"),
        (Shape(2, 24, 4, 97), {"strategy": "head"}, "have 6 .* 12"),
        (Shape(2, 20, 4, 97), {"inner": 100}, "100 do not shrink.*48 to 20"),
        (DIM, {"strategy": "heads"}, "dim, head"),
        (DIM, {"cut": "soft"}, "gradual, sharp"),
        (DIM, {"readers": "some"}, "first, all"),
        (DIM, {"every": 0}, "every"),
        (DIM, {"penalty": -1.0}, "penalty"),
    ],
)
def test_what_cannot_work_is_refused(student, settings, words):
    with pytest.raises(ValueError, match=words):
        WID(student, WIDE, **settings)


@pytest.mark.parametrize("cut", ["gradual", "sharp"])
def test_a_batch_without_labels_and_a_row_of_padding_give_no_nan(cut):
    wid = make(every=1, cut=cut)
    student = wid.attach(teacher())
    wid.update(3)
    fields = batch()
    fields["mask"][0], fields["labels_mlm"] = False, torch.full_like(fields["ids"], -100)
    loss, _ = student(**fields)
    loss.backward()
    assert loss == 0 and all(p.grad is None or torch.isfinite(p.grad).all() for p in wid.parameters())


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="5 heads do not divide"):
        WID(Shape(2, 24, 5, 97), WIDE)


BERT = RECIPE["encoder"]["transformer"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": {"transformer": BERT | {"layers": 3}}}, "2 layers with 4 heads"),
        ({"encoder": {"transformer": BERT | {"heads": 2}}}, "2 layers with 4 heads"),
        ({"encoder": {"transformer": BERT | {"norm_first": True}}}, "norms after"),
        ({"encoder": {"transformer": BERT | {"inner": 96}}}, "feedforward.inner.weight"),
        ({"encoder": {"transformer": BERT | {"gated": True}}}, "gate.weight"),
        ({"target": {"mlm": {}, "sp": {}}}, "targets.sp.pool.weight"),
        ({"target": {"cls": {"labels": 2}}, "tie": False}, "vocabulary of 97.*cls"),
        ({"width": 24}, "width 48"),
        ({"vocabulary": 96}, "targets.mlm.head"),
    ],
)
def test_a_model_that_would_not_get_narrow_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        WID(DIM, WIDE).attach(assemble(RECIPE | change))


def test_twice_is_once_too_often():
    wid = make()
    student = wid.attach(teacher())
    with pytest.raises(ValueError, match="already"):
        wid.attach(student)


def test_a_merge_before_its_time_is_refused():
    wid = make(every=1)
    student = wid.attach(teacher())
    for action in (lambda: wid.merge(student, RECIPE), wid.settle):
        with pytest.raises(ValueError, match="48 of 48 dimensions are kept at step 0"):
            action()
    wid.update(1000)
    with pytest.raises(ValueError, match=r"reach 1 .*settle\(\)"):
        wid.merge(student, RECIPE)
    wid.settle()
    assert wid.merge(student, RECIPE)[0].embedding.word.weight.shape == (97, 24)


def test_a_sentence_encoder_has_no_words_to_narrow():
    shape = {"width": 48, "vocabulary": 97, "dropout": 0.0, "embedding": {"word": {}, "position": {"length": 16}}}
    recipe = shape | {"encoder": RECIPE["encoder"], "target": {"contrast": {"pool": "mean"}}}
    torch.manual_seed(0)
    wid = WID(Shape(2, 24, 4), Shape(2, 48, 4), cut="sharp").double()
    student = wid.attach(assemble(recipe).double().eval())
    wid.update(1000)
    narrow, told = wid.merge(student, recipe)
    fields = {name: batch()[name] for name in ("ids", "mask")}
    with torch.no_grad():
        ours, theirs = student.encode(**fields)[0], narrow.encode(**fields)[0]
    assert ours.shape == (4, 10, 24) and (ours - theirs)[fields["mask"]].abs().max() < 1e-10
