"""The only place that talks to MLflow: runs, registered versions, aliases.

Without MLFLOW_TRACKING_URI everything lives in `mlruns/` of the checkout: an SQLite file and a folder, no server.
The database is created under a lock, because two first-time clients break each other's migrations.
"""

import functools
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tasks import process
from tasks.command import quiet
from tasks.files import locked
from tasks.score import without_passwords

__all__ = [
    "IDENTITY", "LISTINGS", "NAME", "RegistryError", "RegistryUnreachable", "Version", "attach", "by_alias",
    "by_number", "check_name", "describe", "download", "find", "find_run", "flat", "identity", "log_run", "model_files",
    "page_of", "register", "register_folder", "resolve", "run_data", "set_alias", "set_tags", "shown", "uri",
    "versions",
]  # fmt: skip

NAME = "rootstock"  # the experiment of every run
LISTINGS = "listing-encoder"  # the registered model that reads listings' words for a backbone
IDENTITY = "rootstock.identity"  # its tag that tells a new registry from the one that was deleted
PROCESS = "rootstock.process"  # a run's tag: who writes it, so that a run whose writer was killed can be closed
PROBE_SECONDS = 5
SQLITE = "sqlite:///"
HERE = f"{SQLITE}mlruns/mlflow.db"


class RegistryError(ValueError):
    """MLflow answered, and refused."""


class RegistryUnreachable(RegistryError):
    """MLflow did not answer."""


@dataclass(frozen=True)
class Version:
    """One registered version: immutable bytes under `models:/<name>/<number>`."""

    name: str
    number: int
    run: str
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


def uri() -> str:
    """Where runs and models are kept."""
    return os.environ.get("MLFLOW_TRACKING_URI") or HERE


def shown() -> str:
    """The address without a password that it may carry."""
    return without_passwords(uri())


def _spoken(ask: Callable) -> Callable:
    """Turn what MLflow raises into our two errors: unreachable, or refused."""

    @functools.wraps(ask)
    def asked(*args, **kwargs):
        import requests
        import sqlalchemy.exc
        from mlflow.exceptions import MlflowException

        try:
            return ask(*args, **kwargs)
        except (requests.RequestException, sqlalchemy.exc.SQLAlchemyError) as error:
            raise _unreachable(error) from None
        except MlflowException as error:
            if re.search(r"API request to|sqlalchemy|\((sqlite3|psycopg2?)\.", str(error), re.IGNORECASE):
                raise _unreachable(error) from None
            raise RegistryError(f"MLflow at {shown()} refused: {without_passwords(error)}") from None
        except _store_errors() as error:
            raise RegistryError(f"the object store of MLflow's files refused: {without_passwords(error)}") from None

    return asked


def _store_errors() -> tuple[type[Exception], ...]:
    """What the client of an object store raises, where one is installed; asked for only when something was raised."""
    if find_spec("boto3") is None:
        return ()
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return Boto3Error, BotoCoreError, ClientError


def _unreachable(error: object) -> RegistryUnreachable:
    said = re.sub(r"^\((sqlite3|psycopg2?)\.\w+\) ", "", without_passwords(error).splitlines()[0][:200])
    now = "Start it, or unset MLFLOW_TRACKING_URI to use mlruns/ here, then run `dvc repro` again"
    if "database is locked" in said:
        now = "Another program holds the database: end it or wait for it, then run `dvc repro` again"
    elif uri().startswith(SQLITE):
        now = "Mend that, then run `dvc repro` again"
    return RegistryUnreachable(
        f"MLflow does not answer at {shown()} ({said}); nothing was registered and the champion is as it was. {now}"
    )


def _client():
    """A client of a registry that exists; SQLite files and the experiment are made at first use."""
    quiet()
    address = uri()
    if address.startswith(("http://", "https://")):
        _knock(address)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 7 by default: minutes of silence
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # it shows what it raises, which we say in a line
    logging.getLogger("alembic").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(address)
    client = mlflow.MlflowClient()
    if address not in _ready:
        with locked("mlflow"):
            _experiment(client, address)
        _ready.add(address)
    return client


_ready: set[str] = set()  # addresses whose experiment this process has seen


