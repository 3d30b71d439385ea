"""The served model, as MLflow loads it: raw feature columns in, probabilities out.

MLflow runs this file from the registered version. Beside it travel `models` (only the files the method needs),
`bundled.py` and `encoder.py`, and `texts.py` where listings' words are read; nothing else of the repository is
imported, and nothing is ever unpickled: weights are safetensors, everything else is JSON. Every file is compared with
the version's manifest before it is read.
"""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import torch
from bundled import check_files, fill
from encoder import Encoder

from models.recommend._address import multi_task

__all__ = ["Recommender"]

TYPES = {"integer": pl.Int64, "string": pl.String, "boolean": pl.Boolean}


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
        self.text = None
        if (folder / "backbone/text").is_dir():
            from texts import ListingText  # transformers takes seconds, and most backbones read no words

            self.text = ListingText(folder / "backbone/text")
            self.columns |= {name: pl.String for name in self.text.columns if name not in self.columns}
        about = json.loads((folder / "backbone/backbone.json").read_text())
        shape = about["sizes"], about["dense"], len(about["tasks"])
        self.model = multi_task(about["method"], *shape, **about["settings"])
        fill(self.model, folder / "backbone/model.safetensors")
        self.head = None
        if (folder / "head").is_dir():
            task = json.loads((folder / "head/head.json").read_text())
            self.offset = task["offset"]  # log-odds that give the data's own base rate back
            self.head = self.model.head(**task["settings"])
            fill(self.head, folder / "head/head.safetensors")

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        return self.score(self.frame(model_input)).to_pandas()

    @torch.inference_mode()
    def score(self, rows: pl.DataFrame, batch: int = 8192) -> pl.DataFrame:
        """Probabilities of typed raw rows: one float64 column per output."""
        parts = []
        for part in rows.iter_slices(batch):
            inputs = [torch.from_numpy(array) for array in self.inputs(part)]
            if self.head is None:
                parts.append(self.model.score(*inputs))
            else:
                logit = self.head(self.model.represent(*inputs)).float()
                parts.append(torch.sigmoid(logit + self.offset)[:, None])
        found = torch.cat(parts).double().numpy() if parts else torch.empty(0, len(self.outputs)).double().numpy()
        return pl.DataFrame(dict(zip(self.outputs, found.T, strict=True)))

    def inputs(self, rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """What the backbone reads of N typed raw rows: (N, F) ids, and (N, M + K) numbers, those of the text last."""
        ids, values = self.encoder.transform(rows)
        return ids, values if self.text is None else np.concatenate([values, self.text(rows)], axis=1)

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


mlflow.models.set_model(Recommender())
