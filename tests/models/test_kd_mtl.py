"""KD-MTL: the distance by hand, frozen teachers, adaptors that follow, and a balance between tasks."""

import pytest
import torch
from torch import nn

from models import build
from models.fit import fit
from models.metrics import auc
from models.recommend.kd_mtl import distances
from tasks.batches import Batches
from tasks.training import Training, train

NET = {"experts": 2, "widths": [16], "towers": [8], "dropout": 0.1}
ONE = {"bottom": [16], "towers": [8], "dropout": 0.1}


def make(seed: int = 1, tasks: int = 2, **settings) -> nn.Module:
    torch.manual_seed(seed)
    return build("recommend", "kd_mtl", [5, 7], 2, tasks, 8, **({"settings": NET, "teacher": ONE} | settings))


def single(seed: int = 2, tasks: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return build("recommend", "single_task", [5, 7], 2, tasks, 8, **ONE)


def rows(count: int = 64, seed: int = 0, tasks: int = 2) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "categorical": torch.stack([torch.randint(0, size, (count,), generator=random) for size in (5, 7)], 1),
        "numerical": torch.rand(count, 2, generator=random),
        "labels": (torch.rand(count, tasks, generator=random) < 0.4).float(),
    }


def steps(model: nn.Module, count: int, rate: float = 1e-2, data: dict | None = None, size: int = 64) -> nn.Module:
    random, data = torch.Generator().manual_seed(0), data or rows(512)

    def batches():
        for _ in range(count):
            chosen = torch.randint(len(data["labels"]), (size,), generator=random)
            yield {name: value[chosen] for name, value in data.items()}

    own = getattr(model, "optimizer", lambda rate: torch.optim.Adam(model.parameters(), lr=rate, fused=True))
    for _ in fit(model.train(), batches(), own(rate)):
        pass
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_distance_by_hand():
    ahead, aside = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])
    for other, expected in ((ahead, 0.0), (2 * ahead, 0.0), (aside, 2.0), (-7 * ahead, 4.0)):
        assert distances(other, ahead).item() == pytest.approx(expected, abs=1e-5)
    slanted = torch.tensor([[[1.0, 1.0]]])  # 45 degrees: 2 - 2 / sqrt(2)
    assert distances(slanted, ahead).item() == pytest.approx(2 - 2**0.5, abs=1e-5)


def test_length_does_not_count_but_order_of_channels_does():
    random = torch.Generator().manual_seed(0)
    one, two = (torch.randn(6, 3, 5, generator=random) for _ in range(2))
    plain, scale = distances(one, two), torch.rand(6, 3, 1, generator=random) + 0.5
    torch.testing.assert_close(distances(one * scale, two), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(distances(one, two * scale), plain, atol=1e-5, rtol=0)
    assert (distances(one[..., [1, 0, 2, 3, 4]], two) - plain).abs().min() > 1e-3


def test_rows_whose_teacher_shows_nothing_do_not_count():
    adapted, taught = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4, 2, 3)
    taught[2:, 1] = 0
    assert torch.equal(distances(adapted, taught)[1], distances(adapted[:2], taught[:2])[1])
    assert distances(adapted, torch.zeros(4, 2, 3)).tolist() == [0, 0]


def test_exchanging_teachers_with_their_adaptors_changes_nothing():
    random = torch.Generator().manual_seed(0)
    adapted, taught = torch.randn(8, 2, 4, generator=random), torch.randn(8, 2, 4, generator=random)
    weight, turn = torch.tensor([1.0, 3.0]), [1, 0]
    there = (weight * distances(adapted, taught)).sum()
    torch.testing.assert_close((weight[turn] * distances(adapted[:, turn], taught[:, turn])).sum(), there)


