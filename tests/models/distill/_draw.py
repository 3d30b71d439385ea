"""Made-up signals for the tests of distillation."""

import torch

from models.distill._maths import mask_scores
from models.distill._signals import LISTS, Shape, Signals

SMALL = Shape(layers=2, width=8, heads=2, vocabulary=11, classes=3)


def signals(
    seed: int, shape: Shape = SMALL, lengths: tuple[int, ...] = (5, 3), padding: float | None = None
) -> Signals:
    """Everything a model can show, float64; `padding` is what stands at places that are not real."""
    generator = torch.Generator().manual_seed(seed)
    rows, places = len(lengths), max(lengths)
    mask = torch.arange(places) < torch.tensor(lengths)[:, None]

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(rows, *size, generator=generator).double()

    def tokens(width: int) -> torch.Tensor:
        x = draw(places, width)
        return x if padding is None else x.masked_fill(~mask[:, :, None], padding)

    def heads() -> torch.Tensor:
        return tokens(shape.width).unflatten(-1, (shape.heads, -1)).transpose(1, 2)

    lists = {"hidden": [tokens(shape.width) for _ in range(shape.layers)]}
    lists |= {name: [heads() for _ in range(shape.layers)] for name in ("query", "key", "value")}
    pairs = zip(lists["query"], lists["key"], strict=True)
    lists["scores"] = [mask_scores(q @ k.mT / (shape.width // shape.heads) ** 0.5, mask) for q, k in pairs]
    assert set(lists) == set(LISTS)
    return Signals(
        mask,
        logits=tokens(shape.vocabulary) if shape.vocabulary else None,
        task=draw(shape.classes) if shape.classes else None,
        hard=draw(1)[:, 0].abs(),
        embedding=tokens(shape.width),
        spans=torch.arange(places).div(2, rounding_mode="floor").expand(rows, -1),
        **lists,
    )


def by_hand(*numbers: float) -> list[torch.Tensor]:
    """One layer of one head of width 1 over these places."""
    return [torch.tensor(numbers).view(1, 1, len(numbers), 1)]
