"""Out of one machine: pools for containers and clusters, and data and models on an object store that asks for keys."""

import json
import logging
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from prefect.testing.utilities import prefect_test_harness

ROOT = Path(__file__).parents[1]
POOLS = ("process", "docker", "kubernetes")
WRONG = "aWrongSecretThatNobodyMaySee"


# ---------------------------------------------------------------- pools


def template(kind: str) -> dict:
    return json.loads((ROOT / "deploy/pools" / f"{kind}.json").read_text())


def shipped(kind: str) -> dict:
    """The template that comes with the installed Prefect, which knows it without a network."""
    import prefect.server.api

    folder = Path(prefect.server.api.__file__).parent / "collections_data/views"
    known = json.loads((folder / "aggregate-worker-metadata.json").read_text())
    return next(workers[kind]["default_base_job_configuration"] for workers in known.values() if kind in workers)


@pytest.mark.parametrize("kind", POOLS)
def test_pools_speak_of_what_prefect_knows(kind):
    ours, theirs = template(kind), shipped(kind)
    assert set(ours["job_configuration"]) <= set(theirs["job_configuration"])
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(ours["job_configuration"])))
    assert used == set(ours["variables"]["properties"])
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    asked = {name for one in deployments for name in one["work_pool"].get("job_variables", {})}
    assert asked and asked <= used  # what our deployments set


def test_a_job_of_kubernetes_is_the_one_that_prefect_makes():
    """Its manifest has every field of Prefect's own, besides what is left to the cluster."""
    fields = lambda value, at="": {at} | ({name for key in value for name in fields(value[key], f"{at}/{key}")}
                                          if isinstance(value, dict) else set())  # fmt: skip
    ours, theirs = (made("kubernetes")["job_configuration"]["job_manifest"] for made in (template, shipped))
    assert fields(theirs) <= fields(ours)
    inside = lambda manifest: manifest["spec"]["template"]["spec"]["containers"][0]
    assert set(inside(theirs)) <= set(inside(ours))
    pod = ours["spec"]["template"]["spec"]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in inside(ours)["volumeMounts"]}
    claim = yaml.safe_load((ROOT / "deploy/checkout.yaml").read_text())
    assert claim["metadata"]["name"] == template("kubernetes")["variables"]["properties"]["claim"]["default"]


