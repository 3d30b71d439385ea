"""Methods that teach one layer after the other."""

from models.distill._signals import Method, Shape

__all__ = ["Progressive"]


class Progressive(Method):
    """Stage n = 1 + floor(step (N_s + 1) / total): layers 1..n are taught, and stage N_s + 1 adds what comes last.

    The stage is a function of the step, which is in the checkpoint: a resumed run does not start over.
    """

    def __init__(self, student: Shape, teacher: Shape):
        super().__init__(student, teacher)

    @property
    def taught(self) -> int:
        """n of this step, in 1..N_s + 1."""
        stages = self.student.layers + 1
        return min(1 + self.step.item() * stages // self.total.item(), stages)

    @property
    def finished(self) -> bool:
        """Whether all layers are taught."""
        return self.taught > self.student.layers
