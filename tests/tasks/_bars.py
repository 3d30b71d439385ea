"""What progress bars were told, in place of what they draw."""

from dataclasses import dataclass


@dataclass
class Bar:
    """As much of tqdm as `tasks.progress` uses."""

    total: int | None
    desc: str
    n: int = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, count: int = 1):
        self.n += count


def seen(monkeypatch) -> list[Bar]:
    """The bars that begin from now on."""
    bars: list[Bar] = []

    def begun(total, desc, **_):
        bars.append(Bar(total, desc))
        return bars[-1]

    monkeypatch.setattr("tasks.progress.tqdm", begun)
    return bars
