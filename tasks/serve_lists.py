"""A served recommender of items, as MLflow loads it: users or their histories in, lists of items out.

MLflow runs this file from the registered version. Beside it travel `models` (only the files the method needs) and
`bundled.py`; nothing else of the repository is imported, and nothing is ever unpickled: weights are safetensors, ids
are Parquet, everything else is JSON.
"""

import json
from pathlib import Path

import mlflow
import pandas as pd
import polars as pl
import torch
from bundled import check_files, fill
from safetensors.torch import load_file
from torch import Tensor

from models import build
from models.recommend._top import top

__all__ = ["Lists"]

K = 50
UNKNOWN, FIRST = 1, 2  # ids of sequences, as tasks/sequences.py gives them: 0 pads
CHUNK = 256  # requests ranked at a time: memory is CHUNK times the items


class UnsafeArtifact(ValueError):
    """A model folder holds something else than what was registered; nothing of it was loaded."""


class Lists(mlflow.pyfunc.PythonModel):
    """A recommender with its vocabulary.

    predict: a frame with the columns `user` (an id, or null) and `history` (a list of item ids, oldest first, or null)
    -> a frame of as many rows: `items` (list of ids, best first), `scores` (list of float), and `known`: "user" where
    the user's own vector answered, "history" where the history did, "nothing" where all that is left is popularity.
    params: {"k": 50} items a list.
    """

    def load_context(self, context) -> None:
        """Check and load the bundle.

        Raises:
            UnsafeArtifact: a file was added, removed or changed since registration, or can run code when read.
        """
        self.open(Path(context.artifacts["bundle"]))

    def open(self, folder: Path) -> "Lists":
        """The recommender of a bundle's folder; see `load_context`."""
        check_files(folder)
        about = json.loads((folder / "recommender.json").read_text())
        self.repeats = about["repeats"]
        self.items = pl.read_parquet(folder / "items.parquet")
        # Rows 0, 1, ... of the vocabulary, by the id that people use.
        self.number = self.items.select("item", index=pl.int_range(pl.len(), dtype=pl.Int64))
        self.popularity = torch.from_numpy(self.items["count"].to_numpy().copy()).float()
        self.model = {"retrieval": _Retrieval, "session": _Session, "towers": _Towers}[about["family"]](about, folder)
        return self

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        rows = pl.from_pandas(model_input[[name for name in ("user", "history") if name in model_input]])
        return self.lists(rows, int((params or {}).get("k", K))).to_pandas()

    @torch.inference_mode()
    def lists(self, requests: pl.DataFrame, k: int = K, allowed: pl.Series | None = None) -> pl.DataFrame:
        """The k best items of each request.

        Args:
            requests: `user` and/or `history`, as in `predict`.
            allowed: item ids that may be shown; None for all.

        Raises:
            ValueError: neither column is there, or their types are not those of the vocabulary; k below 1.
        """
        if k < 1:
            raise ValueError(f"a list has at least one item, got k = {k}")
        requests = self._typed(requests)
        blocked = torch.zeros(len(self.items), dtype=torch.bool)
        if allowed is not None:
            blocked = ~torch.from_numpy(self.items["item"].is_in(allowed.implode()).to_numpy().copy())
        parts = [self._some(part, k, blocked) for part in requests.iter_slices(CHUNK)]
        empty = {"items": pl.List(self.items["item"].dtype), "scores": pl.List(pl.Float64), "known": pl.String}
        return pl.concat(parts) if parts else pl.DataFrame(schema=empty)

    def _some(self, requests: pl.DataFrame, k: int, blocked: Tensor) -> pl.DataFrame:
        row, item = self._history(requests)
        score, known = self.model.score(requests["user"], row, item)
        score = torch.where(known[:, None] > 0, score, self.popularity)
        row, item = row[item >= 0], item[item >= 0]
        if not self.repeats:
            seen = self.model.seen(requests["user"])
            score[torch.cat([row, seen[0]]), torch.cat([item, seen[1]])] = -torch.inf
        score[:, blocked] = -torch.inf
        best, place = top(score, min(k, score.shape[1]))
        ids = self.items["item"].gather(place.flatten()).to_list()
        width, lists = place.shape[1], []
        for index, scores in enumerate(best.tolist()):
            count = sum(value > float("-inf") for value in scores)
            lists.append((ids[index * width : index * width + count], scores[:count]))
        told = ["nothing", "history", "user"]
        schema = {"items": pl.List(self.items["item"].dtype), "scores": pl.List(pl.Float64)}
        frame = pl.DataFrame(lists, schema=schema, orient="row")
        return frame.with_columns(known=pl.Series([told[value] for value in known.tolist()], dtype=pl.String))

    def _history(self, requests: pl.DataFrame) -> tuple[Tensor, Tensor]:
        """(request, item) numbers of the histories, in their order; -1 is an item that the vocabulary does not know."""
        long = requests.select("history").with_row_index("request").explode("history", empty_as_null=False)
        long = long.drop_nulls("history")
        found = long.join(self.number, left_on="history", right_on="item", how="left", maintain_order="left")
        columns = (found["request"].cast(pl.Int64), found["index"].fill_null(-1))
        return tuple(torch.from_numpy(column.to_numpy().copy()) for column in columns)

    def _typed(self, requests: pl.DataFrame) -> pl.DataFrame:
        if not {"user", "history"} & set(requests.columns):
            raise ValueError(f"requests have neither `user` nor `history`, only {', '.join(requests.columns)}")
        user, item = self.model.user_type, self.items["item"].dtype
        columns = []
        for name, wanted in (("user", user), ("history", pl.List(item))):
            given = requests[name] if name in requests.columns else None
            if given is None or given.null_count() == len(given):
                columns.append(pl.Series(name, [None] * len(requests), dtype=wanted))
                continue
            inner = given.dtype.inner if isinstance(given.dtype, pl.List) else given.dtype
            fits = inner.is_integer() == (wanted.inner if name == "history" else wanted).is_integer()
            if inner.is_float() and wanted.is_integer():  # pandas' nullable integers
                fits = bool((given.drop_nulls() == given.drop_nulls().floor()).all())
            if not (fits or inner == pl.Null) or isinstance(given.dtype, pl.List) != isinstance(wanted, pl.List):
                raise ValueError(f"`{name}` must be {wanted}, as the log's ids are; got {given.dtype}")
            columns.append(given.cast(wanted))
        return pl.DataFrame(columns)


