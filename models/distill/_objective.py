"""Several methods as one loss: a weighted sum of their soft parts, and the hard loss once."""

from collections.abc import Mapping

from torch import Tensor, nn

from models.distill._signals import Method, Signals

__all__ = ["Objective"]


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
