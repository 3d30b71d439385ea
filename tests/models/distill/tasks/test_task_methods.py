"""Methods of several tasks: targets, annealing, features, one number by hand each, and a contract for every file."""

import math

import pytest
import torch

from models import build, names
from models.components._model import assemble
from models.distill.tasks._learner import Learner, new_head
from models.distill.tasks._lesson import Lesson, Task, ensemble, gold_loss, logit_mse, soft_loss
from models.distill.tasks.kd_mtl import distance

TASKS = [Task("a", 3, teachers=1, widths=(5,)), Task("b", 2, teachers=1, widths=(7,))]
MORE = {"kd_mtl": {"width": 8}}
LOG2 = math.log(2)


def made(name, tasks=TASKS, **settings):
    return build("distill.tasks", name, tasks, **MORE.get(name, {}), **settings)


def lesson(logits, gold, *teachers, task="a"):
    return Lesson(task, torch.tensor(logits), torch.tensor(gold), torch.tensor(teachers) if teachers else None)


def drawn(seed=0, rows=4, teachers=2, task="a", classes=3):
    torch.manual_seed(seed)
    answer = torch.randn(rows, classes, requires_grad=True)
    gold = torch.randint(classes, (rows,))
    features = [torch.randn(rows, 5)] if task == "a" else [torch.randn(rows, 7)]
    feature = torch.randn(rows, 8, requires_grad=True)
    return Lesson(task, answer, gold, torch.randn(teachers, rows, classes), feature, features)


# ---------------------------------------------------------------- targets


def test_equal_members_speak_as_one():
    z = torch.randn(1, 4, 3)
    torch.testing.assert_close(ensemble(z.expand(5, 4, 3)), z[0].softmax(-1))
    torch.testing.assert_close(ensemble(torch.randn(3, 4, 3)).sum(-1), torch.ones(4), rtol=0, atol=1e-6)


def test_probabilities_are_averaged_not_logits():
    # One member is sure (0, 20), the other not (0, 0): a mean of 3/4, but the mean of logits is (0, 10), almost 1.
    z = torch.tensor([[[0.0, 20.0]], [[0.0, 0.0]]])
    assert ensemble(z)[0, 1].item() == pytest.approx(0.75, abs=1e-6)
    assert z.mean(0).softmax(-1)[0, 1].item() > 0.9999


def test_soft_loss_is_kl_and_entropy_and_its_gradient():
    one = drawn()
    q, log_s = ensemble(one.taught), one.answer.log_softmax(-1)
    expected = (q * (q.log() - log_s)).sum(-1) - (q * q.log()).sum(-1)
    torch.testing.assert_close(soft_loss(one), expected)
    (gradient,) = torch.autograd.grad(soft_loss(one).sum(), one.answer)
    torch.testing.assert_close(gradient, one.answer.softmax(-1) - q)
    there = Lesson("a", q.log().detach().requires_grad_(), one.gold, one.taught)
    (still,) = torch.autograd.grad(soft_loss(there).sum(), there.answer)
    torch.testing.assert_close(still, torch.zeros(4, 3), atol=1e-6, rtol=0)


def test_half_of_each_target():
    one, method = drawn(), made("mt_dnn")
    torch.testing.assert_close(method(one), soft_loss(one) / 2 + gold_loss(one) / 2)
    sure = torch.full((1, 4, 3), -1e4).scatter(2, one.gold[None, :, None], 1e4)
    certain = Lesson("a", one.answer, one.gold, sure)
    torch.testing.assert_close(
        method(certain), torch.nn.functional.cross_entropy(one.answer, one.gold, reduction="none")
    )


def test_no_gold_label_means_the_teacher_alone():
    one = drawn()
    blank = Lesson("a", one.answer, torch.full((4,), -100), one.taught)
    for name in ("mt_dnn", "bam", "road"):
        method = made(name)
        method.set_total(3)
        method.step.fill_(2)
        torch.testing.assert_close(method(blank), soft_loss(one))


def test_numbers_are_squared_errors():
    # Teachers say 2 and 4, the student 1, the label is 5: (3 - 1)^2 = 4 and (5 - 1)^2 = 16.
    one = Lesson("a", torch.tensor([[1.0]]), torch.tensor([5.0]), torch.tensor([[[2.0]], [[4.0]]]))
    assert soft_loss(one).item() == 4.0 and gold_loss(one).item() == 16.0
    assert made("mt_dnn")(one).item() == 10.0
    blank = Lesson("a", torch.tensor([[1.0]]), torch.tensor([math.nan]), one.taught)
    assert gold_loss(blank).item() == 0.0 and made("mt_dnn")(blank).item() == 4.0


# ---------------------------------------------------------------- by hand