def _knock(address: str) -> None:
    """Ask once and briefly, before MLflow's own client retries for minutes."""
    try:
        urlopen(f"{address.rstrip('/')}/health", timeout=PROBE_SECONDS).close()
    except HTTPError:
        return  # any answer is an answer, also 401
    except (URLError, OSError, ValueError) as error:
        raise _unreachable(getattr(error, "reason", error)) from None


def _experiment(client, address: str) -> None:
    places = None
    if address.startswith(SQLITE):
        file = Path(address.removeprefix(SQLITE))
        file.parent.mkdir(parents=True, exist_ok=True)
        places = str((file.parent / "artifacts").resolve())
    found = client.get_experiment_by_name(NAME)
    if found is None:
        client.create_experiment(NAME, artifact_location=places, tags={IDENTITY: uuid.uuid4().hex})
    elif found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)


@_spoken
def identity() -> str:
    """What tells this registry from another one, or from a deleted one of the same address; made at first use."""
    client = _client()
    found = client.get_experiment_by_name(NAME)
    if IDENTITY not in found.tags:  # the experiment was there before us
        client.set_experiment_tag(found.experiment_id, IDENTITY, uuid.uuid4().hex)
        found = client.get_experiment_by_name(NAME)
    return found.tags[IDENTITY]


@_spoken
def log_run(
    name: str,
    *,
    params: dict,
    metrics: dict[str, float],
    curve: Iterable[dict[str, float]] = (),
    files: dict[str, Path | str | bytes] | None = None,
    data: tuple[str, str] | None = None,
    tags: dict[str, object] | None = None,
) -> str:
    """Record a finished piece of work.

    Args:
        params: nested settings; keys are joined by dots.
        metrics: final values; those that are not finite are left out, the verdict names them.
        curve: rows with a `step`, every other column a metric over it.
        files: place in the run -> a file or folder (Path), text, or bytes.
        data: name and digest of the rows it came from.

    Returns:
        The run's id.
    """
    from mlflow.entities import Param, RunTag

    client = _client()
    _close_abandoned(client)
    experiment = client.get_experiment_by_name(NAME).experiment_id
    run = client.create_run(experiment, run_name=name, tags={PROCESS: process.mark()}).info.run_id
    try:
        texts = {key: str(value)[:6000] for key, value in flat(params).items()}
        client.log_batch(run, params=[Param(key, value) for key, value in sorted(texts.items())],
                         tags=[RunTag(key, str(value)) for key, value in (tags or {}).items()])  # fmt: skip
        _log_metrics(client, run, metrics, list(curve))
        for place, content in (files or {}).items():
            _log_file(client, run, place, content)
        if data:
            _log_data(client, run, *data)
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run, "FINISHED")
    return run


def _close_abandoned(client) -> None:
    """End the runs whose process was killed: they would look as if they were at work for good."""
    experiment = client.get_experiment_by_name(NAME).experiment_id
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if process.alive(run.data.tags.get(PROCESS, "")) is False and PROCESS in run.data.tags:
            versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
            client.set_terminated(run.info.run_id, "FINISHED" if versions else "KILLED")


def _log_metrics(client, run: str, metrics: dict[str, float], curve: list[dict[str, float]]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [Metric(key, float(value), now, 0) for key, value in metrics.items() if _finite(value)]
    for row in curve:
        points += [Metric(key, float(value), now, int(row["step"])) for key, value in row.items()
                   if key != "step" and _finite(value)]  # fmt: skip
    for start in range(0, len(points), 1000):  # MLflow's largest batch
        client.log_batch(run, metrics=points[start : start + 1000])


def _log_file(client, run: str, place: str, content: Path | str | bytes) -> None:
    import tempfile

    folder, _, file = place.rpartition("/")
    if isinstance(content, Path):
        if content.is_dir():
            client.log_artifacts(run, str(content), place)
        elif content.name == file:
            client.log_artifact(run, str(content), folder or None)
        else:
            _log_file(client, run, place, content.read_bytes())
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, file)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        client.log_artifact(run, str(path), folder or None)


def _log_data(client, run: str, name: str, digest: str) -> None:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput

    dataset = MetaDataset(CodeDatasetSource(tags={}), name=name, digest=digest[:36])  # 36: MLflow's longest digest
    client.log_inputs(run, datasets=[DatasetInput(dataset._to_mlflow_entity())])


