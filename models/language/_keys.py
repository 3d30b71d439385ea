"""The output rows of a language model as keys: are logits W h at all, which keys lie together, what follows from it.

    logits = W h (+ b)        h: what the output head reads, behind the final norm; w_v: the key of token v
    |logit_u - logit_v| <= |w_u - w_v| |h|                        close keys cannot be told apart by any query
    d logit_u = lr (w_u . w_v - sum_k p_k w_u . w_k)              one step on token v, of cross-entropy, h alone

The last one says that all neighbours of v rise with it; both follow from the first, and their form is ours.

Source: Peng, An and Shang, 2024, arXiv:2410.02284, for the idea and the split of ranks into main clusters and others.
k-means++: Arthur and Vassilvitskii, 2007. The comparison at equal ranks, the push and the step's formula are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.language._reader import Reader

__all__ = ["BrokenIdentity", "Clusters", "Identity", "check_identity", "gain", "key_clusters", "leak", "lift", "push",
           "spurious"]  # fmt: skip

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest logit
COARSE = 3e-2  # likewise, of a model in half precision
CHUNK = 8192  # keys whose distances are held at once


class BrokenIdentity(ValueError):
    """A model's logits are not made of its keys in a way that is known here."""


@dataclass(frozen=True)
class Identity:
    """How a model's logits follow from its keys: cap * tanh((scale * (W h + b)) / cap), without what is absent."""

    difference: float  # largest, over the largest logit
    plain: float  # the same of W h alone
    bias: bool = False
    scale: float = 1.0
    cap: float | None = None

    @property
    def kind(self) -> str:
        """In words.

        >>> Identity(0.0, 0.5, bias=True).kind
        'W h + b'
        """
        form = "W h + b" if self.bias else "W h"
        if self.scale != 1.0:
            form = f"{self.scale:.4g} ({form})" if self.bias else f"{self.scale:.4g} {form}"
        return form if self.cap is None else f"{self.cap:g} tanh({form} / {self.cap:g})"


def check_identity(reader: Reader, rows: Sequence[Sequence[int]], tolerance: float | None = None) -> Identity:
    """Compare W h with the model's logits on rows of ids.

    A bias counts; one positive factor, or the soft cap that the configuration names, keeps the order and is reported.
    What the head reads is caught at the head itself: a norm or a factor before it changes nothing.

    Args:
        tolerance: of the largest logit; by default 1e-4, and 3e-2 in half precision.

    Raises:
        BrokenIdentity: none of these; says how far off the nearest form is.
    """
    if reader.head is None or getattr(reader.head, "weight", None) is None:
        raise BrokenIdentity("the model shows no output rows (get_output_embeddings): its keys cannot be read")
    reading, keys = reader.read(rows), reader.head.weight.detach()
    if reading.query is None:
        raise BrokenIdentity("the model does not call its output head, so what its keys meet cannot be read")
    if tolerance is None:
        tolerance = CLOSE.get(keys.dtype, COARSE)
    bias = getattr(reader.head, "bias", None)
    plain = reading.query @ keys.float().T
    whole = plain if bias is None else plain + bias.detach().float()
    logits, largest = reading.logits, reading.logits.abs().max().clamp(min=1e-12)
    off = lambda made: float((made - logits).abs().max() / largest)
    forms = [Identity(off(whole), off(plain), bias is not None)]
    scale = float((whole * logits).sum() / whole.square().sum().clamp(min=1e-12))
    if scale > 0:
        forms.append(Identity(off(scale * whole), off(plain), bias is not None, scale))
    config = getattr(reader.model, "config", None)
    if cap := getattr(config, "final_logit_softcapping", None):
        forms.append(Identity(off(cap * torch.tanh(whole / cap)), off(plain), bias is not None, cap=cap))
    found = next((form for form in forms if form.difference <= tolerance), None)
    if found is None:
        best = min(forms, key=lambda form: form.difference)
        raise BrokenIdentity(
            f"logits are not W h: they differ by {forms[0].difference:.2g} of the largest one on {len(rows)} rows, and "
            f"by {best.difference:.2g} from the nearest form, {best.kind}; {tolerance:.0e} is allowed. Its keys "
            f"say nothing about it: use another decoding"
        )
    return found


@dataclass(frozen=True)
class Clusters:
    """Keys that lie together.

    Args:
        labels: (V,) int64; -1 for what was left out.
        centers: (C, D) float32.
        inertia: sum of squared distances after each iteration.
    """

    labels: Tensor
    centers: Tensor
    inertia: list[float]

    def sizes(self) -> Tensor:
        """(C,) keys of each."""
        return torch.bincount(self.labels[self.labels >= 0], minlength=len(self.centers))


