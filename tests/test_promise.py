"""The promise, end to end, with the real tools: DVC runs the graph, MLflow keeps the models, on a small sample.

One checkout is built once, and every test leaves it healthy for the next: each ends with `dvc repro` succeeding.
"""

import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from _checkout import ALWAYS, DISTILL, ITEMS, LANGUAGE, ROOT, WRITING, Checkout, copied
from _pages import blocks

SMALL = {"rows": 24000, "epochs": 1, "head_epochs": 6}
TASK = "{given: \"event_id = 'item_view'\", positive: \"event_id = 'offer_make'\", within: session}"


OTHER_SHOP = """

_good = fetch


def fetch(out, source, rows, seed):
    _good(out, source, rows, seed)
    shard = min(out.glob("*.parquet"))
    pl.read_parquet(shard).with_columns(event_id=pl.lit("item_click")).write_parquet(shard)
"""


REGISTER = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, "tests/tasks")
from _reader import write_reader
from tasks import flavor, track
folder = write_reader(Path(tempfile.mkdtemp()) / "model", seed={seed})
run = track.log_run("test", params={{}}, metrics={{}})
track.set_alias(track.register_folder(run, track.LISTINGS, folder, {{}}, {{"content_sha256": flavor.content(folder)}}), "champion")
"""  # noqa: E501


def smaller(params: dict) -> None:
    params["datasets"] = {"sample": params["datasets"]["sample"] | {"rows": SMALL["rows"]}}
    recommend = params["recommend"]
    recommend["backbone"]["training"] |= {"epochs": SMALL["epochs"], "checkpoint_steps": 10}
    recommend["head"]["training"] |= {"epochs": SMALL["head_epochs"], "batch": 64}
    recommend["tasks"] = {"add_later": recommend["backbone"]["tasks"].pop("item_like")}
    params["gates"]["default"] = {"floors": {"auc": 0.3}, "ceilings": {"latency_ms": 5000}, "least_positives": 5}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm) -> Checkout:
    folder = tmp_path_factory.mktemp("promise") / "rootstock"
    made = copied(folder, smaller, without=ITEMS + LANGUAGE + WRITING + DISTILL, python=warm)
    made.first = made.repro()
    return made


def test_fresh_checkout_builds_everything(checkout):
    assert sorted(checkout.first) == [
        "backbone", "features", "fetch@sample", "gate@add_later", "gate_backbone", "ingest@sample", "promote@add_later",
        "promote_backbone", "prompt@add_later", "vectors",
    ]  # fmt: skip
    assert checkout.champion("recommend-backbone") == 1
    assert checkout.champion("recommend-add_later") == 1


def test_nothing_new_runs_nothing(checkout):
    assert checkout.repro() == []


def test_one_line_runs_only_its_stages(checkout):
    before = (checkout.folder / "artifacts/backbone/model.safetensors").read_bytes()
    old = (checkout.folder / "artifacts/prompt/add_later/head.safetensors").read_bytes()
    checkout.params(lambda p: p["recommend"]["tasks"].update(offer_make=yaml.safe_load(TASK)))
    assert checkout.stale() == {"prompt@offer_make", "gate@offer_make", "promote@offer_make"}
    assert checkout.repro() == ["prompt@offer_make", "gate@offer_make", "promote@offer_make"]
    assert (checkout.folder / "artifacts/backbone/model.safetensors").read_bytes() == before
    assert (checkout.folder / "artifacts/prompt/add_later/head.safetensors").read_bytes() == old
    proof = checkout.json("artifacts/prompt/offer_make/proof.json")
    assert proof["backbone_unchanged"] is True
    assert proof["backbone_before"] == proof["backbone_after"]
    assert len(proof["backbone_before"]) > 10
    assert proof["old_predictions_equal"] is True
    assert proof["old_predictions_off_training"] == 0
    assert proof["backbone_gradients"] == 0
    units = [line.split()[0] for line in proof["stages_before"]]
    assert set(units) <= {*ALWAYS, "tune_prompt"}
    assert units.count("tune_prompt") == 1


def test_one_head_never_triggers_another(checkout):
    checkout.params(lambda p: p["recommend"]["tasks"]["offer_make"].update(within="user"))
    assert set(checkout.repro()) == {"prompt@offer_make", "gate@offer_make", "promote@offer_make"}


def test_thresholds_of_a_task_leave_the_backbones_verdict(checkout):
    checkout.params(lambda p: p["gates"].update(add_later={"floors": {"auc": 0.31}}))
    assert checkout.stale() == {"gate@add_later", "gate@offer_make"}
    checkout.params(lambda p: (p["gates"].pop("add_later"), p["gates"].update(backbone={"floors": {"auc": 0.31}})))
    assert "gate_backbone" in checkout.stale()
    checkout.params(lambda p: p["gates"].update(backbone={}))
    assert checkout.stale() == set()


def test_bad_tasks_are_refused_before_any_training(checkout):
    def refused(declaration: dict, said: str, name: str = "broken"):
        checkout.params(lambda p: p["recommend"]["tasks"].update({name: declaration}))
        assert checkout.repro(fails=True) == [f"prompt@{name}"]
        assert re.search(said, checkout.said), checkout.said[-3000:]
        assert "Traceback" not in checkout.said
        assert not (checkout.folder / "artifacts/prompt" / name / "head.json").exists()
        checkout.params(lambda p: p["recommend"]["tasks"].pop(name))

    good = yaml.safe_load(TASK)
    refused(good | {"positive": "event_id = "}, "pars")
    refused(good | {"positive": "evnt_id = 'offer_make'"}, "event_id")
    refused(good | {"positive": "event_id = 'offer_maek'"}, "offer_make")
    refused(good | {"positive": "price > 3", "within": "row"}, "price")
    refused(good | {"given": "event_id = 'item_view' and price < 0"}, "no rows|0 rows|one class|positives")
    refused(good, "already tasks of the backbone", name="view")
    assert checkout.repro() == []


def test_retired_task_is_pruned(checkout):
    checkout.params(lambda p: p["recommend"]["tasks"].pop("offer_make"))
    assert checkout.repro() == []
    assert "offer_make" in checkout("tasks.prune")
    assert not (checkout.folder / "artifacts/prompt/offer_make").exists()
    assert "@offer_make" not in (checkout.folder / "dvc.lock").read_text()
    assert checkout.champion("recommend-offer_make") >= 1  # what is served is taken away by a person only


def test_own_file_in_data_is_never_deleted(checkout):
    mine = checkout.folder / "data/sample/mine.parquet"
    mine.write_text("my work of a year")
    checkout.repro(fails=True)
    assert "mine.parquet" in checkout.said
    assert mine.read_text() == "my work of a year"
    mine.unlink()
    assert checkout.repro() == []


def test_refused_data_leave_the_last_good_version(checkout):
    good = checkout.json("artifacts/ingest/sample/manifest.json")
    code = checkout.folder / "tasks/datasets/sample.py"
    text = code.read_text()
    # A shop whose log grew a seventh event: the same rows, one event renamed on the way in.
    code.write_text(text + OTHER_SHOP)
    checkout.repro(fails=True)
    assert "item_click" in checkout.said
    assert "Running stage 'backbone'" not in checkout.said
    assert checkout.json("artifacts/ingest/sample/manifest.json") == good
    assert checkout.champion("recommend-backbone") == 1
    code.write_text(text)
    assert checkout.repro() == []


def test_lost_registry_is_filled_again(checkout):
    (checkout.folder / "mlruns/mlflow.db").unlink()
    ran = checkout.repro()
    assert {"promote_backbone", "promote@add_later"} <= set(ran)
    assert not {"backbone", "prompt@add_later"} & set(ran)
    assert checkout.champion("recommend-add_later") == 1
    assert checkout.repro() == []


def test_a_pickle_in_an_artefact_folder_is_never_opened(checkout):
    import pickle

    marker = checkout.folder / "marker"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    bomb = checkout.folder / "artifacts/backbone/model.pkl"
    bomb.write_bytes(pickle.dumps(Bomb()))
    checkout.params(lambda p: p["gates"]["default"]["floors"].update(auc=0.29))  # gates and promotions run again
    checkout("dvc", "repro", "gate_backbone", fails=True)
    assert not marker.exists()
    bomb.unlink()
    checkout.repro()
    assert checkout.champion("recommend-backbone") == 1


def test_a_moved_encoder_retrains_the_backbone_and_a_new_task_still_does_not(checkout):
    def crown(seed: int) -> None:
        done = checkout.run("-c", REGISTER.format(seed=seed))
        assert not done.returncode, done.stderr[-3000:]

    def weights() -> bytes:
        return (checkout.folder / "artifacts/backbone/model.safetensors").read_bytes()

    blind, asked = weights(), {"encoder": "models:/listing-encoder@champion", "width": 4}
    checkout.params(lambda p: p["recommend"]["backbone"].update(text=asked))
    checkout.repro("backbone", fails=True)
    assert "listing-encoder has no champion" in checkout.said
    assert "Traceback" not in checkout.said
    crown(1)
    assert checkout.repro("backbone") == ["vectors", "backbone"]
    first = weights()
    assert first != blind
    crown(1)  # the same bytes under a new number
    assert checkout.repro("backbone") == []
    crown(2)
    assert checkout.repro("backbone") == ["vectors", "backbone"]
    second = weights()
    assert second != first
    checkout.params(lambda p: p["recommend"]["tasks"].update(offer_make=yaml.safe_load(TASK)))
    assert checkout.repro("prompt@offer_make") == ["prompt@offer_make"]
    proof = checkout.json("artifacts/prompt/offer_make/proof.json")
    assert proof["backbone_unchanged"] and proof["old_predictions_equal"]
    assert weights() == second
    checkout.params(lambda p: (p["recommend"]["tasks"].pop("offer_make"), p["recommend"]["backbone"].update(text=None)))
    checkout("dvc", "repro")
    checkout("tasks.prune")
    assert weights() == blind
    assert checkout.repro() == []


def test_killed_dvc_is_healed_by_the_next_run(checkout):
    checkout = checkout.plain()
    checkout.params(lambda p: p["recommend"]["backbone"]["training"].update(epochs=3))
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=checkout.folder, env=checkout.environment,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # fmt: skip
        checkpoints = checkout.folder / "artifacts/checkpoints/backbone"
        known, until = set(checkpoints.rglob("step-*")), time.monotonic() + 240
        while not set(checkpoints.rglob("step-*")) - known:
            assert time.monotonic() < until, "no checkpoint appeared"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)  # of DVC alone; there are slots for two that train, and its child must end
    assert "backbone" in checkout.repro()
    assert "backbone: continues at step" in checkout.said
    assert checkout.repro() == []
    assert checkout.json("artifacts/backbone/backbone.json")["best_epoch"] >= 1
    command = yaml.safe_load((checkout.folder / "dvc.lock").read_text())["stages"]["backbone"]["cmd"].split()
    checkout(*command[2:-2], "../unbroken", "../kept")
    weights = [checkout.folder / path / "model.safetensors" for path in ("artifacts/backbone", "../unbroken")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_tutorial_as_it_is_typed(checkout):
    done_before = ("make demo", ". .venv/bin/activate")  # the environment; the graph stands already
    ran, kept = {}, {}
    checkout.params(lambda params: kept.update(recommend=dict(params["recommend"]["tasks"]), gates=params["gates"]))

    def write(text: str) -> None:
        checkout.params(lambda params: merge(params, yaml.safe_load(text)))

    def type_in(line: str) -> None:
        if line == "python -m tasks.prune params.yaml dvc.lock":
            checkout.params(lambda params: (params["recommend"].update(tasks=kept["recommend"]),
                                            params.update(gates=kept["gates"])))  # fmt: skip
        words = line.removeprefix("python -m ").split()
        if words[:2] == ["dvc", "repro"]:
            ran[len(ran)] = checkout.repro(*words[2:])
        else:
            checkout(*words)

    for kind, text in blocks(ROOT / "docs/tutorial.md"):
        if kind == "yaml":
            write(text)
        for line in text.splitlines() if kind == "sh" else ():
            if line not in done_before:
                type_in(line)
            if line == "dvc repro promote@offer_soon":
                verdict = checkout.json("artifacts/gate/offer_soon/verdict.json")
    assert ran == {0: [], 1: ["prompt@offer_soon", "gate@offer_soon", "promote@offer_soon"],
                   2: ["gate@offer_soon", "promote@offer_soon"]}  # fmt: skip
    assert not verdict["passed"] and checkout.champion("recommend-offer_soon") == 1
    assert not (checkout.folder / "artifacts/prompt/offer_soon").exists()
    assert checkout.repro() == []


def merge(into: dict, more: dict) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def test_commands_of_dvc_work_without_prefect(checkout):
    assert "prompt@add_later" in checkout("dvc", "dag")
    assert "auc" in checkout("dvc", "metrics", "show")
    assert "index.html" in checkout("dvc", "plots", "show")
    assert "recommend" in checkout("dvc", "params", "diff")
