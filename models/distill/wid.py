"""WID: the student inherits the teacher's weights, through projections that training learns and then narrows.

    y = R (W (L x) + b)                    every linear layer; R = L = identity at first: the student is the teacher
    loss = hard                            the gold labels' alone; the teacher never runs
    s_i = |L e_i|                          ranks dimension i by what a layer reads of it; every so many steps more of
                                           the lowest are lost, down to the student's width
    g = min(lambda, 1) theta               entries of what is lost (columns of L, rows of R) see no loss any more, only
    m <- b m + (1 - b) (max(lambda, 1) - 1) theta      a pull to zero, also into Adam's first moment m
    W' = R[K,:] W L[:,K],  b' = R[K,:] b   merge: a plain BERT of the kept dimensions K

Width shrinks, of states, attention, feed-forward layers and the masked-word head alike; depth stays. Dimensions of a
group share one mask: the states of all layers; attention, and the feed-forward layer, of each layer; the head. Norms
take mean and deviation of kept dimensions only, and the scale of scores, 1 / sqrt(head width), moves into W'_query: the
merged model is the trained one. Its two word tables differ, also where the teacher's were one.

Source: Wu et al., 2023, arXiv:2305.09098; schedule, ranking and moments as in its code, which forgets the scale and
knows 12 heads of 64 only. Ours: once what is lost has faded to zero it leaves the forward pass, and the masks stay;
`cut` "sharp"; `readers` "all"; steps of at least one dimension, so that any width is reached.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from models.components._model import Model
from models.distill._compactor import Compactor, Group
from models.distill._inherited import READERS, Compactors
from models.distill._signals import Method, Shape, Signals

__all__ = ["WID"]

UPDATES = 16  # of the masks until all is lost that is to be lost, in a group that is ranked as a whole
CHUNK_UPDATES = 8  # in one that is ranked within each head
HEAD_UPDATES = 2  # until the next head is lost
CHOICES = {"strategy": ("dim", "head"), "cut": ("gradual", "sharp"), "readers": ("first", "all")}


class WID(Method):
    """Weight-inherited distillation. Its own loss is 0: all it does is in the student, which `attach` makes.

        student = wid.attach(teacher)                                   # is the teacher at first
        optimizer = AdamW(wid.parameter_groups(student))
        wid.hook(optimizer, student)
        ...                                                             # train on gold labels; wid.advance() each step
        model, recipe = wid.merge(student, recipe)                      # plain, narrow

    The state of a run is that of this method, of the student and of the optimizer.

    Args:
        inner: width of the teacher's feed-forward layers, None for 4 D; the student's has the same ratio to its width.
        strategy: "dim" makes every head narrower, "head" drops whole heads.
        every: steps between two updates of the masks; until the first one, all compactors are drawn to zero alike.
        penalty: lambda.
        cut: "gradual": what is lost still flows until it has faded; "sharp": it is gone at once, so that the forward
            pass is always that of the merged model, and as cheap.
        chunked: states too are lost by chunks of a teacher's head width, as attention's dimensions are; False ranks
            them together ("dim" only).
        readers: who ranks the states: "first", the first layer's values, or "all" of them summed.
        faded: the largest entry of a compactor that counts as zero; well above the learning rate, since Adam's steps
            make what is near zero jump by a few of it.

    Raises:
        ValueError: the student has another depth or vocabulary, or is wider; heads that do not go with the strategy; a
            setting that cannot be.
    """

    settled: Tensor

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        inner: int | None = None,
        strategy: str = "dim",
        every: int = 500,
        penalty: float = 20.0,
        cut: str = "gradual",
        chunked: bool = True,
        readers: str = "first",
        faded: float = 1e-3,
    ):
        super().__init__(student, teacher)
        for name, value in {"strategy": strategy, "cut": cut, "readers": readers}.items():
            if value not in CHOICES[name]:
                raise ValueError(f"{name} is {value!r}; it is one of {', '.join(CHOICES[name])}")
        if every < 1 or penalty < 0 or faded < 0:
            raise ValueError(
                f"every is a number of steps, penalty and faded are 0 or more: {every}, {penalty}, {faded}"
            )
        _refuse_shapes(student, teacher, strategy)
        inner = 4 * teacher.width if inner is None else inner
        self.narrow_inner = _in_proportion(inner, student, teacher)
        self.strategy, self.every, self.penalty, self.faded = strategy, every, penalty, faded
        self.chunked, self.readers = chunked or strategy == "head", readers
        self.compactors = Compactors(teacher, inner, student.heads, cut == "sharp")
        self.register_buffer("settled", torch.tensor(False))

    def layers(self) -> dict[str, dict[str, list[int]]]:
        return {"student": {"hard": []}, "teacher": {}}

    def hard_weight(self) -> float:
        return 1.0

    def forward(self, student: Signals, teacher: Signals | None = None) -> Tensor:
        return torch.zeros((), device=student.mask.device)

    def attach(self, model: Model) -> Model:
        """Turn the teacher, in place, into the student: its linear layers and norms act through the compactors.

        Parameters keep their names and values; the compactors stay this method's. Until masks cut, outputs are equal.

        Args:
            model: a BERT of the teacher's shape, with a masked-word head where the shape has a vocabulary, and with
                targets that have no parameters where it has none.

        Raises:
            ValueError: another shape; parameters that no compactor would narrow, all of them named.
        """
        return self.compactors.attach(model)

    def merge(self, model: Model, recipe: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
        """Multiply everything out: the narrow model, which knows no compactors, and its recipe.

        Args:
            model: the student; stays as it is.
            recipe: of the teacher.

        Raises:
            ValueError: the masks have not reached the student's width; what is lost still flows.
        """
        self._refuse_early()
        if not self.compactors.states.cut and (residue := self.residue()) > self.faded:
            raise ValueError(
                f"lost entries still reach {residue:.3g} and flow, so the merged model would be another one (faded is "
                f"{self.faded:g}); train on, or call settle() and train on without them"
            )
        return self.compactors.merge(model, recipe)

    # Gradients

    def parameter_groups(
        self, model: Model, rate: float = 5e-5, inherited: float = 1e-6, decay: float = 0.01
    ) -> list[dict[str, Any]]:
        """Parameters for AdamW: compactors at `rate`, the teacher's weights much slower; vectors without decay."""
        weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        return [
            {"params": list(self.parameters()), "lr": rate, "weight_decay": decay},
            {"params": weights, "lr": inherited, "weight_decay": decay},
            {"params": vectors, "lr": inherited, "weight_decay": 0.0},
        ]

    def hook(self, optimizer: torch.optim.Optimizer, model: Model) -> RemovableHandle:
        """Let `pull` act before each of the optimizer's steps, which is after any clipping."""
        return optimizer.register_step_pre_hook(lambda its, args, kwargs: self.pull(its, model))

    @torch.no_grad()
    def pull(self, optimizer: torch.optim.Optimizer, model: Model) -> None:
        """Draw to zero: everything alike before the first update of the masks, then only what is lost.

        Biases and norms of lost dimensions go the same way as their compactors. The first moment shrinks by b here and
        again in Adam's step, for kept entries too, as in the paper's code.
        """
        if self.step < self.every:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter)
            return
        betas = {id(p): group.get("betas", (0.0,))[0] for group in optimizer.param_groups for p in group["params"]}
        for parameter, kept in (*self.compactors.masks(), *self.compactors.vectors(model)):
            if parameter.grad is None:
                continue
            lost = (~kept).to(parameter.dtype)
            parameter.grad.mul_(kept).addcmul_(parameter, lost, value=min(self.penalty, 1.0))
            if "exp_avg" in (state := optimizer.state.get(parameter, {})):
                beta = betas[id(parameter)]
                more = (1 - beta) * (max(self.penalty, 1.0) - 1)
                state["exp_avg"].mul_(beta).addcmul_(parameter, lost, value=more)

    # Masks

    def advance(self) -> None:
        """Count one step; where it is time, lose more, and settle once all that is lost has faded."""
        super().advance()
        if self.settled or self.step % self.every:
            return
        self.update(self.step.item() // self.every)
        if self.reached and self.residue() <= self.faded:
            self.settle()

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Choose anew what is kept, at the `number`-th update: dimensions may come back, their number never grows."""
        lost, its = self.lost(number), self.compactors
        self._keep(its.states, self._states_score(), lost["states"], self.chunked)
        for layer, attention, inner in zip(its.layers, its.attention, its.feedforward, strict=True):
            self._keep(attention, _columns(layer["attention_output"]), lost["attention"], True)
            self._keep(inner, _columns(layer["feedforward_outer"]), lost["inner"], False)
        if its.words is not None:
            self._keep(its.words, _columns(its.head), lost["words"], False)

    def lost(self, number: int) -> dict[str, int]:
        """How many dimensions each group has lost after `number` updates.

        >>> wide, narrow = Shape(1, 24, 2, vocabulary=5), Shape(1, 8, 2, vocabulary=5)
        >>> WID(narrow, wide).lost(3)
        {'states': 6, 'attention': 6, 'inner': 12, 'words': 3}
        """
        width, heads = self.teacher.width, self.teacher.heads
        whole = _grown(number, width - self.student.width, UPDATES)
        if self.strategy == "dim":
            chunks = heads * _grown(number, (width - self.student.width) // heads, CHUNK_UPDATES)
        else:
            chunks = width // heads * min(number // HEAD_UPDATES, heads - self.student.heads)
        inner = _grown(number, self.compactors.inner - self.narrow_inner, UPDATES)
        return {"states": chunks if self.chunked else whole, "attention": chunks, "inner": inner, "words": whole}

    def _keep(self, group: Group, score: Tensor, lost: int, chunked: bool) -> None:
        """Lose the lowest: of all, of each chunk as many, or of whole chunks."""
        if chunked:
            score = score.view(self.teacher.heads, -1)
        if chunked and self.strategy == "head":
            lost, score = lost // score.shape[1], score.sum(1)
        rows = score.view(-1, score.shape[-1])
        lowest = rows.sort(stable=True).indices[:, : lost // len(rows)]
        kept = torch.ones_like(rows, dtype=torch.bool).scatter_(1, lowest, False).flatten()
        group.kept.copy_(kept.repeat_interleave(group.width // len(kept)))

    def _states_score(self) -> Tensor:
        layers = self.compactors.layers
        if self.readers == "first":
            return _columns(layers[0]["attention_value"])
        return sum(_columns(layer[name]) for layer in layers for name in READERS)

    @property
    def reached(self) -> bool:
        """Whether every group has the student's width."""
        width = {"inner": self.narrow_inner}
        return all(group.kept.sum() == width.get(kind, self.student.width) for kind, group in self.compactors.groups())

    @torch.no_grad()
    def residue(self) -> float:
        """The largest of the compactors' lost entries; 0 where nothing is lost."""
        return torch.stack([(entries.abs() * ~kept).max() for entries, kept in self.compactors.masks()]).max().item()

    def settle(self) -> None:
        """Take what is lost out of the forward pass, and change masks no more.

        Raises:
            ValueError: the masks have not reached the student's width.
        """
        self._refuse_early()
        self.settled.fill_(True)
        for _, group in self.compactors.groups():
            group.cut.fill_(True)

    def _refuse_early(self) -> None:
        if not self.reached:
            raise ValueError(
                f"{int(self.compactors.states.kept.sum())} of {self.teacher.width} dimensions are kept at step "
                f"{self.step.item()}, not yet {self.student.width}; train on, or lower `every`, which is {self.every}"
            )


def _grown(number: int, most: int, updates: int) -> int:
    return min(number * max(1, most // updates), most)


def _columns(compactor: Compactor) -> Tensor:
    """Norm of each column of L."""
    return compactor.left.norm(dim=0)


def _in_proportion(inner: int, student: Shape, teacher: Shape) -> int:
    if inner < 1 or inner * student.width % teacher.width:
        raise ValueError(
            f"feed-forward layers of {inner} do not shrink as the width does, from {teacher.width} to {student.width}"
        )
    return inner * student.width // teacher.width


def _refuse_shapes(student: Shape, teacher: Shape, strategy: str) -> None:
    if student.layers != teacher.layers:
        raise ValueError(
            f"WID keeps the depth, but the student has {student.layers} layers and the teacher {teacher.layers}; give "
            f"both the same number, or use minilmv2"
        )
    if student.width > teacher.width:
        raise ValueError(f"WID narrows, but the student is {student.width} wide and the teacher {teacher.width}")
    if student.vocabulary != teacher.vocabulary:
        raise ValueError(
            f"WID keeps the words, but the student has {student.vocabulary} and the teacher {teacher.vocabulary}"
        )
    if strategy == "dim" and student.heads != teacher.heads:
        raise ValueError(
            f"the dim strategy keeps every head, but the student has {student.heads} and the teacher {teacher.heads}; "
            f"give both the same number, or take strategy head"
        )
    narrow, wide = (shape.width // shape.heads for shape in (student, teacher))
    if strategy == "head" and narrow != wide:
        raise ValueError(
            f"the head strategy keeps heads as wide as they are, but the student's have {narrow} and the teacher's "
            f"{wide}; give the student heads of {wide}, or take strategy dim"
        )
