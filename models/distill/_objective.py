"""Several methods as one loss: a weighted sum of their soft parts, and the hard loss once; also of several teachers."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from models.distill._signals import Method, Shape, Signals

__all__ = ["Council", "Mix", "Objective"]


class Objective(nn.Module):
    """One method, or a mix of them.

        L = sum_k w_k soft_k(student, teacher) + w_hard mean(hard)

    Each method keeps its own temperature and schedule. `hard` is the weight of the gold labels; None takes the largest
    that any of the methods asks for at this step, so the labels never count twice (ours; a mix's entry may set it).

    Args:
        methods: by name.
        weights: of their soft parts; 1 for a name that is absent.
        hard: see above.

    Raises:
        ValueError: no method; a weight for a name that is none; two methods that would edit the same place.
    """

    def __init__(
        self, methods: Mapping[str, Method], weights: Mapping[str, float] | None = None, hard: float | None = None
    ):
        super().__init__()
        if not methods:
            raise ValueError("a mix needs at least one method")
        weights = dict(weights or {})
        if unknown := sorted(set(weights) - set(methods)):
            raise ValueError(f"weights for {', '.join(unknown)}, which the mix does not have: {', '.join(methods)}")
        self.methods = nn.ModuleDict(methods)
        self.weights = {name: float(weights.get(name, 1.0)) for name in methods}
        self.hard = hard
        self._refuse_rival_edits()

    def needs(self) -> dict[str, dict[str, list[int]]]:
        """{"student": {signal: layers, [] for one that has none}, "teacher": ...}: what to collect, and no more."""
        wanted: dict[str, dict[str, set[int]]] = {"student": {}, "teacher": {}}
        for method in self.methods.values():
            layers = method.layers()
            for side in wanted:
                for signal in set(method.needs) | set(layers[side]):
                    wanted[side].setdefault(signal, set()).update(layers[side].get(signal, []))
        return {side: {name: sorted(kept) for name, kept in signals.items()} for side, signals in wanted.items()}

    @property
    def uncut(self) -> bool:
        """Whether a step must be one batch, see Method."""
        return any(method.uncut for method in self.methods.values())

    def edits(self) -> dict[str, object]:
        """What methods do inside the forward pass, by place."""
        return {place: edit for method in self.methods.values() for place, edit in method.edits().items()}

    def hard_weight(self) -> float:
        """Weight of the mean hard loss at this step."""
        return self.hard if self.hard is not None else max(m.hard_weight() for m in self.methods.values())

    def forward(self, student: Signals, teacher: Signals) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and each method's soft part before its weight, with "hard" where labels count.

        Raises:
            ValueError: gold labels have a weight, but the student shows no hard loss.
        """
        terms = {name: method(student, teacher) for name, method in self.methods.items()}
        loss = sum(self.weights[name] * term for name, term in terms.items())
        if weight := self.hard_weight():
            if student.hard is None:
                raise ValueError(
                    f"the gold labels weigh {weight}, but the student shows no hard loss: the batch has no labels"
                )
            terms["hard"] = student.hard.float().mean()
            loss = loss + weight * terms["hard"]
        return loss, {name: term.detach() for name, term in terms.items()}

    def set_total(self, steps: int, epochs: int = 1) -> None:
        """Tell every method how many steps and passes over the data the run has."""
        for method in self.methods.values():
            method.set_total(steps, epochs)

    def advance(self) -> None:
        """Count one step in every method."""
        for method in self.methods.values():
            method.advance()

    def _refuse_rival_edits(self) -> None:
        by_place: dict[str, list[str]] = {}
        for name, method in self.methods.items():
            for place in method.edits():
                by_place.setdefault(place, []).append(name)
        if rivals := {place: names for place, names in by_place.items() if len(names) > 1}:
            said = "; ".join(f"{' and '.join(names)} both change {place}" for place, names in rivals.items())
            raise ValueError(f"methods that act inside the same place of the forward pass cannot be mixed: {said}")


class Mix(Method):
    """A mix as one method: what a combiner of teachers calls for each of them. Its gold labels are the combiner's.

    Args:
        methods, weights: see Objective.
    """

    def __init__(self, student: Shape, teacher: Shape, methods: Mapping[str, Method], weights: Mapping[str, float]):
        super().__init__(student, teacher)
        self.parts = Objective(methods, weights, hard=0.0)
        self.needs = tuple(sorted({name for method in methods.values() for name in method.needs}))
        self.uncut = self.parts.uncut

    def layers(self) -> dict[str, dict[str, list[int]]]:
        return {who: {name: at for name, at in wanted.items() if at} for who, wanted in self.parts.needs().items()}

    def edits(self) -> Mapping[str, object]:
        return self.parts.edits()

    def set_total(self, steps: int, epochs: int = 1) -> None:
        super().set_total(steps, epochs)
        self.parts.set_total(steps, epochs)

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return self.parts(student, teacher)[0]


class Council(Objective):
    """One way of combining teachers (models/distill/teachers) in the place of the methods.

    Args:
        name: of the combiner, in what is told.
        combiner: a Several.
        hard: see Objective.
    """

    def __init__(self, name: str, combiner: Method, hard: float | None = None):
        super().__init__({name: combiner}, hard=hard)

    @property
    def combiner(self) -> Method:
        """The only one of its methods."""
        (combiner,) = self.methods.values()
        return combiner

    def needs(self) -> dict[str, Any]:
        """{"student": as of Objective, "teacher": a list, one such mapping for each teacher}."""
        layers, read = self.combiner.layers(), set(self.combiner.needs)
        asked = lambda names, of: {name: of.get(name, []) for name in sorted(names | set(of))}
        theirs = read if self.combiner.teacher_reads_hard else read - {"hard"}
        return {
            "student": asked(read, layers["student"]),
            "teacher": [asked(theirs, of) for of in layers["teachers"]],
        }

    def forward(self, student: Signals, teacher: Sequence[Signals]) -> tuple[Tensor, dict[str, Tensor]]:
        """See Objective; `teacher` are the signals of all teachers, in their order."""
        return super().forward(student, teacher)
