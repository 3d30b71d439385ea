"""MPT-Rec: shared and specific experts kept apart by an adversary; a new task tunes one prompt on the frozen whole.

Stage 1, the backbone, on a row's vector e = [dense ; embeddings]:

    s   = F_s(e),  p_t = F_t(e)                        shared and specific representation
    h_t = g_t[0] (p_t * q_t) + g_t[1] s                g_t = softmax(G_t e), q_t the task's embedding
    y_t = tower_t(h_t),  y_t^gen = tower_t(s)          fused (served) and generic prediction, by the same tower
    c   = log_softmax(A GRL_alpha(s) + b)              which pseudo-domain is the row from?

    L1 = sum_t BCE(y_t) + lambda_gen sum_t BCE(y_t^gen) + lambda_adv NLL(c, k) + rho_e/2 |E|^2 + rho_w/2 |W|^2

k(n) is the task that fits row n best, k = argmin_t BCE(y_t(n)), at random before the first assignment. GRL_alpha
reverses the gradient, with alpha = 2 / (1 + exp(-10 progress)) - 1: s unlearns what tells the domains apart.

Stage 2, the head of a new task; everything above is frozen:

    a     = softmax(P(e) . [q_1 ... q_T] / tau)        P: Linear, ReLU, Linear, LayerNorm
    p_new = sum_t a_t p_t                              the raw p_t
    h     = g[0] (p_new * q_new) + g[1] s              g = softmax(G_new e)
    L2    = BCE(tower_new(h)) + rho_w/2 |W_tower|^2

Source: arXiv:2408.17214. Defaults: its Census-income settings. Ours: embeddings start Xavier-uniform, not N(0, 1);
alpha follows true progress (step / total steps); no adversary while a pseudo-domain holds less than 1 % of the rows;
rows without a label belong to no domain. On made-up data, the adversary hid the domain from a fresh reader of s only
where the classifier learned faster than the experts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend._inputs import Inputs
from models.recommend._layers import (
    Experts,
    Head,
    Joint,
    ParallelLinear,
    Towers,
    bce_per_row,
    bce_per_task,
    gate,
    half_square,
    named,
    require_frozen,
    reverse_gradient,
)

__all__ = ["MPTRec", "PromptHead"]

SMALLEST_SHARE = 0.01  # of rows in a pseudo-domain, for the adversary to run
NO_DOMAIN = -1


class MPTRec(nn.Module):
    """The backbone.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        tasks: T.
        embedding: width of a field's embedding.
        experts: widths of each expert; the last is r, the width of s, p_t and q_t.
        towers: hidden widths of each tower.
        dropout: of the experts' layers: one rate, or one for each.
        generic: lambda_gen.
        adversarial: lambda_adv; 0 switches the adversary off.
        embedding_penalty: rho_e, on whole tables; 0 skips the pass over them.
        weight_penalty: rho_w, on the weights (no biases) of experts and towers.
        assign_every: epochs between two assignments of pseudo-domains.

    The trainer sets the buffer `total` to the number of steps of the whole run before the first one, passes `domain`,
    and tells the domains' shares with `set_shares` after each assignment.
    """

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        tasks: int,
        embedding: int = 4,
        experts: Sequence[int] = (256, 128),
        towers: Sequence[int] = (64, 32),
        dropout: float | Sequence[float] = 0.0,
        generic: float = 0.9,
        adversarial: float = 0.1,
        embedding_penalty: float = 0.006,
        weight_penalty: float = 3e-5,
        assign_every: int = 1,
    ):
        super().__init__()
        self.tasks, self.tower_widths, self.assign_every = tasks, tuple(towers), assign_every
        self.generic, self.adversarial = generic, adversarial
        self.embedding_penalty, self.weight_penalty = embedding_penalty, weight_penalty
        self.inputs = Inputs(sizes, dense, embedding)
        self.first = Joint(self.inputs.width, [experts[0]] * (1 + tasks), plain=2 * tasks)
        self.experts = Experts(1 + tasks, experts, dropout)  # the shared one first
        self.bank = nn.Parameter(torch.randn(tasks, experts[-1]))  # q_t
        self.towers = Towers(tasks, experts[-1], towers)
        self.classifier = nn.Linear(experts[-1], tasks)
        nn.init.xavier_uniform_(self.classifier.weight)
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("total", torch.tensor(0))
        self.register_buffer("share", torch.full((tasks,), 1 / tasks))

    def forward(
        self, categorical: Tensor, numerical: Tensor, labels: Tensor, domain: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 and its terms; in training mode each call counts as one step.

        Args:
            categorical: (B, F) ids.
            numerical: (B, M) float in [0, 1].
            labels: (B, T) 1 or 0; NaN or negative where absent.
            domain: (B,) pseudo-domain of each row, or -1 for none; needed while training with the adversary.

        Raises:
            ValueError: the adversary trains, but no `domain` came.
        """
        if domain is None and self.training and self.adversarial:
            raise ValueError(
                "MPT-Rec's adversary needs every row's pseudo-domain; pass domain=, or set adversarial to 0"
            )
        s_BR, p_BTR, gate_BT2 = self._represent(categorical, numerical)
        per_task = bce_per_task(self.towers(self._fuse(s_BR, p_BTR, gate_BT2)), labels)
        loss, terms = per_task.sum(), named(per_task)
        if self.generic:
            generic = bce_per_task(self.towers(s_BR.unsqueeze(1).expand_as(p_BTR)), labels).sum()
            loss, terms["generic"] = loss + self.generic * generic, generic
        if self.adversarial and domain is not None:
            adversary = self._adversary(s_BR, domain)
            loss, terms["adversary"] = loss + self.adversarial * adversary, adversary
        if self.embedding_penalty:
            terms["embedding"] = half_square(*self.inputs.parameters())
            loss = loss + self.embedding_penalty * terms["embedding"]
        if self.weight_penalty:
            terms["weight"] = half_square(*self._penalised())
            loss = loss + self.weight_penalty * terms["weight"]
        if self.training:
            self.step += 1
        return loss, {"loss": loss, **terms}

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """Fused logits (B, T)."""
        return self.towers(self._fuse(*self._represent(categorical, numerical)))

    def score(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """Served probabilities (B, T), float32."""
        return self.logits(categorical, numerical).float().sigmoid()

    def alpha(self) -> Tensor:
        """Strength of the reversed gradient, in [0, 1): a scalar of the share of training done.

        A run whose `total` was never set counts as all but done.
        """
        progress = (self.step / self.total.clamp(min=1)).clamp(max=1)
        return 2 / (1 + torch.exp(-10 * progress)) - 1

    @torch.no_grad()
    def assign(self, categorical: Tensor, numerical: Tensor, labels: Tensor) -> Tensor:
        """k(n): the task of smallest loss among the row's present labels, or -1: (B,) int64. Needs eval mode."""
        require_frozen(self)
        loss_BT, present_BT = bce_per_row(self.logits(categorical, numerical), labels)
        best_B = loss_BT.masked_fill(~present_BT, torch.inf).argmin(-1)
        return best_B.where(present_BT.any(-1), NO_DOMAIN)

    def set_shares(self, domain: Tensor) -> None:
        """Tell the share of each pseudo-domain among all training rows, from the `domain` (N,) of every row."""
        count = torch.bincount(domain[domain >= 0], minlength=self.tasks)
        self.share.copy_(count / count.sum().clamp(min=1))

    @torch.no_grad()
    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the head reads: e (B, D), s (B, r) and p (B, T, r). Needs eval mode.

        Each row's values depend on that row alone. The same batch gives the same bits; in a batch of another size the
        last bits may differ, because the matrix product chooses its order of summation by size.
        """
        require_frozen(self)
        s_BR, p_BTR, _ = self._represent(categorical, numerical)
        return {"e": self.inputs(categorical, numerical), "s": s_BR, "p": p_BTR}

    def head(
        self,
        towers: Sequence[int] | None = None,
        temperature: float = 150.0,
        weight_penalty: float | None = None,
        mixture: str = "attention",
    ) -> "PromptHead":
        """The head of a new task; what is None is as in this backbone. Settings: see `PromptHead`."""
        return PromptHead(
            self.bank,
            self.inputs.width,
            self.tower_widths if towers is None else towers,
            temperature,
            self.weight_penalty if weight_penalty is None else weight_penalty,
            mixture,
        )

    def _represent(self, categorical: Tensor, numerical: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *first, gates_BO = self.first(self.inputs, categorical, numerical)
        s_B1R, p_BTR = self.experts(first).split([1, self.tasks], 1)
        return s_B1R.squeeze(1), p_BTR, gate(gates_BO, self.tasks)

    def _fuse(self, s_BR: Tensor, p_BTR: Tensor, gate_BT2: Tensor) -> Tensor:
        return fuse(p_BTR, self.bank, s_BR.unsqueeze(1), gate_BT2)

    def _adversary(self, s_BR: Tensor, domain: Tensor) -> Tensor:
        logit_BT = self.classifier(reverse_gradient(s_BR, self.alpha())).float()
        nll = F.cross_entropy(logit_BT, domain, ignore_index=NO_DOMAIN, reduction="sum")
        # With an almost empty domain the classifier is right by always naming another one, and teaches nothing.
        usable = self.share.min() >= SMALLEST_SHARE
        return nll / (domain >= 0).sum().clamp(min=1) * usable

    def _penalised(self) -> list[Tensor]:
        layers = [*self.experts.modules(), *self.towers.modules()]
        return [
            self.first.weight[: len(self.first.bias)],
            *(layer.weight for layer in layers if isinstance(layer, ParallelLinear)),
        ]


class PromptHead(Head):
    """The prompt of a new task: q_new, projection P, gate and tower. It reads e, s and p of `MPTRec.represent`.

    Args:
        bank: (T, r) task embeddings of the backbone; copied, and never trained.
        width: D of e.
        towers: hidden widths of the tower.
        temperature: tau of the attention over the bank.
        weight_penalty: rho_w, on the tower's weights.
        mixture: "attention" is the method. For comparison: "mean" fixes a = 1/T and has no P, "shared" is a tower on
            s alone.
    """

    def __init__(
        self,
        bank: Tensor,
        width: int,
        towers: Sequence[int],
        temperature: float,
        weight_penalty: float,
        mixture: str = "attention",
    ):
        super().__init__()
        if mixture not in ("attention", "mean", "shared"):
            raise ValueError(f"mixture must be attention, mean or shared; got {mixture!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; got {temperature}")
        self.mixture, self.temperature, self.weight_penalty = mixture, temperature, weight_penalty
        rank = bank.shape[-1]
        self.register_buffer("bank", bank.detach().clone())
        if mixture != "shared":
            self.prompt = nn.Parameter(torch.randn(rank))  # q_new
            self.gate = nn.Linear(width, 2, bias=False)
        if mixture == "attention":
            self.project = nn.Sequential(
                nn.Linear(width, rank // 2, bias=False),
                nn.ReLU(),
                nn.Linear(rank // 2, rank, bias=False),
                nn.LayerNorm(rank),
            )
        self.tower = Towers(1, rank, towers)

    def forward(self, represented: dict[str, Tensor]) -> Tensor:
        """The new task's logit (B,)."""
        return self.tower(self._hidden(represented).unsqueeze(1)).squeeze(1)

    def loss(self, represented: dict[str, Tensor], label: Tensor) -> Tensor:
        """L2 of the rows whose `label` (B,) is present."""
        weights = [layer.weight for layer in self.tower.modules() if isinstance(layer, ParallelLinear)]
        return super().loss(represented, label) + self.weight_penalty * half_square(*weights)

    def attention(self, e_BD: Tensor) -> Tensor:
        """a: how much the new task takes from each old one: (B, T), rows sum to 1."""
        if self.mixture == "mean":
            return e_BD.new_full((len(e_BD), len(self.bank)), 1 / len(self.bank))
        return (self.project(e_BD) @ self.bank.T / self.temperature).float().softmax(-1)

    def _hidden(self, represented: dict[str, Tensor]) -> Tensor:
        e_BD, s_BR, p_BTR = represented["e"], represented["s"], represented["p"]
        if self.mixture == "shared":
            return s_BR
        mixed_BR = (self.attention(e_BD).unsqueeze(-1) * p_BTR).sum(1)
        return fuse(mixed_BR, self.prompt, s_BR, gate(self.gate(e_BD), 1).squeeze(1))


def fuse(p: Tensor, q: Tensor, s: Tensor, gate: Tensor) -> Tensor:
    """h = g[0] (p * q) + g[1] s, for one task (B, r) or for all (B, T, r)."""
    return gate[..., :1] * (p * q) + gate[..., 1:] * s
