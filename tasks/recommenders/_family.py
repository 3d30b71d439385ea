"""What every kind of recommender does for tasks/recommender.py: read its data, train, and pack what is served."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import polars as pl
from torch import nn

from models import method
from tasks.settings import SettingsError
from tasks.training import Trained, Training

__all__ = ["Family", "chosen_keys", "fitted", "settings_of"]


class Family(Protocol):
    """A method and its data, made by `Family(name, method, entry, ingest)`; tasks/serve_lists.py answers for it.

    An entry that cannot work is refused here or by `train`, before its first step. Only what is asked for is read: a
    gate wants rows and the log, and neither vocabularies nor a model.
    """

    model: nn.Module  # of `train`
    fingerprint: str  # of the data and of how it is read

    def train(self, training: Training, checkpoints: Path | None, device: str) -> Trained:
        """Leave the best weights in `model`."""

    def rows(self, split: str) -> pl.DataFrame:
        """What a served model is asked on a split, and the truth: of lists `user`, `history`, `truth`."""

    def log(self) -> pl.DataFrame:
        """The training pairs `user`, `item`: what is popular, what is cold."""

    def bundle(self, folder: Path) -> dict:
        """Write what is served beside the weights; returns what recommender.json says of it."""


def chosen_keys(entry: Mapping, known: tuple[str, ...], place: str) -> None:
    """Refuse a key that means nothing.

    Raises:
        SettingsError: names all of them.
    """
    if unknown := [key for key in entry if key not in known]:
        raise SettingsError(f"{place} has no setting {', '.join(map(repr, unknown))}; it has: {', '.join(known)}")


def settings_of(family: str, name: str, entry: Mapping, place: str) -> dict:
    """The method's own settings.

    Raises:
        LookupError: there is no such method.
        SettingsError: its settings are no mapping.
    """
    method(f"recommend.{family}", name)
    settings = entry.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise SettingsError(f"{place}.settings must be names with values, got {settings!r}")
    return dict(settings)


def fitted() -> Trained:
    """What a method leaves that takes no steps."""
    return Trained(best_score=0.0)