@_spoken
def register(
    run: str,
    name: str,
    model: Path,
    inputs: dict[str, tuple[str, bool]],
    example,
    expected,
    metrics: dict[str, float],
    tags: dict[str, object],
) -> Version:
    """Log a packed model to its run and register it as the next version.

    The version and its tags are one transaction: a process that dies before leaves a run and no version, one that dies
    after leaves a version that `find` finds by its content.

    Args:
        model: folder with `bundle/` and `code/`, see tasks/bundle.py.
        inputs: column -> (polars type, may be null): the signature.
        example: pandas rows that are kept with the version.
        expected: pandas answer to them.
        metrics: of this model, for searching models by them.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    check_name(name)
    _client()
    kinds = {"Int64": "long", "Float64": "double", "String": "string", "Boolean": "boolean"}
    # A nullable whole number comes as int64 or as float64 from pandas, as the batch happens to be: MLflow has no such
    # type, so these are `any` in the signature and checked by the model itself.
    kind = lambda type, nullable: (
        AnyType() if nullable and type in ("Int64", "Boolean") else kinds.get(type) or AnyType()
    )
    signature = ModelSignature(
        inputs=Schema([ColSpec(kind(type, nullable), column) for column, (type, nullable) in inputs.items()]),
        outputs=Schema(
            [
                ColSpec("double" if expected[column].dtype.kind == "f" else AnyType(), column)
                for column in expected.columns
            ]
        ),
    )
    code = model / "code"
    _client().set_tag(run, PROCESS, process.mark())
    with mlflow.start_run(run_id=run):
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(code / "serve.py"),
            code_paths=[str(path) for path in sorted(code.iterdir()) if path.name != "serve.py"],
            artifacts={"bundle": str(model / "bundle")},
            signature=signature,
            input_example=example,
            pip_requirements=requirements(words=(code / "texts.py").is_file()),
        )
        return _registered(info, name, metrics, tags)


@_spoken
def register_folder(run: str, name: str, folder: Path, metrics: dict[str, float], tags: dict[str, object]) -> Version:
    """Log a language model's folder to its run and register it as the next version; see `register`.

    Args:
        folder: transformers layout, see tasks/flavor.py.
    """
    import mlflow
    from mlflow.models import Model

    from tasks import flavor

    check_name(name)
    _client().set_tag(run, PROCESS, process.mark())
    with mlflow.start_run(run_id=run):
        info = Model.log(None, flavor, name=name, run_id=run, flavor_name="transformers", folder=folder)
        return _registered(info, name, metrics, tags)


def _registered(info, name: str, metrics: dict[str, float], tags: dict[str, object]) -> Version:
    import mlflow

    mlflow.log_metrics({key: value for key, value in metrics.items() if _finite(value)}, model_id=info.model_id)
    with redirect_stderr(StringIO()):  # it congratulates on stderr, where only warnings and errors belong
        made = mlflow.register_model(info.model_uri, name, tags={key: str(value) for key, value in tags.items()})
    return by_number(name, int(made.version))


def requirements(words: bool = False) -> list[str]:
    """Exact versions of what serving imports; given, because guessing them costs a process of 16 seconds."""
    from importlib.metadata import version

    packages = ["mlflow", "numpy", "pandas", "polars", "pyarrow", "safetensors", "torch"]
    packages += ["tokenizers", "transformers"] if words else []
    return [f"{package}=={version(package).split('+')[0]}" for package in packages]


@_spoken
def find(name: str, tag: str, value: str) -> Version | None:
    """The first version of a model that carries a tag, such as the content's SHA-256."""
    found = _client().search_model_versions(f"name = '{check_name(name)}' and tag.`{tag}` = '{value}'")
    return _version(min(found, key=lambda version: int(version.version))) if found else None


@_spoken
def versions() -> list[Version]:
    """Every registered version, by name and number."""
    client, found, token = _client(), [], None
    while token is None or token:
        page = client.search_model_versions(page_token=token)
        found, token = found + list(map(_version, page)), page.token or ""
    return sorted(found, key=lambda version: (version.name, version.number))


@_spoken
def find_run(**tags: str) -> str | None:
    """The newest finished run that carries these tags."""
    client = _client()
    experiment = client.get_experiment_by_name(NAME).experiment_id
    wanted = [f"tags.`{tag}` = '{value}'" for tag, value in tags.items()] + ["attributes.status = 'FINISHED'"]
    found = client.search_runs([experiment], " and ".join(wanted), max_results=1)
    return found[0].info.run_id if found else None