def key_clusters(
    keys_VD: Tensor, clusters: int, seed: int = 0, kept_V: Tensor | None = None, cosine: bool = False,
    iterations: int = 50, tolerance: float = 1e-4,
) -> Clusters:  # fmt: skip
    """k-means of the keys, from k-means++; a cluster that runs empty takes the farthest key.

    Args:
        clusters: the paper has 1,024 of 128,256 keys and 512 of 50,304.
        kept_V: bool, keys that count: padded and reserved rows would make clusters of junk.
        cosine: of keys of length 1; the paper's are raw.
        iterations: at most.
        tolerance: stop when the inertia falls by less than this share.

    Raises:
        ValueError: fewer keys than clusters, or keys that are not finite.
    """
    kept = torch.ones(len(keys_VD), dtype=torch.bool) if kept_V is None else kept_V.cpu()
    places = kept.nonzero()[:, 0].to(keys_VD.device)
    x = keys_VD.detach()[places].float()
    if not 1 <= clusters <= len(x):
        raise ValueError(f"{clusters} clusters cannot be made of {len(x)} keys; ask for 1 to {len(x)}")
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x).all(-1)).sum())
        raise ValueError(f"{bad} of {len(x)} keys are not finite: the model's output rows are broken")
    if cosine:
        x = torch.nn.functional.normalize(x, dim=-1)
    middle = x.mean(0)  # distances of large, nearly equal keys would drown in rounding
    x = x - middle
    centers, inertia = _seeded(x, clusters, seed), []
    for _ in range(iterations):
        label, distance = _nearest(x, centers)
        _fill(label, distance, clusters)
        centers = _means(x, label, clusters)
        inertia.append(float(_squared(x, centers, label).sum()))
        if len(inertia) > 1 and inertia[-2] - inertia[-1] <= tolerance * inertia[-2]:
            break
    labels = torch.full((len(keys_VD),), -1, dtype=torch.int64)
    labels[places.cpu()] = label.cpu()
    return Clusters(labels, (centers + middle).cpu(), inertia)


def _seeded(x: Tensor, clusters: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(x), (), generator=random))]
    to = lambda place: _squared(x, x[place : place + 1], torch.zeros(len(x), dtype=torch.int64, device=x.device))
    distance = to(chosen[0])
    while len(chosen) < clusters:
        until = distance.cumsum(0)
        chance = float(torch.rand((), generator=random, dtype=torch.float64)) * float(until[-1])
        # all the rest are copies of what is chosen: any will do, `_fill` parts them
        place = int(torch.searchsorted(until, chance, right=True)) if float(until[-1]) > 0 else len(chosen)
        chosen.append(min(place, len(x) - 1))
        distance = torch.minimum(distance, to(chosen[-1]))
    return x[chosen]


def _nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """(V,) number of the nearest center and squared distance to it."""
    label = torch.empty(len(x), dtype=torch.int64, device=x.device)
    size = centers.square().sum(-1)
    for part in _parts(len(x)):
        label[part] = (size - 2 * x[part] @ centers.T).argmin(-1)
    return label, _squared(x, centers, label)


def _squared(x: Tensor, centers: Tensor, label: Tensor) -> Tensor:
    """(V,) float64 squared distance of each key to the center of its label; the square of a difference cancels less."""
    found = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for part in _parts(len(x)):
        found[part] = (x[part] - centers[label[part]]).double().square().sum(-1)
    return found


def _parts(count: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]


def _fill(label: Tensor, distance: Tensor, clusters: int) -> None:
    """Give each empty cluster the farthest key of a cluster that has others; in place."""
    count = torch.bincount(label, minlength=clusters)
    for empty in (count == 0).nonzero()[:, 0].tolist():
        far = int(torch.where(count[label] > 1, distance, -1.0).argmax())
        count[label[far]] -= 1
        label[far], distance[far], count[empty] = empty, 0.0, 1


def _means(x: Tensor, label: Tensor, clusters: int) -> Tensor:
    total = torch.zeros(clusters, x.shape[1], dtype=torch.float64, device=x.device)
    for part in _parts(len(x)):
        total.index_add_(0, label[part], x[part].double())
    return (total / torch.bincount(label, minlength=clusters)[:, None]).float()


