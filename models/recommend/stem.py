"""STEM: every task has embeddings of its own beside shared ones, and reads other tasks' experts without changing them.

    f_t = expert_t(e_t),  f_s = expert_s(e_s)
    z_t = g_tt f_t + g_ts f_s + sum_{u != t} g_tu stop(f_u),  g_t = softmax(W_t (e_t + e_s) + b_t)
    y_t = sigmoid(tower_t(z_t)),  L = sum_t BCE(y_t)

stop() lets the value pass and no gradient, so the embeddings of task u belong to task u alone.
Source: Su et al., 2023, arXiv:2308.13537 (all forward, task-specific backward gate), with the sizes of its code: one
level, one expert per embedding set. The gates are one linear layer, as in the code of BAI-LAB/MPTRec.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.recommend._inputs import Inputs
from models.recommend._layers import Experts, GateHead, Joint, MultiTask, Towers, gate, mix, require_frozen

__all__ = ["STEM"]


class STEM(MultiTask):
    """Embedding sets, experts and towers per task, and one shared set.

    Args:
        sizes: rows of each categorical field's table; T + 1 tables each.
        dense: numerical columns.
        tasks: T.
        embedding: width of a field's embedding in each set.
        experts: widths of each expert.
        towers: hidden widths of each tower.
        dropout: after each hidden layer.
        norm: batch normalisation before each ReLU.
        dense_field: one Linear(dense, embedding) per set makes the numerical columns one more field.
    """

    weigh = staticmethod(torch.sum)

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        tasks: int,
        embedding: int = 10,
        experts: Sequence[int] = (512, 256, 128),
        towers: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        norm: bool = False,
        dense_field: bool = False,
    ):
        super().__init__()
        self.tasks, self.tower_widths, self.dropout, self.norm = tasks, tuple(towers), dropout, norm
        # The shared set comes last, as the experts do.
        self.inputs = nn.ModuleList(Inputs(sizes, dense, embedding, dense_field) for _ in range(tasks + 1))
        width = self.inputs[0].width
        self.first = nn.ModuleList(Joint(width, [experts[0], tasks + 1]) for _ in range(tasks))
        self.first.append(Joint(width, [experts[0]]))
        self.experts = Experts(tasks + 1, experts, dropout, norm)
        self.towers = Towers(tasks, experts[-1], towers, dropout, norm)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        return self.towers(mix_own(*self._experts(categorical, numerical)))

    @torch.no_grad()
    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the head reads: shared embeddings x = e_s (B, D), and all experts f (B, T + 1, H). Needs eval mode."""
        require_frozen(self)
        f_BNH, _ = self._experts(categorical, numerical)
        return {"x": self.inputs[-1](categorical, numerical), "f": f_BNH}

    def head(self, towers: Sequence[int] | None = None, dropout: float | None = None) -> GateHead:
        """A new gate on the shared embeddings, over all frozen experts, and a new tower.

        What is None is as in this backbone.
        """
        widths, rate = self.tower_widths if towers is None else towers, self.dropout if dropout is None else dropout
        return GateHead(self.inputs[-1].width, self.tasks + 1, self.experts.width, widths, rate, self.norm)

    def _experts(self, categorical: Tensor, numerical: Tensor) -> tuple[Tensor, Tensor]:
        """All experts (B, T + 1, H), and the gates (B, T, T + 1)."""
        firsts = [joint(inputs, categorical, numerical) for joint, inputs in zip(self.first, self.inputs, strict=True)]
        own_BO = torch.cat([logit for _, logit in firsts[:-1]], -1)
        weights = torch.cat([joint.rows(1) for joint in self.first[:-1]])  # each gate reads e_t + e_s
        shared_BO = self.inputs[-1].project(categorical, numerical, weights)
        f_BNH = self.experts([first for first, *_ in firsts])
        return f_BNH, gate(own_BO + shared_BO, self.tasks)


def mix_own(f_BNH: Tensor, gate_BTN: Tensor) -> Tensor:
    """z (B, T, H) from N = T + 1 experts: every task reads all of them, but moves only its own and the shared one."""
    tasks = gate_BTN.shape[1]
    own_TN = torch.eye(tasks, tasks + 1, dtype=torch.bool, device=gate_BTN.device)
    shared_BT1 = gate_BTN[..., -1:].to(f_BNH.dtype)
    own_BT1 = gate_BTN[..., :-1].diagonal(dim1=1, dim2=2).unsqueeze(-1).to(f_BNH.dtype)
    others_BTH = mix(gate_BTN.masked_fill(own_TN, 0)[..., :-1], f_BNH[:, :-1].detach())
    return own_BT1 * f_BNH[:, :-1] + shared_BT1 * f_BNH[:, -1:] + others_BTH
