"""Two streams and the contrast between them: numbers by hand, streams that never meet, ranks that do."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from models import build
from models.components._model import assemble
from models.components._rows import Rows
from models.components.target.clr import gather

STREAM = {"word": {}, "position": {"length": 8}}
RECIPE = {
    "width": 8,
    "widths": [8, 12],
    "vocabulary": 11,
    "dropout": 0.0,
    "embedding": {"dual": {"first": STREAM, "second": {"patch": {"size": 2, "image": 4}, "norm": "none"}}},
    "encoder": {
        "dual": {
            "first": {"transformer": {"layers": 1, "heads": 2, "inner": 16}},
            "second": {"transformer": {"layers": 1, "heads": 3, "inner": 16}},
        }
    },
    "target": {"clr": {"features": 4, "pools": ["last", "mean"]}},
}


def model():
    torch.manual_seed(0)
    return assemble(RECIPE)


def pairs(count: int = 4) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "first_ids": torch.randint(11, (count, 5), generator=draw),
        "first_mask": torch.arange(5) < torch.randint(1, 6, (count, 1), generator=draw),
        "second_pixels": torch.randn(count, 3, 4, 4, generator=draw),
    }


def two_rows() -> Rows:
    return Rows.of((2, 1))


def test_clr_by_hand():
    # orthogonal pairs and temperature 1: each row has logits (1, 0), so -log softmax = ln(1 + 1/e) = 0.31326, twice
    target = build("components.target", "clr", 2, temperature=1.0)
    features = torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]]])
    total, terms = target((features, features), (two_rows(), two_rows()), {})
    assert total.item() == pytest.approx(2 * math.log(1 + math.exp(-1)))
    assert terms["correct"].item() == 2
    swapped, terms = target((features, features.flip(0)), (two_rows(), two_rows()), {})
    assert swapped.item() == pytest.approx(2 * (1 + math.log(1 + math.exp(-1))))
    assert terms["correct"].item() == 0


def test_the_scale_begins_at_the_papers_and_stops_at_a_hundred():
    target = build("components.target", "clr", 2)
    assert target.scale.item() == pytest.approx(2.6593, abs=1e-4)  # ln(1 / 0.07)
    torch.nn.init.constant_(target.scale, 9.0)
    features = torch.eye(2)[:, None]
    total, _ = target((features, features.flip(0)), (two_rows(), two_rows()), {})
    assert total.item() == pytest.approx(200)


def test_the_scale_learns():
    twin = model()
    before = twin.targets["clr"].scale.item()
    assert before == pytest.approx(math.log(1 / 0.07))
    twin(**pairs())[0].backward()
    assert twin.targets["clr"].scale.grad.abs() > 0


def test_streams_never_meet():
    twin, batch = model(), pairs()
    (first, second), (first_rows, second_rows) = twin.encode(**batch)
    assert first.shape == (4, 5, 8) and second.shape == (4, 5, 12)
    assert torch.equal(first_rows.mask, batch["first_mask"]) and second_rows.mask.all()
    other = twin.encode(**batch | {"second_pixels": torch.zeros(4, 3, 4, 4)})[0]
    assert torch.equal(other[0], first) and not torch.equal(other[1], second)
    other = twin.encode(**batch | {"first_ids": batch["first_ids"].flip(0)})[0]
    assert torch.equal(other[1], second) and not torch.equal(other[0], first)


def test_padding_never_counts():
    twin, batch = model(), pairs()
    noisy = batch | {"first_ids": batch["first_ids"].where(batch["first_mask"], 3)}
    torch.testing.assert_close(twin(**noisy)[0], twin(**batch)[0])


def test_tied_streams_give_the_same_state_for_the_same_text():
    tied = {"first": STREAM, "tied": True}
    recipe = RECIPE | {
        "widths": None,
        "embedding": {"dual": tied},
        "encoder": {"dual": {"first": {"gru": {}}, "tied": True}},
        "target": {"clr": {}},
    }
    torch.manual_seed(0)
    twin = assemble(recipe)
    ids = pairs()["first_ids"]
    (first, second), _ = twin.encode(first_ids=ids, second_ids=ids)
    assert torch.equal(first, second)
    # one table, positions, norm, two layers of 3 gates, the scale
    gate = 3 * 8 * (8 + 8 + 2)
    assert sum(p.numel() for p in twin.parameters()) == 11 * 8 + 8 * 8 + 16 + 2 * gate + 1


def test_the_loss_is_a_mean_over_pairs():
    twin, batch = model(), pairs()
    loss, terms = twin(**batch)
    assert twin.counts(**batch)["clr"].item() == 4
    features = twin.predict("clr", **batch)
    logits = features[0] @ features[1].mT / 0.07
    target = torch.arange(4)
    both = torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.mT, target)
    torch.testing.assert_close(loss, both / 2)
    right = (logits.argmax(0) == target).float().mean() + (logits.argmax(1) == target).float().mean()
    torch.testing.assert_close(terms["clr_correct"], right / 2)


def rank(number: int, ranks: int, folder: str) -> None:
    """One process: its share of the pairs; leaves its loss and its gradients."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=ranks)
    twin, batch = model(), pairs()
    share = {name: value.chunk(ranks)[number] for name, value in batch.items()}
    loss, _ = twin(counts={"clr": torch.tensor(4.0)}, **share)
    loss.backward()
    gradients = {name: value.grad for name, value in twin.named_parameters()}
    save_file({"loss": loss.detach(), **gradients}, f"{folder}/{number}.safetensors")
    twin.eval()
    assert twin.predict("clr", **share)[0].shape[0] == 2  # one rank alone may evaluate: nothing is gathered
    if number == 0:
        with torch.no_grad():
            twin(**share)
    with pytest.raises(ValueError, match=r"\[1, 2\] pairs"):
        gather([torch.zeros(number + 1, 3)])
    dist.destroy_process_group()


def test_two_ranks_are_one_big_batch(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # the new processes inherit this process's path
    mp.spawn(rank, args=(2, str(tmp_path)), nprocs=2)
    parts = [load_file(tmp_path / f"{number}.safetensors") for number in range(2)]
    twin = model()
    loss, _ = twin(**pairs())
    loss.backward()
    torch.testing.assert_close(sum(part["loss"] for part in parts), loss.detach())
    for name, value in twin.named_parameters():
        torch.testing.assert_close(
            sum(part[name] for part in parts), value.grad, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": [4, 8]}, "features"),
        ({"pools": ["first", "frist"]}, "frist"),
        ({"pools": ["first"]}, "two streams"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_clr_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build("components.target", "clr", 4, **settings)