def spurious(correct_PN: Tensor, cluster_PN: Tensor, main: int = 10, strata: int = 10) -> dict[str, float]:
    """Are tokens behind the first ones worse for lying in a cluster of the first ones?

    Args:
        correct_PN: bool, whether the answer that begins with the token at each rank is right, of P prompts.
        cluster_PN: int, the cluster of that token.
        main: ranks whose clusters are the main ones; the paper's 10.
        strata: parts of all ranks, within which the two groups are compared: rank is a confounder.

    Returns:
        acc_, rank_ (from 1) and share_ of `main` and `other`, over the ranks behind the first; matched: the accuracy
        of other minus main at equal ranks, strata weighted as Mantel and Haenszel do; NaN where a group is empty.

    Raises:
        ValueError: shapes differ, or no rank is left behind the first ones.
    """
    prompts, ranks = correct_PN.shape
    if correct_PN.shape != cluster_PN.shape or not 0 < main < ranks:
        raise ValueError(f"correct {tuple(correct_PN.shape)} and cluster {tuple(cluster_PN.shape)} must have one shape "
                         f"with more than {main} ranks")  # fmt: skip
    right = correct_PN[:, main:].double()
    inside = (cluster_PN[:, main:, None] == cluster_PN[:, None, :main]).any(-1)
    rank = torch.arange(main + 1, ranks + 1, dtype=torch.float64).expand(prompts, -1)
    found = {"acc_first": float(correct_PN[:, :main].double().mean())}
    for name, group in (("main", inside), ("other", ~inside)):
        found |= {f"acc_{name}": _mean(right[group]), f"rank_{name}": _mean(rank[group])}
        found[f"share_{name}"] = float(group.double().mean())
    stratum = ((rank - 1) * strata // ranks).long()
    total = weights = 0.0
    for number in stratum.unique().tolist():
        here = stratum == number
        both = [right[here & inside], right[here & ~inside]]
        sizes = [len(part) for part in both]
        if all(sizes):
            weight = sizes[0] * sizes[1] / sum(sizes)
            total, weights = total + weight * float(both[1].mean() - both[0].mean()), weights + weight
    return found | {"matched": total / weights if weights else math.nan, "matched_weight": weights}


def push(keys_VD: Tensor, listed_D: Tensor, clean_D: Tensor) -> Tensor:
    """(V,) how far the list moves each token's logit, w . (h_listed - h_clean), centred over the vocabulary."""
    moved = keys_VD.float() @ (listed_D - clean_D).float()
    return moved - moved.mean()


def lift(push_V: Tensor, labels_V: Tensor) -> Tensor:
    """(C,) mean push of each cluster's tokens; NaN for a cluster without any."""
    kept, labels = push_V[labels_V >= 0].double(), labels_V[labels_V >= 0]
    total = torch.zeros(int(labels_V.max()) + 1, dtype=torch.float64).index_add_(0, labels, kept)
    return (total / torch.bincount(labels, minlength=len(total))).float()


def gain(keys_VD: Tensor, query_D: Tensor, token: int, lr: float, bias_V: Tensor | None = None) -> Tensor:
    """(V,) by how much logits rise when one step of cross-entropy on `token` moves the query and no key.

    >>> keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> gain(keys, torch.zeros(2), token=0, lr=2.0)
    tensor([ 1.,  1., -1., -1.])
    """
    logits = keys_VD @ query_D
    share = (logits if bias_V is None else logits + bias_V).softmax(-1)
    return lr * (keys_VD @ (keys_VD[token] - share @ keys_VD))


def leak(gain_NV: Tensor, trained_N: Sequence[int], labels_V: Tensor, rank_NV: Tensor) -> dict[str, float]:
    """What training of one token for each context gave that token, its cluster mates, and controls of equal rank.

    Args:
        gain_NV: change of the logits of each context, centred here over the tokens that have a cluster.
        trained_N: the token that each context was trained on.
        labels_V: clusters; -1 is left out.
        rank_NV: rank of each token before training; the control of a mate is the token nearest to it in rank that is
            of no cluster of a trained token, taken once a context.

    Returns:
        trained, mates, control: mean gains; leak: mates / trained; leak_control: control / trained.
    """
    kept, of_trained = labels_V >= 0, torch.isin(labels_V, labels_V[torch.tensor(list(trained_N))])
    centred = gain_NV - gain_NV[:, kept].mean(-1, keepdim=True)
    own, mates, control = [], [], []
    for row, token in enumerate(trained_N):
        own.append(centred[row, token])
        free = (kept & ~of_trained).clone()
        for mate in (labels_V == labels_V[token]).nonzero()[:, 0].tolist():
            if mate == token or not bool(free.any()):
                continue
            away = (rank_NV[row] - rank_NV[row, mate]).abs().double().masked_fill(~free, torch.inf)
            twin = int(away.argmin())
            free[twin] = False
            mates.append(centred[row, mate])
            control.append(centred[row, twin])
    means = [_mean(torch.stack(part).double()) if part else math.nan for part in (own, mates, control)]
    found = dict(zip(("trained", "mates", "control"), means, strict=True))
    over = lambda part: part / means[0] if means[0] else math.nan
    return found | {"leak": over(means[1]), "leak_control": over(means[2])}


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else math.nan