@_spoken
def run_data(run: str) -> tuple[dict[str, str], dict[str, float]]:
    """Params and final metrics of a run."""
    data = _client().get_run(run).data
    return dict(data.params), dict(data.metrics)


@_spoken
def by_alias(name: str, alias: str) -> Version | None:
    """The version that an alias points at, or None: no such model, or no such alias."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(_client().get_model_version_by_alias(check_name(name), alias))
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


@_spoken
def by_number(name: str, number: int) -> Version:
    """One version.

    Raises:
        RegistryError: there is no such version; names those there are.
    """
    from mlflow.exceptions import MlflowException

    client = _client()
    try:
        return _version(client.get_model_version(check_name(name), str(number)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        there = sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))
        known = f"its versions are {', '.join(map(str, there))}" if there else "no version of it was ever registered"
        raise RegistryError(f"{name} has no version {number} at {shown()}; {known}") from None


def resolve(uri: str) -> Version:
    """The version behind `models:/name/3` or `models:/name@champion`.

    Raises:
        RegistryError: not such an address, or nothing is there.
    """
    found = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([a-z]+))", uri)
    if not found:
        raise RegistryError(
            f"{uri!r} is no model; write models:/recommend-<task>@champion or models:/recommend-<task>/3"
        )
    name, number, alias = found.groups()
    version = by_number(name, int(number)) if number else by_alias(name, alias)
    if version is None:
        raise RegistryError(f"{name} has no {alias} at {shown()}")
    return version


@_spoken
def set_alias(version: Version, alias: str) -> None:
    """Point `alias` at a version; one transaction."""
    client = _client()
    _close_abandoned(client)
    client.set_registered_model_alias(version.name, alias, str(version.number))


@_spoken
def set_tags(version: Version, **tags: object) -> None:
    """Set tags of a version."""
    client = _client()
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.number), key, str(value))


@_spoken
def describe(version: Version, text: str) -> None:
    """Set what a version's own page says of it, in Markdown."""
    _client().update_model_version(version.name, str(version.number), text)


@_spoken
def attach(run: str, place: str, content: Path | str | bytes) -> None:
    """Keep one more file with a run that is over; see `log_run`."""
    _log_file(_client(), run, place, content)


@_spoken
def page_of(run: str, place: str) -> str:
    """Where a browser shows a run's file: at the server, or where `make ui` opens what lies in this checkout."""
    experiment = _client().get_run(run).info.experiment_id
    server = shown().rstrip("/") if uri().startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment}/runs/{run}/artifacts/{place}"


@_spoken
def download(version: Version, place: str, folder: Path) -> Path:
    """A file or folder of a version's run, as a local path below `folder`.

    Raises:
        RegistryError: the run has no such file; it was deleted, or an older release made it.
    """
    import mlflow

    _client()
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=version.run, artifact_path=place, dst_path=str(folder)))
    except OSError as error:
        raise RegistryError(f"{version.uri}: its run {version.run} has lost {place} ({error})") from None


@_spoken
def model_files(version: Version, folder: Path) -> Path:
    """A copy of a version's own files below `folder`."""
    import mlflow

    _client()
    return Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(folder)))


def check_name(name: str) -> str:
    """A registered model's name.

    Raises:
        RegistryError: not `recommend-`, `recommender-`, `language-` or `distill-` and a name, nor LISTINGS. MLflow
            itself accepts blanks and `@`.
    """
    if name != LISTINGS and not re.fullmatch(r"(recommend|recommender|language|distill)-[a-z][a-z0-9_]*", name):
        raise RegistryError(f"{name!r} is no name of a model here; they are recommend-backbone, recommend-<task>, "
                            f"recommender-<name>, language-<recipe>, language-<task>, distill-<method>, "
                            f"{LISTINGS}")  # fmt: skip
    return name


def _version(found) -> Version:
    return Version(found.name, int(found.version), found.run_id, dict(found.tags))


def flat(value, prefix: str = "") -> dict[str, object]:
    """Nested settings with their keys joined by dots, as a run shows them.

    >>> flat({"a": {"b": 1}, "c": {}})
    {'a.b': 1, 'c': {}}
    """
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    return {key: leaf for name, part in value.items()
            for key, leaf in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()}  # fmt: skip


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
