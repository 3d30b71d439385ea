"""Alignment probe: in which layer a sentence lies nearest to its own translation, among many.

    h_l(x)      mean over the tokens of x of their hidden states after layer l; l = 0 are the embeddings
    accuracy@1  share of sentences whose translation has the highest cosine, in either direction
    centred     the same after the mean of each language's h_l is taken away

States of one language share a direction that says nothing but the language, and hides what else they say. Where several
are equally near, a hit counts for its share, so that a model which tells nothing apart scores 1 / N.

Source: ours; retrieval of translations as in Artetxe and Schwenk, 2019, arXiv:1812.10464; centring by language as in
Libovicky et al., 2020, arXiv:2004.05160.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from models.language._causal import Causal

__all__ = ["Probe"]

TIE = 1e-6  # of cosines: equal but for rounding


class Probe:
    """Pooled hidden states of one model, and what can be retrieved by them.

    Args:
        model: in evaluation mode.
        length: tokens of a sentence that are read.
        batch: sentences at a time.
    """

    def __init__(self, model: Causal, length: int, batch: int = 32):
        self.model, self.length, self.batch = model, length, batch

    @torch.inference_mode()
    def pooled(self, sentences: Sequence[Sequence[int]]) -> Tensor:
        """(L + 1, N, D) float32: each sentence's mean state after every layer.

        Raises:
            ValueError: a sentence has no token.
        """
        if empty := [number for number, ids in enumerate(sentences) if not len(ids)]:
            raise ValueError(f"{len(empty)} of {len(sentences)} sentences have no token, the first is {empty[0]}")
        order = sorted(range(len(sentences)), key=lambda number: -len(sentences[number]))
        found = [
            self._pool([sentences[n][: self.length] for n in order[start : start + self.batch]])
            for start in range(0, len(order), self.batch)
        ]
        back = torch.tensor(order).argsort()
        return torch.cat(found, 1)[:, back]

    def retrieval(self, first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Accuracy@1 by layer, from first to second and back, and the same centred: two (L + 1, 2).

        Args:
            first: N sentences, as token ids.
            second: their translations, in the same order.
        """
        both = list(zip(self.pooled(first), self.pooled(second), strict=True))
        plain = [accuracy(first_ND, second_ND) for first_ND, second_ND in both]
        centred = [accuracy(first_ND - first_ND.mean(0), second_ND - second_ND.mean(0)) for first_ND, second_ND in both]
        return torch.stack(plain), torch.stack(centred)

    def _pool(self, sentences: list[Sequence[int]]) -> Tensor:
        device = next(self.model.parameters()).device
        width = max(map(len, sentences))
        ids_BT = torch.zeros(len(sentences), width, dtype=torch.int64)
        mask_BT = torch.zeros(len(sentences), width, dtype=torch.bool)
        for number, ids in enumerate(sentences):
            ids_BT[number, : len(ids)] = torch.tensor(ids)
            mask_BT[number, : len(ids)] = True
        ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
        given = {"attention_mask": mask_BT.long(), "output_hidden_states": True, "use_cache": False}
        layers = self.model.body(input_ids=ids_BT, **given).hidden_states
        return torch.stack([mean(layer_BTD.float(), mask_BT).cpu() for layer_BTD in layers])


def mean(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over real tokens: (B, D).

    >>> mean(torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[3.]])
    """
    return (hidden_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)


def accuracy(first_ND: Tensor, second_ND: Tensor) -> Tensor:
    """Cosine retrieval both ways: (2,) shares in [0, 1].

    >>> vectors = torch.eye(3)
    >>> accuracy(vectors, vectors[[0, 2, 1]])
    tensor([0.3333, 0.3333])
    """
    cosine_NN = normalize(first_ND, dim=-1) @ normalize(second_ND, dim=-1).T
    return torch.stack([_hits(cosine_NN), _hits(cosine_NN.T)])


def _hits(cosine_NN: Tensor) -> Tensor:
    best_NN = cosine_NN >= cosine_NN.amax(1, keepdim=True) - TIE
    return (best_NN.diagonal() / best_NN.sum(1)).mean()