class _Users:
    """Users of the training, by the id that people use."""

    def __init__(self, folder: Path):
        self.rows = pl.read_parquet(folder / "users.parquet").select("user", index=pl.int_range(pl.len()))
        self.type = self.rows["user"].dtype

    def __len__(self) -> int:
        return len(self.rows)

    def places(self, user: pl.Series) -> Tensor:
        """(B,) int64 rows of users.parquet; -1 is a stranger, whose fields are the last row of a table of them."""
        found = user.to_frame("user").join(self.rows, on="user", how="left", maintain_order="left")["index"]
        return torch.from_numpy(found.fill_null(-1).cast(pl.Int64).to_numpy().copy())


class _Retrieval:
    """Vectors of users and items; a user who is new is known by the history."""

    def __init__(self, about: dict, folder: Path):
        from models.recommend.retrieval._log import Log

        self.users = _Users(folder)
        self.user_type, self.log_type = self.users.type, Log
        pairs = load_file(folder / "pairs.safetensors")
        self.log = Log.of(pairs["user"].long(), pairs["item"].long(), *about["sizes"])
        self.model = build("recommend.retrieval", about["method"], self.log, **about["settings"])
        fill(self.model, folder / "model.safetensors")
        if self.model.product:  # made once: a graph's vectors are sums over all its edges
            with torch.inference_mode():
                vectors = self.model.vectors()
            self.model.vectors = lambda: vectors

    def score(self, user: pl.Series, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, I), and 2 where the user is known, 1 where the history is, else 0."""
        index, row, item = self.users.places(user), row[item >= 0], item[item >= 0]
        known = torch.where(index >= 0, 2, 0)
        score = self.model.score(index.clamp(min=0)).float().clone()
        new = (known == 0) & torch.zeros_like(known, dtype=torch.bool).index_fill(0, row.unique(), True)
        if new.any():
            place = new.cumsum(0) - 1
            chosen = new[row]
            histories = self.log_type.of(place[row[chosen]], item[chosen], int(new.sum()), self.log.items)
            score[new] = self.model.score_histories(histories).float()
            known[new] = 1
        return score, known

    def seen(self, user: pl.Series) -> tuple[Tensor, Tensor]:
        """(request, item) pairs of the training log of the known users."""
        index = self.users.places(user)
        here = (index >= 0).nonzero().flatten()
        row, item = self.log.of_users(index[here])
        return here[row], item


class _Session:
    """A model of the next item, which knows a user by the history alone."""

    user_type = pl.Int64()

    def __init__(self, about: dict, folder: Path):
        self.user_type = pl.String() if about["user_type"] == "String" else pl.Int64()
        self.length = about["length"]
        self.model = build("recommend.session", about["method"], *about["sizes"], **about["settings"])
        fill(self.model, folder / "model.safetensors")

    def score(self, user: pl.Series, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, I), and 1 where the history has an item that is known, else 0."""
        count = row.bincount(minlength=len(user))
        place = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        back = count[row] - place  # 1 for the last item
        rows = torch.zeros(len(user), self.length, dtype=torch.int64)
        late = back <= self.length
        rows[row[late], self.length - back[late]] = torch.where(item[late] < 0, UNKNOWN, item[late] + FIRST)
        known = torch.zeros(len(user), dtype=torch.int64).index_fill(0, row[item >= 0].unique(), 1)
        return self.model.score(rows)[:, FIRST:].float().clone(), known

    def seen(self, user: pl.Series) -> tuple[Tensor, Tensor]:
        """Nothing besides the history."""
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)


