"""Patches: a number by hand, the convolution they stand for, what is hidden and who may be read."""

import pytest
import torch
from torch.nn import functional as F

from models import build
from models.components._rows import Rows

SETTINGS = {"size": 2, "image": 4, "channels": 1}


def part(name: str, width: int, **settings):
    torch.manual_seed(0)
    return build("components.embedding", name, width, **SETTINGS | settings)


def images(count: int, channels: int = 1, edge: int = 4) -> torch.Tensor:
    return torch.randn(count, channels, edge, edge, generator=torch.Generator().manual_seed(1))


def run(module, batch: dict) -> tuple[torch.Tensor, Rows]:
    rows = module.rows(batch)
    return module(batch, rows), rows


def test_patches_by_hand():
    # 0..15 in a 4 x 4 image; a patch is its four corners, summed: 0+1+4+5 = 10, 2+3+6+7 = 18, then 42 and 50; bias 1/2
    patch = part("patch", 1)
    with torch.no_grad():
        patch.weight.fill_(1), patch.bias.fill_(0.5), patch.cls.fill_(-1)
    x, rows = run(patch, {"pixels": torch.arange(16.0).view(1, 1, 4, 4)})
    assert x.flatten().tolist() == [-1, 10.5, 18.5, 42.5, 50.5]
    assert rows.mask.all() and rows.positions.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("bias", [True, False])
def test_patches_are_a_convolution(bias):
    patch, pixels = part("patch", 8, size=4, image=12, channels=3, bias=bias), images(2, 3, 12)
    convolved = F.conv2d(pixels, patch.weight, patch.bias, stride=4).flatten(2).mT
    torch.testing.assert_close(run(patch, {"pixels": pixels})[0][:, 1:], convolved)
    assert (patch.bias is None) != bias


def test_a_hidden_patch_is_not_read():
    patch = part("masked_patch", 4)
    masked = torch.tensor([[True, False, False, True]])
    one, other = images(2).split(1)
    other[..., 2:, :2] = one[..., 2:, :2]
    other[..., :2, 2:] = one[..., :2, 2:]
    x, y = (run(patch, {"pixels": pixels, "masked_patches": masked})[0] for pixels in (one, other))
    assert torch.equal(x, y)
    assert torch.equal(x[0, 1], patch.hidden) and torch.equal(x[0, 4], patch.hidden)
    assert not torch.equal(x[0, 2], patch.hidden)


def test_without_a_mask_nothing_is_hidden():
    patch, pixels = part("masked_patch", 4), images(2)
    shown = run(patch, {"pixels": pixels, "masked_patches": torch.zeros(2, 4, dtype=torch.bool)})[0]
    assert torch.equal(run(patch, {"pixels": pixels})[0], shown)


def test_words_and_patches_share_a_row():
    both = part("word_patch", 4, vocabulary=5, text=6)
    ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    x, rows = run(both, {"ids": ids, "mask": mask, "pixels": images(2)})
    assert x.shape == (2, 3 + 1 + 4, 4)
    assert rows.mask.tolist() == [[True] * 8, [True, False, False] + [True] * 5]
    # an image begins at position 6 however short its text is
    assert rows.positions.tolist() == [[0, 1, 2, 6, 7, 8, 9, 10]] * 2
    torch.testing.assert_close(x[1, 0], both.weight[4] + both.kind[0])
    torch.testing.assert_close(x[0, 3], both.patch.cls + both.kind[1])


def test_the_padding_of_a_text_does_not_move_its_image():
    both = part("word_patch", 4, vocabulary=5, text=6)
    pixels = images(1)
    short, rows = run(both, {"ids": torch.tensor([[1, 2]]), "pixels": pixels})
    mask = torch.tensor([[True, True, False]])
    long, padded = run(both, {"ids": torch.tensor([[1, 2, 3]]), "mask": mask, "pixels": pixels})
    assert torch.equal(short[rows.mask], long[padded.mask])
    assert torch.equal(rows.positions[rows.mask], padded.positions[padded.mask])


@pytest.mark.parametrize(
    ("name", "settings", "batch", "message"),
    [
        ("patch", {}, {"pixels": torch.zeros(1, 1, 4, 6)}, r"images are \(1, 4, 6\)"),
        ("patch", {}, {"pixels": torch.zeros(1, 3, 4, 4)}, "channels"),
        ("masked_patch", {}, {"pixels": torch.zeros(1, 1, 4, 4), "masked_patches": torch.zeros(1, 5) > 0}, "4"),
        ("word_patch", {"vocabulary": 5, "text": 1}, {"ids": torch.zeros(1, 2, dtype=torch.long)}, "2 tokens"),
        ("word_patch", {"vocabulary": 5}, {"ids": torch.zeros(1, 2, dtype=torch.long),
                                           "documents": torch.zeros(1, 2, dtype=torch.long)}, "pack"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name, settings, batch, message):
    with pytest.raises(ValueError, match=message):
        run(part(name, 4, **settings), batch)
