"""Score raw rows with a registered version, checked against the registry's hash before any of its code runs.

    python -m tasks.score models:/recommend-offer_make@champion rows.parquet out.parquet
    python score.py models:/recommend-offer_make/3 rows.parquet out.parquet      # anywhere: this file is enough

It imports nothing of the repository, only mlflow and polars; the model brings its own code.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

__all__ = ["ChangedVersion", "score", "without_passwords"]

REPEATS = 20
COVERED = (".py", ".pyc", ".so", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")  # what may run code

DESCRIBED = {  # what MLmodel says of every version that tasks/track.py registers
    "loader_module": "mlflow.pyfunc.loaders.code_model",
    "code": "code",
    "model_code_path": "serve.py",
    "artifacts": {"bundle": "artifacts/bundle"},
    "other flavours": [],
}
HARMLESS = ("cloudpickle_version", "env", "python_version", "streamable")


class ChangedVersion(ValueError):
    """A registered version's files are not those that were registered; nothing of it was loaded."""


def score(uri: str, rows: str | Path, out: str | Path) -> dict:
    """Write the model's columns for the rows of a Parquet file, in their order.

    Args:
        uri: `models:/<name>/<version>` or `models:/<name>@<alias>`; MLFLOW_TRACKING_URI says where.
        rows: Parquet with at least the columns of the model's signature.

    Returns:
        version, rows, load_seconds, first_row_ms, row_ms (median of 20) and rows_per_second.

    Raises:
        ChangedVersion: its files do not have the hash that the registry holds.
        ValueError: columns are missing or of a wrong type.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db")
    address = without_passwords(os.environ["MLFLOW_TRACKING_URI"])
    if address.startswith("sqlite:///") and not Path(address.removeprefix("sqlite:///")).is_file():
        raise ValueError(f"there is no registry at {address}; run where it is, or set MLFLOW_TRACKING_URI")
    import mlflow
    import polars as pl
    from mlflow.exceptions import MlflowException

    started = time.perf_counter()
    try:
        version = find(uri)
        with (
            TemporaryDirectory() as copy
        ):  # what is checked is what is loaded, also when somebody writes there meanwhile
            place = f"models:/{version.name}/{version.version}"
            folder = Path(mlflow.artifacts.download_artifacts(place, dst_path=copy))
            check(folder, version.tags.get("content_sha256"), uri)
            model = mlflow.pyfunc.load_model(str(folder))
    except MlflowException as error:
        raise ValueError(f"{uri} cannot be loaded from {address}: {without_passwords(error)}") from None
    loaded = time.perf_counter() - started

    names = [column.name for column in model.metadata.signature.inputs]
    try:
        there = pl.scan_parquet(rows).collect_schema()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{rows} is not a Parquet file: {error}") from None
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"{rows} lacks {len(missing)} columns that {uri} reads: {', '.join(missing)}")
    frame = pl.read_parquet(rows, columns=names).with_columns(_widened(there, names, pl)).to_pandas()
    try:
        times = _row_times(model, frame)
        started = time.perf_counter()
        found = pl.from_pandas(model.predict(frame))
    except MlflowException as error:
        raise ValueError(f"{rows} does not fit the signature of {uri}: {error}") from None
    seconds = time.perf_counter() - started
    found.write_parquet(out)
    return {
        "version": int(version.version),
        "rows": len(frame),
        "load_seconds": loaded,
        "first_row_ms": times[0] if times else None,
        "row_ms": median(times[1:]) if times else None,
        "rows_per_second": len(frame) / seconds,
    }


def find(uri: str):
    """The registered version behind `models:/name/3` or `models:/name@alias`."""
    import mlflow

    client, address = mlflow.MlflowClient(), uri.removeprefix("models:/")
    if "@" in address:
        return client.get_model_version_by_alias(*address.split("@", 1))
    if address.count("/") != 1:
        raise ValueError(f"{uri!r} is no model; write models:/recommend-<task>@champion or models:/recommend-<task>/3")
    return client.get_model_version(*address.split("/"))


def check(folder: Path, expected: str | None, uri: str) -> None:
    """Compare a downloaded version with the hash in the registry, file by file, code included.

    Raises:
        ChangedVersion: names what differs.
    """
    for compiled in list(folder.rglob("__pycache__")):  # Python would run it in the place of the checked source
        shutil.rmtree(compiled)
    bundle = folder / "artifacts/bundle"
    manifest = bundle / "manifest.json"
    if not manifest.is_file() or _sha256(manifest) != expected:
        raise ChangedVersion(
            f"{uri}: the manifest at {manifest} is not the registered one ({expected}); nothing was loaded"
        )
    _check_description(folder / "MLmodel", uri)
    listed = json.loads(manifest.read_text())
    wanted = {bundle / name: sha for name, sha in listed["files"].items()}
    wanted |= {
        folder / "serve.py" if name == "serve.py" else folder / "code" / name: sha
        for name, sha in listed["code"].items()
    }
    faults = [f"{path.relative_to(folder)} is missing or changed" for path, sha in wanted.items()
              if not path.is_file() or _sha256(path) != sha]  # fmt: skip
    faults += [f"{path.relative_to(folder)} was added" for path in sorted(folder.rglob("*"))
               if path.suffix.lower() in COVERED and path not in wanted]  # fmt: skip
    if faults:
        raise ChangedVersion(f"{uri}: {'; '.join(faults)}; nothing was loaded. Roll back, or rebuild this version")


def _check_description(file: Path, uri: str) -> None:
    """MLmodel carries times and ids, so no hash covers it; it must load the checked files, and nothing else.

    Raises:
        ChangedVersion: it names another loader, folder of code or artifact.
    """
    import yaml

    try:
        flavors = dict(yaml.safe_load(file.read_text())["flavors"])
        told = dict(flavors.pop("python_function"))
        places = {name: part["path"] for name, part in told.pop("artifacts").items()}
        code = Path(told.pop("model_code_path")).name
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ChangedVersion(f"{uri}: {file} is no description of this model ({error}); nothing was loaded") from None
    found = told | {"artifacts": places, "model_code_path": code, "other flavours": sorted(flavors)}
    odd = {name: value for name, value in found.items() if name in DESCRIBED and value != DESCRIBED[name]}
    odd |= {name: value for name, value in found.items() if name not in DESCRIBED and name not in HARMLESS}
    if odd:
        raise ChangedVersion(f"{uri}: {file} loads by {odd}, which is not what was registered; nothing was loaded")


def without_passwords(text: object) -> str:
    """A text without the passwords of the addresses in it; here, since this file serves alone too."""
    return re.sub(r"//[^/\s]*@", "//", str(text))


def _widened(schema, names: list[str], pl) -> list:
    """Casts to MLflow's types: it refuses an unsigned or a 32-bit number in another's place."""
    wide = {name: pl.Int64 if schema[name].is_integer() else pl.Float64 for name in names if schema[name].is_numeric()}
    return [pl.col(name).cast(kind) for name, kind in wide.items()]


def _row_times(model, frame) -> list[float]:
    """Milliseconds of one-row predictions; the first one warms up."""
    times = []
    for index in range(REPEATS + 1 if len(frame) else 0):
        place = index % len(frame)
        started = time.perf_counter()
        model.predict(frame.iloc[place : place + 1])
        times.append((time.perf_counter() - started) * 1000)
    return times


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(uri: str, rows: str, out: str, times: str | None = None) -> None:
    """python -m tasks.score models:/NAME@champion ROWS.parquet OUT.parquet [TIMES.json]"""
    try:
        done = score(uri, rows, out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if times:
        Path(times).write_text(json.dumps(done))
    speed = f"one row takes {done['row_ms'] or 0:.1f} ms, {done['rows_per_second']:.0f} rows/s"
    loaded = f"loaded in {done['load_seconds']:.1f} s"
    print(f"{uri}: {done['rows']} rows scored by version {done['version']} into {out}; {loaded}, {speed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