def test_mkd_by_hand():
    # Student (1, 0, 2), teacher (0, 0, 0): 1/2 (1 + 0 + 4) / 3 = 5/6.
    one = lesson([[1.0, 0.0, 2.0]], [0], [[0.0, 0.0, 0.0]])
    assert made("mkd")(one).item() == pytest.approx(5 / 6)
    assert logit_mse(lesson([[1.0, 2.0]], [0], [[1.0, 2.0]])).item() == 0
    # With gamma = 1/4 and uniform logits the gold part is ln 3.
    flat = lesson([[0.0, 0.0, 0.0]], [0], [[2.0, 0.0, 0.0]])
    assert made("mkd", hard=0.25)(flat).item() == pytest.approx(0.75 * 4 / 6 + math.log(3) / 4)


def test_mt_dnn_by_hand():
    # Student uniform over two, teacher anything: both targets cost ln 2.
    assert made("mt_dnn")(lesson([[0.0, 0.0]], [1], [[3.0, 0.0]])).item() == pytest.approx(LOG2)
    # Student says (3/4, 1/4), gold is the second, teacher uniform: 1/2 ln 4 + 1/4 (ln 4/3 + ln 4).
    sure = lesson([[math.log(3), 0.0]], [1], [[0.0, 0.0]])
    assert made("mt_dnn")(sure).item() == pytest.approx(math.log(4) / 2 + (math.log(4 / 3) + math.log(4)) / 4)


def test_bam_by_hand():
    # Gold costs ln 4, the uniform teacher (ln 4/3 + ln 4) / 2; of five steps the second is a quarter of the way.
    one, method = lesson([[math.log(3), 0.0]], [1], [[0.0, 0.0]]), made("bam")
    method.set_total(5)
    gold, soft = math.log(4), (math.log(4 / 3) + math.log(4)) / 2
    for step, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        method.step.fill_(step)
        assert method(one).item() == pytest.approx(share * gold + (1 - share) * soft)


def test_bam_goes_on_where_it_was():
    method, again = made("bam"), made("bam")
    method.set_total(5)
    method.step.fill_(3)
    again.load_state_dict(method.state_dict())
    assert again.progress.item() == 0.75


def test_road_by_hand():
    # w = .5 over teachers (1, 0) and (1/2, 1/2) of a student (3/4, 1/4) with gold 1: their mean is (3/4, 1/4).
    one = Lesson("a", torch.tensor([[math.log(3), 0.0]]), torch.tensor([1]), torch.tensor([[[1e4, 0.0]], [[0.0, 0.0]]]))
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert made("road")(one).item() == pytest.approx(entropy / 2 + math.log(4) / 2)
    assert made("road", ends=["b"]).ends == ("b",)
    with pytest.raises(LookupError, match="road ends with c, but the tasks are a, b"):
        made("road", ends=["c"])


def test_generation_by_hand():
    # Whatever the gold label, the target is the classifier's (3/4, 1/4): at the same student that is its entropy.
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    for gold in (0, 1, -100):
        one = lesson([[math.log(3), 0.0]], [gold], [[math.log(3), 0.0]])
        assert made("generation")(one).item() == pytest.approx(entropy)


def test_kd_mtl_by_hand():
    v = torch.tensor([[3.0, 4.0]])
    far = lambda ours: distance(torch.tensor([ours]), v).item()
    assert far([6.0, 8.0]) == pytest.approx(0, abs=1e-6)  # the same direction
    assert far([-3.0, -4.0]) == pytest.approx(4, abs=1e-5)
    assert far([4.0, -3.0]) == pytest.approx(2, abs=1e-5)
    assert distance(v, torch.zeros(1, 2)).item() == 0  # a teacher that is silent on a row
    method = made("kd_mtl", [Task("a", 2, teachers=1, widths=(2,))])
    with torch.no_grad():
        method.adapt["a"][0].weight.zero_()
        method.adapt["a"][0].weight[:, :2] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # a quarter turn
    one = Lesson("a", torch.zeros(1, 2), torch.tensor([0]), None, torch.eye(8)[:1], [torch.eye(2)[:1]])
    assert method(one).item() == pytest.approx(LOG2 + 2, abs=1e-5)
    assert made("kd_mtl", weight=0.0)(drawn()).tolist() == gold_loss(drawn()).tolist()


# ---------------------------------------------------------------- contract


@pytest.mark.parametrize("name", names("distill.tasks"))
def test_contract(name):
    method = made(name)
    method.set_total(10)
    one = drawn(teachers=1)
    losses = method(one)
    assert losses.shape == (4,) and torch.isfinite(losses).all()
    losses.sum().backward()
    assert one.taught.grad is None and one.features[0].grad is None
    assert one.answer.grad is not None and torch.isfinite(one.answer.grad).all()
    alone = [Lesson(one.task, one.answer[i : i + 1], one.gold[i : i + 1], one.taught[:, i : i + 1],
                    one.feature[i : i + 1], [one.features[0][i : i + 1]]) for i in range(4)]  # fmt: skip
    torch.testing.assert_close(torch.cat([method(row) for row in alone]), losses)  # a row by itself
    again = made(name)
    again.load_state_dict(method.state_dict())
    torch.testing.assert_close(again(one), losses)
    with pytest.raises(ValueError, match="2 tasks have 1 names"):
        made(name, [TASKS[0], TASKS[0]])
    with pytest.raises(TypeError, match="it accepts"):
        build("distill.tasks", name, TASKS, nonsense=1)


