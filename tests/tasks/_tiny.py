"""A model of a few hundred numbers and a source of made-up rows: what a run needs, at a hundredth of its cost."""

import torch
from torch import Tensor, nn

WORDS, LENGTH = 23, 12


class Block(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.dropout(self.outer(torch.relu(self.inner(self.norm(hidden)))))


class Tiny(nn.Module):
    """Two targets with counts of their own, a tied head, blocks in `layers`."""

    def __init__(self, width: int = 8, layers: int = 2, dropout: float = 0.0, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.word = nn.Embedding(WORDS, width)
        self.layers = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.head, self.pair = nn.Linear(width, WORDS), nn.Linear(width, 2)
        self.head.weight = self.word.weight

    def counts(self, labels_mlm, labels_sp, **batch) -> dict[str, Tensor]:
        return {"mlm": (labels_mlm >= 0).sum().float(), "sp": torch.tensor(float(len(labels_sp)))}

    def forward(self, ids, mask, labels_mlm, labels_sp, counts=None):
        counts = counts or self.counts(labels_mlm, labels_sp)
        hidden = self.word(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits = self.head(hidden + mean[:, None])
        mlm = nn.functional.cross_entropy(logits.flatten(0, 1), labels_mlm.flatten(), reduction="sum") / counts["mlm"]
        sp = nn.functional.cross_entropy(self.pair(mean), labels_sp, reduction="sum") / counts["sp"]
        correct = ((logits.argmax(-1) == labels_mlm) & (labels_mlm >= 0)).sum() / counts["mlm"]
        return mlm + sp, {"mlm": mlm, "sp": sp, "mlm_correct": correct}


class MadeUp:
    """Rows of 3 to 12 words, a pure function of (seed, number); the same row is masked anew in each epoch."""

    def __init__(self, size: int = 20, seed: int = 0, padding: int = 0):
        self.size, self.seed, self.padding = size, seed, padding
        self.fingerprint = f"made up {size} {seed}"
        self.seen: list[int] = []

    def __len__(self) -> int:
        return self.size

    def rows(self, indices) -> dict[str, Tensor]:
        self.seen += list(indices)
        rows = [self._row(index) for index in indices]
        length = max(len(ids) for ids, _, _ in rows) + self.padding
        fill = lambda values, value: torch.stack([
            torch.cat([row, torch.full((length - len(row),), value)]) for row in values
        ])  # fmt: skip
        ids = fill([ids for ids, _, _ in rows], 0)
        mask = fill([torch.ones(len(ids), dtype=torch.long) for ids, _, _ in rows], 0).bool()
        return {"ids": ids, "mask": mask, "labels_mlm": fill([labels for _, labels, _ in rows], -100),
                "labels_sp": torch.tensor([pair for _, _, pair in rows])}  # fmt: skip

    def _row(self, index: int):
        epoch, row = divmod(index, self.size)
        random = torch.Generator().manual_seed(1_000_003 * self.seed + row)
        ids = torch.randint(1, WORDS, (int(torch.randint(3, LENGTH, (), generator=random)),), generator=random)
        mask = torch.rand(len(ids), generator=torch.Generator().manual_seed(7919 * epoch + row)) < 0.3
        labels = ids.where(mask, torch.tensor(-100))
        return ids.masked_fill(mask, 0), labels, int(ids[0] % 2)
