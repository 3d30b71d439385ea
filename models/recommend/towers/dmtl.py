"""DMTL: two towers imitate a multi-task teacher of click and reading, trained beside them: no bait without reading.

    Teacher, over e = [x_u ; x_v]:  z_t = sum_i softmax(W_t e)_i f_i(e),  p_t = sigmoid(tower_t(z_t)),  t in {ctr, cvr}
        p_ctcvr = p_ctr p_cvr,   L_T = BCE(click, p_ctr) + BCE(click * reading, p_ctcvr)             of all impressions
    Student:  p_s = sigmoid(U(x_u) . V(x_v)),   L_S = mean KL(Bern(p*) || Bern(p_s)),   p* = stop_gradient(p_ctcvr)
    L = L_T + L_S

The student has no label of its own, and alone is served. Everything is computed from logits: p_ctcvr may be 1e-20.
Source: Zhao et al., 2021, arXiv:2102.07142; the paper's body could not be read: which output is imitated, that the
gradient stops there, and all sizes are ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend._layers import Experts, Towers, gate, mix
from models.recommend.towers._towers import Columns, Fields, Pair, masked_mean

__all__ = ["DMTL", "bernoulli_kl", "both_logit", "reading_labels"]

TARGETS = ("ctcvr", "cvr")


class DMTL(nn.Module):
    """Teacher and student in one.

    Args:
        user: fields of users.
        item: fields of items.
        items: I, the items that unseen impressions are drawn from.
        embedding: width of a field's vectors, of teacher and student apart.
        experts: of the teacher.
        expert_widths: of each expert's layers.
        tower_widths: hidden widths of the teacher's towers.
        widths: hidden layers of the student's towers.
        width: K of the student's vectors.
        history: whether users have histories.
        target: what the student imitates: "ctcvr", a click with reading, or "cvr", reading after a click.
        warm_up: steps of the teacher alone.
        negatives: random items that each row of a batch asks for, as impressions that nobody clicked.

    Attributes:
        towers: the student: what is served.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        user: Fields,
        item: Fields,
        items: int = 1,
        embedding: int = 16,
        experts: int = 4,
        expert_widths: tuple[int, ...] = (256, 128),
        tower_widths: tuple[int, ...] = (64, 32),
        widths: tuple[int, ...] = (256, 128),
        width: int = 64,
        history: bool = True,
        target: str = "ctcvr",
        warm_up: int = 0,
        negatives: int = 2,
    ):
        super().__init__()
        if target not in TARGETS or warm_up < 0 or negatives < 0:
            raise ValueError(f"DMTL needs target ctcvr or cvr, warm_up >= 0 and negatives >= 0; got {target!r}, "
                             f"{warm_up}, {negatives}")  # fmt: skip
        self.target, self.warm_up, self.negatives, self.items = target, warm_up, negatives, items
        sizes = (embedding, experts, tuple(expert_widths), tuple(tower_widths))
        self.teacher = Teacher(user, item, *sizes, history)
        self.towers = Pair(user, item, embedding, tuple(widths), width, history, cosine=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def optimizer(self, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        """Adam, teacher and student as two groups."""
        groups = [{"params": list(part.parameters())} for part in (self.teacher, self.towers)]
        return torch.optim.Adam(groups, learning_rate, weight_decay=weight_decay, fused=True)

    def user_vectors(self, *described: Tensor) -> Tensor:
        """The student's (B, K); see `Pair.user_vectors`."""
        return self.towers.user_vectors(*described)

    def item_vectors(self, item: Tensor, item_numbers: Tensor) -> Tensor:
        """The student's (N, K); see `Pair.item_vectors`."""
        return self.towers.item_vectors(item, item_numbers)

    def forward(
        self, user: Tensor, user_numbers: Tensor, item: Tensor, item_numbers: Tensor, click: Tensor, reading: Tensor,
        history: Tensor | None = None, history_numbers: Tensor | None = None, kept: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Loss in nats, and its terms.

        Args:
            user, user_numbers, history, history_numbers, kept: as of `Pair.user_vectors`.
            item, item_numbers: (B, ..) what was shown.
            click: (B,) 1 or 0.
            reading: (B,) 1 or 0; whatever it is where there was no click.
        """
        described = (user, user_numbers, history, history_numbers, kept)
        ctr, cvr = self.teacher(*described, item, item_numbers).unbind(-1)
        ctcvr = both_logit(ctr, cvr)
        both = torch.where(click > 0, reading, 0).float()
        terms = {
            "ctr": F.binary_cross_entropy_with_logits(ctr, click.float()),
            "ctcvr": F.binary_cross_entropy_with_logits(ctcvr, both),
        }
        imitated = (ctcvr if self.target == "ctcvr" else cvr).detach()
        student = (self.user_vectors(*described) * self.item_vectors(item, item_numbers)).sum(-1)
        terms["student"] = bernoulli_kl(imitated, student).mean()
        heed = (self.step >= self.warm_up).float()
        if self.training:
            self.step += 1
        return terms["ctr"] + terms["ctcvr"] + heed * terms["student"], terms


class Teacher(nn.Module):
    """MMoE of two tasks over both sides' fields together; logits of p_ctr and p_cvr (B, 2), float32."""

    def __init__(self, user: Fields, item: Fields, embedding: int, experts: int, widths, towers, history: bool):
        super().__init__()
        self.history = history
        self.users, self.items = Columns(user, embedding), Columns(item, embedding)
        width = self.users.width + (1 + history) * self.items.width
        self.splits = [widths[0]] * experts + [2 * experts]
        self.first = nn.Linear(width, sum(self.splits))
        self.experts, self.towers = Experts(experts, widths), Towers(2, widths[-1], towers)

    def forward(self, user, user_numbers, history, history_numbers, kept, item, item_numbers) -> Tensor:
        return self.judge(self.known(user, user_numbers, history, history_numbers, kept), item, item_numbers)

    def known(self, user, user_numbers, history=None, history_numbers=None, kept=None) -> list[Tensor]:
        """What is read of who asks: the fields (B, D), and with histories their mean (B, D')."""
        own = self.users(user, user_numbers)
        if not self.history:
            return [own]
        return [own, masked_mean(Pair.of_history(self.items, history, history_numbers), kept)]

    def judge(self, known: list[Tensor], item: Tensor, item_numbers: Tensor) -> Tensor:
        """Logits of p_ctr and p_cvr (B, 2) of the items (B, ..) for those who ask; one may ask for all of them."""
        e_BD = self.items(item, item_numbers)
        own, *read = (part.expand(len(e_BD), -1) for part in known)
        *first, gates = self.first(torch.cat([own, e_BD, *read], -1)).split(self.splits, -1)
        return self.towers(mix(gate(gates, 2), self.experts(first))).float()


def both_logit(a: Tensor, b: Tensor) -> Tensor:
    """logit of the product of two probabilities, given their logits: -log(e^-a + e^-b + e^-(a+b))."""
    return -torch.stack([-a, -b, -a - b]).logsumexp(0)


def bernoulli_kl(p_logit: Tensor, q_logit: Tensor) -> Tensor:
    """KL(Bern(p) || Bern(q)) of each pair of logits, in nats; its gradient by q's logit is q - p.

    >>> bernoulli_kl(torch.tensor([0.5, 0.2]).logit(), torch.tensor([0.25, 0.2]).logit())
    tensor([0.1438, 0.0000])
    """
    yes = F.logsigmoid(p_logit) - F.logsigmoid(q_logit)
    no = F.logsigmoid(-p_logit) - F.logsigmoid(-q_logit)
    return p_logit.sigmoid() * yes + (-p_logit).sigmoid() * no


def reading_labels(click: Tensor, duration: Tensor, theta: float) -> Tensor:
    """Reading of each impression (N,): 1 where it was clicked and lasted longer than theta, else 0.

    Args:
        click: (N,) 1 or 0.
        duration: (N,) in the unit of theta; whatever it is where there was no click.
    """
    return ((click > 0) & (duration > theta)).float()