@pytest.mark.parametrize("name", sorted(set(names("distill.tasks")) - {"mt_dnn", "road"}))
def test_a_task_without_teacher_is_refused(name):
    with pytest.raises(ValueError, match="but b has none"):
        made(name, [TASKS[0], Task("b", 2)])


@pytest.mark.parametrize("name", ["mt_dnn", "road"])
def test_a_task_without_teacher_learns_its_gold_labels(name):
    one = drawn()
    torch.testing.assert_close(made(name)(Lesson("a", one.answer, one.gold)), gold_loss(one))


def test_refusals():
    with pytest.raises(ValueError, match=r"several scales|scales of their own: a \(2\)"):
        made("mkd", [Task("a", 2, teachers=2)])
    for name, wrong in (("mkd", {"hard": 1.5}), ("mt_dnn", {"soft": -1}), ("road", {"soft": 2})):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            made(name, **wrong)


# ---------------------------------------------------------------- one encoder, several heads


def learner(name="mt_dnn", encoder="transformer", **settings):
    parts = {"transformer": {"layers": 1, "heads": 2, "inner": 16}, "bilstm": {"layers": 1}}
    recipe = {"width": 8, "vocabulary": 20, "dropout": 0.0, "embedding": {"word": {}, "norm": "none"},
              "encoder": {encoder: parts[encoder]}, "target": {"cls": {"labels": 2}}}  # fmt: skip
    torch.manual_seed(1)
    heads = {task.name: new_head("cls", 8, {"labels": task.outputs, "pool": "mean", "dropout": 0.0}) for task in TASKS}
    return Learner(assemble(recipe), heads, made(name, **settings))


def batch(task, rows=4, padding=0):
    torch.manual_seed(task)
    classes, width = (3, 5) if task == 0 else (2, 7)
    ids = torch.randint(1, 20, (rows, 6))
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 2])[:rows, None]
    ids = ids.where(mask, padding)
    return {"ids": ids, "mask": mask, "task": torch.tensor(task), "gold": torch.randint(classes, (rows,)),
            "taught": torch.randn(rows, 1, classes), "step": torch.tensor(0)}, torch.randn(rows, width)  # fmt: skip


@pytest.mark.parametrize("name", names("distill.tasks"))
def test_other_heads_and_maps_get_no_gradient(name):
    model = learner(name)
    given, feature = batch(0)
    if name == "kd_mtl":
        given = {key: value for key, value in given.items() if key != "taught"} | {"feature_0": feature}
    loss, terms = model(**given)
    assert terms["loss_a"].item() == pytest.approx(loss.item())
    loss.backward()
    touched = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(key.startswith("body.") for key in touched) and any(key.startswith("heads.a.") for key in touched)
    assert not [key for key, p in model.named_parameters() if p.grad is not None and ".b." in key]
    assert ("method.adapt.a.0.weight" in touched) is (name == "kd_mtl")


def test_a_bilstm_learns_from_a_transformer_of_another_width():
    teacher, student = learner("mkd"), learner("mkd", encoder="bilstm")
    given, _ = batch(1)
    with torch.no_grad():
        hidden, rows = teacher.body.encode(ids=given["ids"], mask=given["mask"])
        said = teacher.heads["b"].predict(hidden, rows)[:, None]
        given["taught"] = said / said.std()
    optimizer = torch.optim.Adam(student.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss, _ = student(**given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_micro_batches_add_up_and_padding_never_counts():
    model = learner().eval()
    given, _ = batch(0)
    whole, _ = model(**given)
    cut = lambda part: {key: value[part] if value.ndim else value for key, value in given.items()}
    counts = model.counts(**given)
    parts = sum(model(counts=counts, **cut(part))[0] for part in (slice(0, 1), slice(1, 4)))
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(model(**batch(0, padding=9)[0])[0], whole)


def test_the_model_of_a_task_has_neither_other_heads_nor_maps():
    model = learner("kd_mtl")
    state = model.state("b", "cls")
    assert not [key for key in state if "adapt" in key or "heads" in key]
    recipe = {"width": 8, "vocabulary": 20, "dropout": 0.0, "embedding": {"word": {}, "norm": "none"},
              "encoder": {"transformer": {"layers": 1, "heads": 2, "inner": 16}},
              "target": {"cls": {"labels": 2, "pool": "mean", "dropout": 0.0}}}  # fmt: skip
    alone = assemble(recipe)
    alone.load_state_dict(state)
    given, _ = batch(1)
    hidden, rows = model.body.encode(ids=given["ids"], mask=given["mask"])
    said = alone.predict("cls", ids=given["ids"], mask=given["mask"])
    torch.testing.assert_close(said, model.heads["b"].predict(hidden, rows))