class _Towers:
    """Vectors of described items, of which some are new; a user is known by fields and by the history."""

    def __init__(self, about: dict, folder: Path):
        from models.recommend.towers._towers import Fields, described, recent

        self.users = _Users(folder)
        self.user_type, self.length = self.users.type, about["length"]
        self.recent, self.described = recent, described
        kept = load_file(folder / "users.safetensors")
        self.fields, self.bought, self.owner = kept["fields"], kept["item"].long(), kept["user"].long()
        self.end = self.owner.bincount(minlength=len(self.users) + 1).cumsum(0)
        catalogue = load_file(folder / "catalogue.safetensors")
        self.item, self.item_numbers = catalogue["item"], catalogue["item_numbers"]
        fields = (Fields(**part | {"sizes": tuple(part["sizes"])}) for part in about["fields"])
        whole = build("recommend.towers", about["method"], *fields, about["items"], **about["settings"])
        self.model = whole.towers  # what else the method has is for training only, and has no weights here
        fill(self.model, folder / "model.safetensors")
        with torch.inference_mode():
            parts = zip(self.item.split(8192), self.item_numbers.split(8192), strict=True)
            self.vectors = torch.cat([self.model.item_vectors(*part) for part in parts])

    def score(self, user: pl.Series, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, I), and 2 where the user is known, 1 where the history is, else 0."""
        asked, known = self.ask(user, row, item)
        return self.model.score(asked, self.vectors).float(), known

    def ask(self, user: pl.Series, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of users, what an index is asked with, and how each is known.

        Args:
            row, item: histories; of a known user who brings none, those of the training are taken.
        """
        index, row, item = self.users.places(user), row[item >= 0], item[item >= 0]
        told = torch.zeros(len(user), dtype=torch.bool).index_fill(0, row.unique(), True)
        table = self.recent(row, item, len(user), self.length)
        own = (index >= 0) & ~told
        mine = self.end[index[own].clamp(min=0)][:, None] - torch.arange(self.length, 0, -1)
        inside = (mine >= 0) & (self.owner[mine.clamp(min=0)] == index[own][:, None])
        table[own] = torch.where(inside, self.bought[mine.clamp(min=0)], -1)
        read = self.described(table, self.item, self.item_numbers)
        asked = self.model.user_vectors(self.fields[index], torch.zeros(len(user), 0), *read.values())
        return asked, torch.where(index >= 0, 2, told.long())

    def seen(self, user: pl.Series) -> tuple[Tensor, Tensor]:
        """(request, item) pairs of the training log of the known users."""
        index = self.users.places(user)
        start = torch.cat([self.end.new_zeros(1), self.end[:-1]])
        count = torch.where(index >= 0, self.end[index] - start[index], 0)
        row = torch.arange(len(index)).repeat_interleave(count)
        place = torch.arange(len(row)) - (count.cumsum(0) - count)[row] + start[index[row]]
        return row, self.bought[place]


mlflow.models.set_model(Lists())
