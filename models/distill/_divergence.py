"""Divergences between two distributions over words, exact and without holding tokens x vocabulary.

With p = softmax(t / tau) of the teacher, q = softmax(s / tau) of the student:

    forward        KL(p || q)                                            covers all that the teacher might say
    reverse        KL(q || p)                                            settles on what it says most
    jsd            b KL(p || m) + (1 - b) KL(q || m),  m = b p + (1 - b) q
    skew_forward   KL(p || m),                         m = a p + (1 - a) q
    skew_reverse   KL(q || m),                         m = (1 - a) p + a q
    variation      1/2 sum |p - q|

Each is D = sum_v d_v with a known r_v = q_v dD/dq_v, whence dD/d(s / tau) = r - q sum r: no graph is kept. A chunk of
tokens at a time forms its logits, adds its part to the loss and to the gradients of states and head, and forgets them;
the backward pass only multiplies what is ready. Over shards of the vocabulary the sums are all-reduced.

Sources: JSD as in Agarwal et al., 2023, arXiv:2306.13649; skew as in Ko et al., 2024, arXiv:2402.03898; gradients and
the order of work are ours.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from models.distill._words import TopK, Words, finish

__all__ = ["KINDS", "Divergence", "check_temperature", "chosen_log_probs", "word_divergence"]

CHUNK = {"cpu": 2**22}  # logits at a time: 16 MiB of float32, which the allocator keeps
LARGE_CHUNK = 2**26  # elsewhere: enough rows to fill an accelerator
LOWEST = -1e30  # log-probability of the impossible: 0 * -1e30 is 0, where 0 * -inf is NaN

Terms = tuple[Tensor, Tensor]  # d and r: (n, V) each; log_p may be overwritten on the way


def _forward(log_p: Tensor, log_q: Tensor, mix: float) -> Terms:
    p = log_p.exp()
    return log_p.sub_(log_q).mul_(p), p.neg_()


def _reverse(log_p: Tensor, log_q: Tensor, mix: float) -> Terms:
    d = log_p.neg_().add_(log_q).mul_(log_q.exp())
    return d, d


def _jsd(log_p: Tensor, log_q: Tensor, mix: float) -> Terms:
    log_m = torch.logaddexp(log_p + math.log(mix), log_q + math.log1p(-mix))
    r = (log_q - log_m).mul_(log_q.exp()).mul_(1 - mix)
    return torch.add(r, (log_p - log_m).mul_(log_p.exp()), alpha=mix), r


def _skew_forward(log_p: Tensor, log_q: Tensor, mix: float) -> Terms:
    log_m = torch.logaddexp(log_p + math.log(mix), log_q + math.log1p(-mix))
    p = log_p.exp()
    return log_p.sub_(log_m).mul_(p), p.mul_((log_q - log_m).exp_()).mul_(mix - 1)


def _skew_reverse(log_p: Tensor, log_q: Tensor, mix: float) -> Terms:
    log_m = torch.logaddexp(log_p + math.log1p(-mix), log_q + math.log(mix))
    q, apart = log_q.exp(), log_q - log_m
    d = q * apart
    return d, torch.sub(d, q.mul_(apart.exp_()), alpha=mix)


def _variation(log_p: Tensor, log_q: Tensor, mix: float) -> Terms:
    q = log_q.exp()
    apart = (q - log_p.exp()).div_(2)
    return apart.abs(), apart.sign().mul_(q).div_(2)


KINDS: dict[str, Callable[[Tensor, Tensor, float], Terms]] = {
    "forward": _forward,
    "reverse": _reverse,
    "jsd": _jsd,
    "skew_forward": _skew_forward,
    "skew_reverse": _skew_reverse,
    "variation": _variation,
}
MIXED = ("jsd", "skew_forward", "skew_reverse")


def check_temperature(temperature: float) -> float:
    """The temperature, if it can be one.

    Raises:
        ValueError: it is no number above 0, or has no end.
    """
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise ValueError(f"a temperature divides logits and must be above 0, and finite; got {temperature!r}")
    return temperature


@dataclass(frozen=True)
class Divergence:
    """Which divergence, at which temperature.

    Args:
        kind: one of KINDS.
        mix: b or a above, in (0, 1); the others ignore it.
        temperature: of both sides; the value is multiplied by its square, which keeps gradients of one size.

    Raises:
        ValueError: an unknown kind, a mix or temperature out of range.
    """

    kind: str = "forward"
    mix: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"no divergence {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.kind in MIXED and not 0 < self.mix < 1:
            raise ValueError(
                f"{self.kind} mixes both sides by a share between 0 and 1, without the ends; got {self.mix}. "
                "At an end it vanishes or is a plain divergence: use forward or reverse"
            )
        check_temperature(self.temperature)

    def compare(self, student: Tensor, teacher: Tensor | TopK, group=None) -> tuple[Tensor, Tensor]:
        """D (n,) and dD/d(student) (n, V) of logits that are already divided by the temperature, without its square."""
        log_q = _log_softmax(student, group)
        if isinstance(teacher, TopK):
            if teacher.rest:
                return self._compare_with_rest(log_q, teacher)
            log_p = torch.full_like(log_q, LOWEST)
            log_p.scatter_(-1, teacher.ids, teacher.log_probs.to(log_q.dtype).log_softmax(-1))
        else:
            log_p = _log_softmax(teacher, group)
        d, r = KINDS[self.kind](log_p, log_q, self.mix)
        value, total = _sum(torch.stack([d.sum(-1), r.sum(-1)]), group)
        return value, torch.addcmul(r, log_q.exp_(), total[:, None], value=-1)

    def _compare_with_rest(self, log_q: Tensor, teacher: TopK) -> tuple[Tensor, Tensor]:
        """All words but k are one outcome; what pulls at it is shared among them as the student shares it."""
        floor = math.log(torch.finfo(log_q.dtype).tiny)
        outside = log_q.scatter(-1, teacher.ids, -math.inf)
        rest_q = outside.logsumexp(-1, keepdim=True).clamp_(min=floor)
        kept_p = teacher.log_probs.to(log_q.dtype)
        left = -torch.expm1(kept_p.logsumexp(-1, keepdim=True).clamp_(max=0))
        log_p = torch.cat([kept_p, left.log().clamp_(min=floor)], -1)
        few_q = torch.cat([log_q.gather(-1, teacher.ids), rest_q], -1)
        d, r = KINDS[self.kind](log_p, few_q, self.mix)
        few = r - few_q.exp() * r.sum(-1, keepdim=True)
        slope = outside.sub_(rest_q).exp_().mul_(few[:, -1:])
        return d.sum(-1), slope.scatter_(-1, teacher.ids, few[:, :-1])


def word_divergence(
    student: Tensor | Words,
    teacher: Tensor | Words | TopK,
    which: Divergence | None = None,
    weights: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    rows: int | None = None,
) -> Tensor:
    """sum_n w_n tau^2 D_n over tokens: a scalar, in nats for w = 1 / N. Gradients reach the student alone.

    Equal to the plain computation in value and gradients, in float32 or wider whatever the logits' type.

    Args:
        student: logits (..., V), or Words, of which no more than `rows` logits are formed at once.
        teacher: the same places.
        which: the forward KL at temperature 1 by default.
        weights: (...,) constants; tokens that weigh 0 are never computed. By default 1 / N: the mean, 0 over no token.
        group: the ranks that hold a share of the vocabulary each, in logits, head and bias; states are whole, and so is
            their gradient.
        rows: tokens at a time; by default as many as a fixed number of logits allows.

    Raises:
        ValueError: vocabularies or places that differ; most likely words at another temperature, or where the
            divergence is infinite or sharded.
    """
    which = which or Divergence()
    _check(student, teacher, which, group)
    student, teacher = _flat(student), _flat(teacher)
    states, count = _states(student), student.shape[0]
    device, wide = states.device, torch.promote_types(states.dtype, torch.float32)
    if weights is None:
        weights = torch.full((count,), 1 / max(count, 1), dtype=wide, device=device)
    else:
        weights = weights.detach().flatten()
        if not bool((counts := weights != 0).all()):
            student, teacher, weights = student[counts], teacher[counts], weights[counts]
    student, teacher = _cast(student, device.type), _cast(teacher, device.type)
    job = _Job(teacher.detach(), which, weights, group, rows, torch.is_grad_enabled())
    with torch.autocast(device.type, enabled=False):
        if isinstance(student, Words):
            return _Fused.apply(student.hidden, student.weight, student.bias, (student.scale, student.cap), job)
        return _Fused.apply(student, None, None, (1.0, None), job)


def chosen_log_probs(logits: Tensor | Words, ids: Tensor, temperature: float = 1.0, rows: int | None = None) -> Tensor:
    """log softmax(logits / tau) at the words `ids`: (...,) for (..., V) logits and (...,) ids, with gradients.

    Of Words, no more than `rows` logits are formed at once: in the forward pass and, again, in the backward one.
    """
    if not isinstance(logits, Words):
        wide = torch.promote_types(logits.dtype, torch.float32)
        return (logits.to(wide) / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    device = logits.hidden.device.type
    flat = _cast(_flat(logits), device)
    with torch.autocast(device, enabled=False):
        chosen = _Chosen.apply(
            flat.hidden, flat.weight, flat.bias, (flat.scale, flat.cap), ids.flatten(), temperature, rows
        )
    return chosen.view(ids.shape)


@dataclass(frozen=True)
class _Job:
    """What does not change from chunk to chunk."""

    teacher: Tensor | Words | TopK  # (N, V)
    which: Divergence
    weights: Tensor  # (N,)
    group: dist.ProcessGroup | None
    rows: int | None
    train: bool  # whether gradients are wanted at all


class _Head:
    """Logits of the student, a chunk at a time, and the gradients that grow from theirs."""

    def __init__(self, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple, wanted: list[bool]):
        self.hidden, self.bias, (self.scale, self.cap), self.wanted = hidden, bias, shape, wanted
        self.weight = None if weight is None else weight.to(hidden.dtype)
        self.dtype = torch.promote_types(hidden.dtype, torch.float32)
        exact = {"dtype": self.dtype, "device": hidden.device}
        self.gradients = [
            torch.empty_like(hidden) if wanted[0] else None,
            torch.zeros(weight.shape, **exact) if wanted[1] else None,
            torch.zeros(len(weight), **exact) if wanted[2] else None,
        ]

    def chunks(self, rows: int | None) -> Iterator[slice]:
        vocabulary = self.hidden.shape[-1] if self.weight is None else len(self.weight)
        rows = rows or max(1, CHUNK.get(self.hidden.device.type, LARGE_CHUNK) // vocabulary)
        for start in range(0, len(self.hidden), rows):
            yield slice(start, start + rows)

    def logits(self, part: slice) -> Tensor:
        return _logits(self.hidden[part], self.weight, self.bias, self.scale, self.cap, self.dtype)

    def grow(self, part: slice, logits: Tensor, slope: Tensor) -> None:
        """Add what follows from the gradient in these logits; overwrites it."""
        if self.cap is not None:
            slope *= 1 - (logits / self.cap).square_()
        if self.scale != 1:
            slope *= self.scale
        if self.wanted[2]:
            self.gradients[2] += slope.sum(0)
        slope = slope.to(self.hidden.dtype)
        if self.weight is None:
            self.gradients[0][part] = slope
            return
        if self.wanted[0]:
            torch.mm(slope, self.weight, out=self.gradients[0][part])
        if self.wanted[1]:
            if slope.dtype == self.dtype:
                self.gradients[1].addmm_(slope.T, self.hidden[part])
            else:  # the sum over chunks is float32 also where the product is not
                self.gradients[1] += torch.mm(slope.T, self.hidden[part])


class _Fused(torch.autograd.Function):
    """word_divergence; gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, shape, job):
        wanted = [job.train and need for need in ctx.needs_input_grad[:3]]
        head, which = _Head(hidden, weight, bias, shape, wanted), job.which
        weights, tau = job.weights.to(head.dtype), which.temperature
        teacher = job.teacher
        if isinstance(teacher, Words):
            teacher = replace(teacher, weight=teacher.weight.to(teacher.hidden.dtype))
        total = torch.zeros((), dtype=head.dtype, device=hidden.device)
        for part in head.chunks(job.rows):
            logits = head.logits(part)
            value, slope = which.compare(
                _divide(logits, tau), _teacher_logits(teacher[part], tau, head.dtype), job.group
            )
            total += tau**2 * torch.dot(weights[part], value)
            if any(wanted):
                slope *= tau * weights[part, None]
                head.grow(part, logits, slope)
        if job.group is not None and weight is not None and wanted[0]:
            dist.all_reduce(head.gradients[0], group=job.group)
        ctx.save_for_backward(*head.gradients)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        grown = [
            None if gradient is None else (gradient * upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *grown, None, None


class _Chosen(torch.autograd.Function):
    """chosen_log_probs of Words; the backward pass forms the logits again, as each token has a gradient of its own."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, shape, ids, tau, rows):
        head = _Head(hidden, weight, bias, shape, [False] * 3)
        parts = [
            _divide(head.logits(part), tau).log_softmax(-1).gather(-1, ids[part, None])[:, 0]
            for part in head.chunks(rows)
        ]
        ctx.save_for_backward(hidden, weight, bias, ids)
        ctx.shape, ctx.tau, ctx.rows = shape, tau, rows
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=head.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        hidden, weight, bias, ids = ctx.saved_tensors
        head = _Head(hidden, weight, bias, ctx.shape, list(ctx.needs_input_grad[:3]))
        for part in head.chunks(ctx.rows):
            logits, pulled = head.logits(part), upstream[part, None] / ctx.tau
            slope = _divide(logits, ctx.tau).softmax(-1).mul_(-pulled)
            head.grow(part, logits, slope.scatter_add_(-1, ids[part, None], pulled))
        grown = [
            None if gradient is None else gradient.to(x.dtype)
            for gradient, x in zip(head.gradients, (hidden, weight, bias), strict=True)
        ]
        return *grown, None, None, None, None


def _check(student, teacher, which: Divergence, group) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}: both need "
            "the same places and words. If vocabularies are padded, keep the true words of both; if tokenizers differ, "
            "train on the teacher's texts instead"
        )
    if not isinstance(teacher, TopK):
        return
    if teacher.temperature != which.temperature:
        raise ValueError(
            f"the teacher's most likely words were kept at temperature {teacher.temperature}, but the divergence is at "
            f"{which.temperature}; use that one, or keep them anew"
        )
    if group is not None:
        raise ValueError("a teacher's most likely words are not split over ranks: gather the student's logits")
    if which.kind == "reverse" and not teacher.rest:
        raise ValueError("the reverse KL is infinite where the teacher's other words have no probability; set rest")


def _states(logits: Tensor | Words) -> Tensor:
    return logits.hidden if isinstance(logits, Words) else logits


def _flat(logits: Tensor | Words | TopK) -> Tensor | Words | TopK:
    """(..., V) -> (N, V)."""
    if isinstance(logits, Tensor):
        return logits.flatten(0, -2)
    if isinstance(logits, Words):
        return replace(logits, hidden=logits.hidden.flatten(0, -2))
    return replace(logits, ids=logits.ids.flatten(0, -2), log_probs=logits.log_probs.flatten(0, -2))


def _cast(logits: Tensor | Words | TopK, device: str) -> Tensor | Words | TopK:
    """States in the type that their product with the head is to have: autocast's, where it is on."""
    if not isinstance(logits, Words):
        return logits
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else logits.weight.dtype
    return replace(logits, hidden=logits.hidden.to(dtype))


def _divide(logits: Tensor, tau: float) -> Tensor:
    return logits if tau == 1 else logits / tau


def _logits(hidden, weight, bias, scale, cap, dtype) -> Tensor:
    """In float32 or wider; without a head the states are the logits."""
    if weight is None:
        return hidden.to(dtype)
    z = torch.nn.functional.linear(hidden, weight, None if bias is None else bias.to(hidden.dtype))
    return finish(z.to(dtype), scale, cap)


def _teacher_logits(teacher: Tensor | Words | TopK, tau: float, dtype: torch.dtype) -> Tensor | TopK:
    """Of one chunk, divided by the temperature; kept words already are."""
    if isinstance(teacher, TopK):
        return teacher
    if isinstance(teacher, Words):
        teacher = _logits(teacher.hidden, teacher.weight, teacher.bias, teacher.scale, teacher.cap, dtype)
    return _divide(teacher.to(dtype), tau)


def _log_softmax(logits: Tensor, group) -> Tensor:
    """Over all shards of the vocabulary; the impossible stays finite."""
    if group is None:
        return logits.log_softmax(-1).clamp_(min=LOWEST)
    highest = logits.amax(-1, keepdim=True)
    dist.all_reduce(highest, dist.ReduceOp.MAX, group)
    apart = logits - highest
    return apart.sub_(_sum(apart.exp().sum(-1, keepdim=True), group).log_()).clamp_(min=LOWEST)


def _sum(values: Tensor, group) -> Tensor:
    if group is not None:
        dist.all_reduce(values, group=group)
    return values
