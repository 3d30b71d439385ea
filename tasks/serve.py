"""The served model, as MLflow loads it: raw feature columns in, probabilities out.

MLflow runs this file from the registered version. Beside it travel `models` (only the files the method needs) and
`encoder.py`; nothing else of the repository is imported, and nothing is ever unpickled: weights are safetensors,
everything else is JSON. Every file is compared with the version's manifest before it is read.
"""

import hashlib
import json
from pathlib import Path

import mlflow
import pandas as pd
import polars as pl
import torch
from encoder import Encoder
from safetensors import SafetensorError
from safetensors.torch import load_file

from models import build

__all__ = ["Recommender", "UnsafeArtifact", "check_files"]

TYPES = {"integer": pl.Int64, "string": pl.String, "boolean": pl.Boolean}
PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


class UnsafeArtifact(ValueError):
    """A model folder holds something else than what was registered; nothing of it was loaded."""


class Recommender(mlflow.pyfunc.PythonModel):
    """A frozen backbone, alone or with the head of one task.

    predict: a frame with the columns of the signature, nulls where the signature's type is `any` or a float, ->
    a frame of (N,) probabilities: `probability` for a task, one column per jointly learned task for a backbone.
    """

    def load_context(self, context) -> None:
        """Check and load the bundle.

        Raises:
            UnsafeArtifact: a file was added, removed or changed since registration, or can run code when read.
        """
        folder = Path(context.artifacts["bundle"])
        manifest = check_files(folder)
        self.outputs = manifest["outputs"]
        self.encoder = Encoder.from_json((folder / "backbone/encoder.json").read_text())
        self.columns = {field.name: TYPES[field.family] for field in self.encoder.categories}
        self.columns |= dict.fromkeys(self.encoder.numerical, pl.Float64)
        about = json.loads((folder / "backbone/backbone.json").read_text())
        shape = about["sizes"], about["dense"], len(about["tasks"])
        self.model = build("recommend", about["method"], *shape, **about["settings"])
        _fill(self.model, folder / "backbone/model.safetensors")
        self.head = None
        if (folder / "head").is_dir():
            task = json.loads((folder / "head/head.json").read_text())
            self.offset = task["offset"]  # log-odds that give the data's own base rate back
            self.head = self.model.head(**task["settings"])
            _fill(self.head, folder / "head/head.safetensors")

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        return self.score(self.frame(model_input)).to_pandas()

    @torch.inference_mode()
    def score(self, rows: pl.DataFrame, batch: int = 8192) -> pl.DataFrame:
        """Probabilities of typed raw rows: one float64 column per output."""
        parts = []
        for part in rows.iter_slices(batch):
            inputs = [torch.from_numpy(array) for array in self.encoder.transform(part)]
            if self.head is None:
                parts.append(self.model.score(*inputs))
            else:
                logit = self.head(self.model.represent(*inputs)).float()
                parts.append(torch.sigmoid(logit + self.offset)[:, None])
        found = torch.cat(parts).double().numpy() if parts else torch.empty(0, len(self.outputs)).double().numpy()
        return pl.DataFrame(dict(zip(self.outputs, found.T, strict=True)))

    def frame(self, rows: pd.DataFrame) -> pl.DataFrame:
        """The encoder's columns in its types; pandas' floats that only stand for nullable integers become these.

        Raises:
            ValueError: a column is missing or holds values of another type; names all of them.
        """
        if missing := [name for name in self.columns if name not in rows]:
            raise ValueError(
                f"the rows lack {len(missing)} columns: {', '.join(missing)}; a null stands for an unknown value"
            )
        given, typed, wrong = pl.from_pandas(rows[list(self.columns)]), [], []
        for name, dtype in self.columns.items():
            before = given[name]
            number = before.dtype.is_numeric() or before.dtype == pl.Boolean
            if before.null_count() == len(before):  # pandas has no type for a column without values, or calls it float
                before = pl.Series(name, [None] * len(before), dtype)
            fits = before.dtype == dtype or (number and dtype.is_numeric())
            after = before.cast(dtype, strict=False) if fits else before
            if (
                not fits
                or after.null_count() != before.null_count()
                or (dtype.is_integer() and (after != before).any())
            ):
                wrong.append(f"{name} must be {dtype}, got {before.dtype} such as {before.drop_nulls()[0]!r}")
            typed.append(after)
        if wrong:
            raise ValueError(f"{len(wrong)} columns hold values of another type: {'; '.join(wrong)}")
        return pl.DataFrame(typed)


def check_files(folder: Path) -> dict:
    """The manifest of a bundle whose files are exactly those it lists, byte by byte.

    Raises:
        UnsafeArtifact: names every file that is not.
    """
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {"manifest.json"}
    if pickles := sorted(name for name in found if Path(name).suffix.lower() in PICKLES):
        raise UnsafeArtifact(
            f"{folder} holds files that can run code when read: {', '.join(pickles)}; nothing was loaded"
        )
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        listed = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise UnsafeArtifact(f"{folder}/manifest.json cannot be read ({error!r}); nothing was loaded") from None
    faults = [f"{name} is not in the manifest" for name in sorted(found - set(listed))]
    faults += [f"{name} is missing" for name in sorted(set(listed) - found)]
    for name in sorted(found & set(listed)):
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != listed[name]:
                faults.append(f"{name} changed since it was registered")
    if faults:
        raise UnsafeArtifact(f"{folder}: {'; '.join(faults)}; nothing was loaded. Roll back, or rebuild this version")
    return manifest


def _fill(module: torch.nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise UnsafeArtifact(f"{path} does not hold this model's weights: {str(error)[:300]}") from None
    module.eval().requires_grad_(False)


mlflow.models.set_model(Recommender())