@pytest.mark.anyio
async def test_a_server_takes_the_pools_and_workers_read_them():
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessJobConfiguration

    with prefect_test_harness(server_startup_timeout=120):
        async with get_client() as client:
            for kind in POOLS:
                await client.create_work_pool(WorkPoolCreate(name=kind, type=kind, base_job_template=template(kind)))
            pools = {pool.name: pool for pool in await client.read_work_pools()}
            process = await ProcessJobConfiguration.from_template_and_values(
                pools["process"].base_job_template,
                {"env": {"ONE": "1"}, "working_dir": "/srv/rootstock"},
                client=client,
            )
    assert {name: pool.type for name, pool in pools.items()} == {kind: kind for kind in POOLS}
    assert process.env == {"ONE": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    assert str(process.working_dir) == "/srv/rootstock"


@pytest.mark.anyio
@pytest.mark.skipif(find_spec("prefect_docker") is None, reason="no prefect-docker here")
async def test_docker_runs_our_image_on_the_checkout():
    from prefect_docker.worker import DockerWorkerJobConfiguration

    made = await DockerWorkerJobConfiguration.from_template_and_values(template("docker"), {}, client=object())
    assert made.image == "rootstock" and made.auto_remove and made.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert "/srv/rootstock:/rootstock" in made.volumes


@pytest.mark.anyio
@pytest.mark.skipif(find_spec("prefect_kubernetes") is None, reason="no prefect-kubernetes here")
async def test_kubernetes_asks_for_what_is_set():
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    chosen = {"gpus": 2, "memory": "64Gi", "claim": "other", "name": "x"}
    made = await KubernetesWorkerJobConfiguration.from_template_and_values(
        template("kubernetes"), chosen, client=object()
    )
    pod = made.job_manifest["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "other"}
    asked = (template("kubernetes"), {"name": "x"})
    plain = await KubernetesWorkerJobConfiguration.from_template_and_values(*asked, client=object())
    limits = plain.job_manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "8Gi"}  # no GPU where none is asked for


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_the_image_is_the_pinned_environment_around_a_mounted_checkout():
    lines = [line.strip() for line in (ROOT / "deploy/Dockerfile").read_text().splitlines()]
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    assert copied == [["constraints.txt"]] and (ROOT / "constraints.txt").is_file()  # no code: that is the checkout
    assert any("pip install" in line and "constraints.txt" in line for line in lines)
    python = next(line for line in lines if line.startswith("FROM python:")).removeprefix("FROM python:")
    assert python.startswith((ROOT / "Makefile").read_text().split("PYTHON ?= python")[1].split()[0])
    sent = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split()
    assert sent == ["*", "!constraints.txt"]  # no data, key or history goes to the builder

    from tasks.slots import FOLDER

    (home,) = [line.split()[1] for line in lines if line.startswith("WORKDIR ")]
    volumes = template("docker")["variables"]["properties"]["volumes"]["default"]
    inside = {volume.split(":")[1] for volume in volumes}
    container = template("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == inside == {home, f"/tmp/{FOLDER.name}"}


# ---------------------------------------------------------------- an object store


@pytest.fixture(scope="module")
def store():
    """An S3 server on this host with the bucket `models`, which refuses whoever has no key: what a client needs."""
    import boto3
    from moto import settings
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    before = settings.INITIAL_NO_AUTH_ACTION_COUNT
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        root = {
            "endpoint_url": address,
            "region_name": "us-east-1",
            "aws_access_key_id": "a",
            "aws_secret_access_key": "b",
        }
        people = boto3.client("iam", **root)
        people.create_user(UserName="rootstock")
        allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        people.put_user_policy(UserName="rootstock", PolicyName="all", PolicyDocument=json.dumps(allowed))
        key = people.create_access_key(UserName="rootstock")["AccessKey"]
        boto3.client("s3", **root).create_bucket(Bucket="models")
        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from here on
        yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
               "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_S3_ENDPOINT_URL": address}  # fmt: skip
    finally:
        settings.INITIAL_NO_AUTH_ACTION_COUNT = before
        server.stop()


def say(folder: Path, *words: str, fails: bool = False, **environment: str) -> str:
    """What a command prints, which never is a key."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_TRACKING"))}
    known = {"DVC_SITE_CACHE_DIR": str(folder.parent / "site"), "PYTHONPATH": str(ROOT), "HOME": str(folder.parent),
             "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
    done = subprocess.run([sys.executable, *words], cwd=folder, env=kept | known | environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-4000:]
    secret = environment.get("AWS_SECRET_ACCESS_KEY")
    assert not secret or secret not in done.stdout
    return done.stdout


def test_data_and_outputs_travel_by_the_store(store, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    dvc = lambda folder, *words, **more: say(folder, "-m", "dvc", *words, **store | more)
    dvc(here, "init", "-q", "--no-scm")
    (here / "raw.txt").write_text("a listing\n" * 50)
    (here / "dvc.yaml").write_text("stages:\n  copy: {cmd: cp raw.txt out.txt, deps: [raw.txt], outs: [out.txt]}\n")
    dvc(here, "add", "-q", "raw.txt")
    dvc(here, "repro", "-q")
    dvc(here, "remote", "add", "-q", "-d", "store", "s3://models/dvc")
    dvc(here, "remote", "modify", "-q", "store", "endpointurl", store["MLFLOW_S3_ENDPOINT_URL"])
    assert "1 file pushed" in dvc(here, "push")  # both files have one content

    (there / ".dvc").mkdir()  # what a clone has: no cache
    for name in ("dvc.yaml", "dvc.lock", "raw.txt.dvc", ".dvc/config"):
        (there / name).write_bytes((here / name).read_bytes())
    dvc(there, "pull")
    assert all((there / name).read_bytes() == (here / name).read_bytes() for name in ("raw.txt", "out.txt"))
    assert "didn't change, skipping" in dvc(there, "repro")  # restored, not made again
    assert all(value not in (here / ".dvc/config").read_text() for key, value in store.items() if "KEY" in key)

    (here / "raw.txt").write_text("another")
    dvc(here, "repro", "-q")
    assert "Forbidden" in dvc(here, "push", fails=True, AWS_SECRET_ACCESS_KEY=WRONG)
    assert "Unable to locate credentials" in dvc(
        here, "push", fails=True, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""
    )


LOG = """
from pathlib import Path
from tasks import track
from tasks.command import run
run(lambda: print(track.log_run("made", params={}, metrics={"a": 1.0}, files={"notes/why.txt": "as it was judged"})))
"""
FETCH = """
import sys
from pathlib import Path
from tasks import track
from tasks.command import run
run(lambda number: print(track.download(track.Version("recommend-x", 1, number), "notes", Path(number)) / "why.txt"))
"""


@pytest.fixture(scope="module")
def registry(store, tmp_path_factory):
    """A folder whose MLflow keeps its files in the store, and what a client needs."""
    folder = tmp_path_factory.mktemp("registry") / "here"
    folder.mkdir()
    environment = store | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    say(folder, "-m", "mlflow", "experiments", "create", "-n", "rootstock", "-l", "s3://models/mlflow", **environment)
    return folder, environment


def test_files_of_runs_are_kept_in_the_store(registry):
    folder, environment = registry
    run = say(folder, "-c", LOG, **environment).split()[-1]
    assert not (folder / "mlruns").exists()
    place = say(folder, "-c", FETCH, run, **environment).split()[-1]
    assert (folder / place).read_text() == "as it was judged"
    refused = say(folder, "-c", FETCH, run, fails=True, **environment | {"AWS_SECRET_ACCESS_KEY": WRONG})
    assert refused.splitlines()[-1].startswith("error: MLflow at") and "Traceback" not in refused


def test_a_store_that_refuses_is_named(registry):
    folder, environment = registry
    refused = say(folder, "-c", LOG, fails=True, **environment | {"AWS_SECRET_ACCESS_KEY": WRONG})
    assert refused.splitlines()[-1].startswith("error: ") and "signature" in refused and "Traceback" not in refused


# ---------------------------------------------------------------- what the documents say


def test_the_documents_name_what_is_there():
    text = "".join((ROOT / "docs" / name).read_text() for name in ("scale.md", "capacity.md"))
    named = set(re.findall(r"deploy/[\w./]*\w", text)) | set(
        re.findall(r"(?:\.\./)?(benchmarks/results/\w+\.md)", text)
    )
    assert named and all((ROOT / name).exists() for name in named)
    code = "".join(file.read_text() for folder in ("flows", "tasks") for file in (ROOT / folder).glob("*.py"))
    assert all(name in code for name in set(re.findall(r"ROOTSTOCK_\w+", text)))
    modules = set(re.findall(r"-m ((?:flows|tasks)\.\w+)", text))
    assert modules and all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in modules)


def test_the_capacity_of_seven_billion_is_what_the_estimate_says():
    from tasks.estimate import PAPER, answer

    printed = answer(PAPER).splitlines()
    quoted = [line for line in (ROOT / "docs/capacity.md").read_text().splitlines() if line.startswith("| cache |")]
    assert len(quoted) == 3 and set(quoted) <= set(printed)
    assert any("student 6,939,701,248" in line for line in printed)
