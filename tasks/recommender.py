"""Train one recommender of models/recommend/<kind>/ and judge it as it would be served: a folder with its evidence.

    python -m tasks.recommender params.yaml:recommenders.models NAME INGEST OUT CHECKPOINTS

An entry says `method: <kind>/<name>`, such as retrieval/lightgcn or session/sasrec; the kind is a file of
tasks/recommenders/, the name one of models/recommend/<kind>/. What is served is packed first and judged after: test
lists come from the packed files, and popularity answers the same requests beside it.
"""

import shutil
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from tempfile import TemporaryDirectory

import polars as pl
from safetensors.torch import save_file

import models
import tasks.recommenders
from tasks import bundle, plots
from tasks.command import run
from tasks.curve import write_curve
from tasks.files import digest, new_folder, write_json, write_text
from tasks.judge_lists import judge_lists, popular
from tasks.recommenders._family import Family
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.training import use_threads

__all__ = ["AT", "SERVED", "kind_of", "load", "pack", "train_recommender"]

AT = (10, 20, 50)
SERVED = {"serve_lists.py": "serve.py", "bundled.py": "bundled.py"}  # files of tasks/, as a version names them
EXAMPLES = 8  # requests that a registered version is replayed on


def train_recommender(entries: Mapping, name: str, ingest: Path, out: Path, checkpoints: Path | None) -> dict:
    """Train, pack and judge, and write the folder `out` whole or not at all.

    Args:
        entries: the `recommenders.models` part of params.yaml.
        name: of the entry.
        ingest: its ingested data set.
        out: takes packed/ (what is served), metrics.json {"test", "popularity"}, requests.parquet (metrics of each
            test request), run.json, curve.csv and extra/*.png.
        checkpoints: of the run; None keeps none.

    Returns:
        The metrics.

    Raises:
        SettingsError, LookupError, ValueError: what cannot work, before any training.
        FloatingPointError: the loss diverged; the checkpoints stay.
    """
    use_threads()
    entry = _entry(entries, name)
    kind, method = kind_of(entry["method"], name)
    family: Family = import_module(f"tasks.recommenders.{kind}").Family(name, method, entry, ingest)
    training = dict(entry.get("training") or {})
    # A run is known by what decides its result; a checkpoint of any other run is never picked up.
    known = digest(_known(checkpoints, entry, family)) if checkpoints else ""
    with slot() as device:
        trained = family.train(training, checkpoints and checkpoints / known[:16], device)
    requests = family.rows("test")
    if requests.is_empty():
        raise SettingsError(f"{ingest} has no test request for recommenders.models.{name}; give it a longer test split")
    with new_folder(out) as folder:
        about = pack(family, kind, method, folder / "packed")
        requests.select("user", "history").head(EXAMPLES).write_parquet(folder / "packed/example.parquet")
        served, log, at = load(folder / "packed"), family.log(), AT
        started = time.perf_counter()
        lists = served.lists(requests, max(at))
        seconds = time.perf_counter() - started
        per_request, found = judge_lists(lists, requests, log, at)
        floor_rows, floor = judge_lists(popular(requests, log, max(at), about["repeats"]), requests, log, at)
        told = per_request.with_columns(known=lists["known"]).hstack(floor_rows.rename(lambda key: f"popularity {key}"))
        told.write_parquet(folder / "requests.parquet")
        metrics = {"test": found, "popularity": floor}
        write_json(folder / "metrics.json", metrics)
        (folder / "extra").mkdir()
        (folder / "extra/recall.png").write_bytes(plots.beside(metrics, ("recall", "ndcg"), at))
        write_curve(folder, trained.curve, "score", picture="extra/curve.png")
        write_json(folder / "run.json", {
            "name": name, "kind": kind, "method": method, "settings": dict(entry.get("settings") or {}),
            "training": training, "parameters": sum(p.numel() for p in family.model.parameters()),
            "fingerprint": family.fingerprint, "requests_sha256": rows_digest(requests), "requests": len(requests),
            "known": dict(lists["known"].value_counts().iter_rows()), "at": list(at), "seconds": trained.seconds,
            "best_epoch": trained.best_epoch, "lists_per_second": len(requests) / max(seconds, 1e-9),
        })  # fmt: skip
    if checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    print(f"{name}: {kind}/{method}, {len(requests)} test requests: recall@20 {found['recall@20']:.4f}, ndcg@20 "
          f"{found['ndcg@20']:.4f} (popularity {floor['recall@20']:.4f}, {floor['ndcg@20']:.4f})")  # fmt: skip
    return metrics


def kind_of(address: str, name: str) -> tuple[str, str]:
    """ "retrieval/als" -> ("retrieval", "als").

    Raises:
        SettingsError: it does not name a kind and a method; says which kinds there are.
    """
    kinds = sorted(found.name for found in iter_modules(tasks.recommenders.__path__) if found.name[0] != "_")
    kind, _, method = str(address).partition("/")
    if kind not in kinds or not method:
        raise SettingsError(f"recommenders.models.{name}.method is {address!r}; write <kind>/<method>, such as "
                            f"retrieval/als; the kinds are {', '.join(kinds)}")  # fmt: skip
    return kind, method


def pack(family: Family, kind: str, method: str, out: Path) -> dict:
    """Fill `out` with `bundle/` and `code/`, as tasks/bundle.py does for a backbone; returns recommender.json."""
    files = out / "bundle"
    files.mkdir(parents=True)
    about = {"family": kind, "method": method, "settings": family.settings} | family.bundle(files)
    write_json(files / "recommender.json", about)
    state = {key: value.contiguous() for key, value in family.model.cpu().state_dict().items()}
    save_file(state, files / "model.safetensors")
    bundle.finish(out, f"models.recommend.{kind}.{method}", SERVED, outputs=["items", "scores", "known"])
    return about


def load(packed: Path, bundled: str = "bundle"):
    """The packed recommender in this process, through the code that serves it.

    Args:
        bundled: where the bundle lies in the folder.
    """
    # In a registered version bundled.py lies at the top of the code path; here it is a module of `tasks`.
    sys.modules.setdefault("bundled", import_module("tasks.bundled"))
    return import_module("tasks.serve_lists").Lists().open(packed / bundled)


def rows_digest(requests: pl.DataFrame) -> str:
    """SHA-256 of the test requests: two models measured on equal ones can be compared."""
    with TemporaryDirectory() as place:
        return digest(write_text(Path(place) / "rows.json", requests.write_ndjson()))


def _entry(entries: Mapping, name: str) -> dict:
    if name not in (entries or {}):
        there = ", ".join(entries or {}) or "nothing"
        raise SettingsError(f"recommenders.models has no {name!r}; it has: {there}")
    entry = dict(entries[name] or {})
    if absent := [key for key in ("method", "data") if key not in entry]:
        raise SettingsError(f"recommenders.models.{name} lacks {' and '.join(absent)}; write {{method: retrieval/als, "
                            f"data: sample}}")  # fmt: skip
    return entry


def _known(checkpoints: Path, entry: Mapping, family: Family) -> Path:
    code = digest(Path(models.__file__).parent)
    return write_text(checkpoints / "run.txt", f"{entry}\n{family.fingerprint}\n{code}\n")


def main(address: str, name: str, ingest: str, out: str, checkpoints: str) -> None:
    """python -m tasks.recommender params.yaml:recommenders.models NAME INGEST OUT CHECKPOINTS"""
    train_recommender(read(address), name, Path(ingest), Path(out), Path(checkpoints))


if __name__ == "__main__":
    run(main)