def test_an_adaptor_alone_undoes_a_linear_map():
    random = torch.Generator().manual_seed(0)
    taught = torch.randn(200, 1, 6, generator=random)
    phi = taught @ (torch.eye(6) + 0.3 * torch.randn(6, 6, generator=random))
    adaptor = nn.Parameter(torch.randn(6, 6, generator=random) / 6**0.5)
    optimizer = torch.optim.Adam([adaptor], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = distances(phi @ adaptor, taught).sum()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


def test_given_teachers_never_change():
    model, teacher = make(), single()
    model.teach(teacher)
    before = state(model.teacher)
    steps(model, 6)
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(each.grad is None for each in model.teacher.parameters())
    assert not model.teacher.training


def test_distillation_never_touches_the_towers():
    model = make()
    model.teach(single())
    _, terms = model.train()(**rows())
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(terms["distance_0"], list(model.parameters()), allow_unused=True)
    touched = {name for name, gradient in zip(names, found, strict=True) if gradient is not None and gradient.any()}
    assert {"adaptor", "student.inputs.table"} <= touched
    assert not any(name.startswith(("student.towers", "teacher")) for name in touched)


def test_without_weight_it_is_the_plain_run_bit_for_bit():
    torch.manual_seed(4)
    plain = steps(build("recommend", "mmoe", [5, 7], 2, 2, 8, **NET), 12)
    taught = steps(make(4, weight=0.0), 12)
    assert all(torch.equal(value, taught.student.state_dict()[name]) for name, value in plain.state_dict().items())


def test_the_student_alone_is_served():
    model, data = make().eval(), rows()
    method, settings = model.serves
    other = build("recommend", method, [5, 7], 2, 2, **settings)
    other.load_state_dict(model.student.state_dict())
    columns = data["categorical"], data["numerical"]
    assert torch.equal(other.eval().score(*columns), model.score(*columns))
    plain = build("recommend", "mmoe", [5, 7], 2, 2, 8, **NET)
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in plain.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    model = make(tasks=1, method="shared_bottom", settings=ONE)
    teacher = single(tasks=1)
    student, held = model.student.state_dict(), {}
    for name in teacher.state_dict():
        held[name] = student[name.replace("inputs.0.", "inputs.").replace("first.0.", "first.")]
    teacher.load_state_dict(held)
    model.teach(teacher)
    nn.init.eye_(model.adaptor.data[0])
    _, terms = model.eval()(**rows(tasks=1))
    assert terms["distance_0"].item() == pytest.approx(0, abs=1e-10)
    gradient = torch.autograd.grad(terms["distance_0"], list(model.student.parameters()), allow_unused=True)
    assert all(each is None or each.abs().max() < 1e-6 for each in gradient)


def test_teachers_learn_first_then_freeze_and_are_heard():
    model = make(share=0.5)
    model.total.fill_(8)
    start, alone = state(model), make(weight=0.0)
    steps(model, 4)
    assert model.phase() == (False, True)
    half = state(model)
    moved = [name for name in start if not torch.equal(start[name], half[name])]
    assert any(name.startswith("teacher.") for name in moved) and "adaptor" in moved
    steps(model, 4)
    end = state(model)
    assert all(torch.equal(half[name], end[name]) for name in half if name.startswith("teacher."))
    # Before it listens, the student's gradient is the plain one.
    data = rows()
    for each in (alone, model):
        each.zero_grad()
        each.load_state_dict(start)
        each.eval()(**data)[0].backward()
    table = lambda each: each.student.inputs.table.grad
    torch.testing.assert_close(table(model), table(alone))


def test_a_killed_run_ends_as_the_unbroken_one(tmp_path):
    data = {name: value.numpy() for name, value in rows(256).items()}
    settings = Training(epochs=4, batch=64, checkpoint_steps=3, seed=1)

    def run(folder, dies_at=None):
        model, done = make(), 0
        batches = Batches(data, 64, 1)
        model.total.fill_(batches.per_epoch * settings.epochs)

        def validate():
            nonlocal done
            done += 1
            if done == dies_at:
                raise KeyboardInterrupt
            return {"score": float(model.step)}

        train(model, batches, settings, validate, "test", folder)
        return model.state_dict()

    torch.manual_seed(0)
    unbroken = run(tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "two", dies_at=3)
    again = run(tmp_path / "two")
    assert all(torch.equal(value, again[name]) for name, value in unbroken.items())


def test_the_adaptors_have_their_own_rate():
    first, second = make().optimizer(1e-3, 1e-6).param_groups
    assert (first["lr"], first["weight_decay"]) == (1e-3, 1e-6)
    assert (second["lr"], second["weight_decay"], len(second["params"])) == (1e-2, 5e-4, 1)


def test_bad_settings_and_teachers_are_refused():
    with pytest.raises(ValueError, match=r"weight is one number(.|\n)*share in"):
        make(weight=[1.0], share=1.0)
    with pytest.raises(ValueError, match="not the single_task that `teacher` describes"):
        make().teach(build("recommend", "single_task", [5, 7], 2, 2, 4, **ONE))


def test_a_drowned_task_is_helped():
    """Task 1 counts a thousand times more than task 0, and asks for something else: distances have no such scale."""

    def world(count, seed):
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 30, (count, 4), generator=random)
        effect = torch.randn(4, 30, generator=torch.Generator().manual_seed(99))
        value = torch.stack([effect[f, ids[:, f]] for f in range(4)], 1)
        logit = 3 * torch.stack([value[:, 0] + value[:, 1], value[:, 2] + value[:, 3]], 1)
        labels = (torch.rand(count, 2, generator=random) < logit.sigmoid()).float()
        return {"categorical": ids, "numerical": torch.zeros(count, 0), "labels": labels}

    data, test = world(2000, 0), world(4000, 1)
    net, one = {"bottom": [4], "towers": [4], "dropout": 0.0}, {"bottom": [16], "towers": [8], "dropout": 0.0}

    def small_task(weight, losses):
        torch.manual_seed(0)
        model = build("recommend", "kd_mtl", [30] * 4, 0, 2, 8, method="shared_bottom", settings=net, teacher=one,
                      weight=weight, loss_weight=losses)  # fmt: skip
        model.teach(teacher)
        steps(model, 120, 1e-2, data, 128).eval()
        score = model.score(test["categorical"], test["numerical"]).detach()[:, 0]
        return float(auc(score, test["labels"][:, 0]))

    torch.manual_seed(0)
    teacher = steps(build("recommend", "single_task", [30] * 4, 0, 2, 8, **one), 120, 1e-2, data, 128).eval()
    fair, drowned = small_task(0.0, 1.0), small_task(0.0, [1.0, 1000.0])
    helped = small_task([1000.0, 1000.0], [1.0, 1000.0])
    assert drowned < fair
    assert fair - helped < fair - drowned
