"""The flow `watch`: exactly what is stale, and nothing when nothing is; drift is told, and may decide who waits."""

import math
import shutil
from pathlib import Path

import networkx
import pytest
import yaml
from _inline import Inline

from flows import distill, language, recommend, recommenders
from flows import watch as module
from flows.data import DataFailed
from flows.recommend import TasksFailed
from tasks.files import write_json
from tasks.notice import drift, tables

ROOT = Path(__file__).parents[2]
MIX = {"item_view": {"rows": 9, "share": 0.9}, "item_like": {"rows": 1, "share": 0.1}}
NEW = [{"changed deps": {"artifacts/ingest/sample": "modified"}}]
TRAINED = [{"changed deps": {"artifacts/backbone": "modified"}}]


@pytest.fixture
def called(made, tmp_path, monkeypatch):
    calls = []
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    monkeypatch.setattr(module, "make", made)
    monkeypatch.setattr(module, "look", lambda name: [])
    for name in module.FLOWS:
        monkeypatch.setattr(module, name, lambda name=name: calls.append(name))
    return calls


def staleness(monkeypatch, *answers: list[str] | dict[str, list]) -> None:
    """What DVC says each time it is asked; the last answer stays."""
    left = [answer if isinstance(answer, dict) else dict.fromkeys(answer, TRAINED) for answer in answers]
    said = lambda: left.pop(0) if len(left) > 1 else left[0]
    monkeypatch.setattr(module, "stale", lambda: list(said()))
    monkeypatch.setattr(module, "why_stale", said)


@pytest.mark.parametrize(
    ("answers", "calls"),
    [
        ([[], []], []),
        ([["prompt@offer_make"], ["prompt@offer_make"], []], ["recommend"]),
        ([["fetch@sample"], ["features"], []], ["data", "recommend"]),
        ([["fetch@other"], []], ["data"]),  # a dataset that no model reads
        ([["data.dvc"], []], ["data"]),  # somebody edited data/: restored, and nothing is new
        ([["recommender@similar"], ["recommender@similar"], []], ["recommenders"]),
        ([["distill@kd"], ["distill@kd"], []], ["distill"]),
        # A new teacher makes its students stale, which shows only then; and a student that reads listings the vectors.
        ([["finetune@category"], ["gate_finetune@category"], ["parts_distill@kd"], ["vectors"], []],
         ["language", "distill", "recommend"]),
        ([["near"], ["continued_of@zh", "authored@shop"], []], ["language"]),
        ([["fetch@sample"], ["features", "tokens@corpora", "made_of@next"], ["tokens@corpora", "made_of@next"],
          ["tokens@corpora"], []], ["data", "recommend", "recommenders", "language"]),
    ],
)  # fmt: skip
def test_exactly_what_is_stale(called, monkeypatch, answers, calls):
    staleness(monkeypatch, *answers)
    assert module.watch.fn() == list(dict.fromkeys(stage for stages in answers for stage in stages))
    assert called == calls


def test_a_lost_registry_is_noticed_before_asking_what_is_stale(called, made, monkeypatch):
    monkeypatch.setattr(module, "stale", lambda: ["promote@offer_make"] if "-s registry" in made else [])
    answers = iter([{"promote@offer_make": TRAINED}, {}])
    monkeypatch.setattr(module, "why_stale", lambda: next(answers))
    assert module.watch.fn() == ["promote@offer_make"]
    assert called == ["recommend"]


def test_what_fails_in_one_flow_does_not_hold_up_the_other(called, monkeypatch, capsys):
    def broken():
        called.append("recommend")
        raise TasksFailed("1 of 3 tasks failed")

    monkeypatch.setattr(module, "recommend", broken)
    staleness(monkeypatch, [], ["prompt@offer_make", "pretrain@bert"], ["prompt@offer_make", "pretrain@bert"],
              ["prompt@offer_make"])  # fmt: skip
    with pytest.raises(TasksFailed):
        module.watch.fn()
    assert called == ["recommend", "language"]  # each once, although the first is still stale
    assert "- stale: pretrain@bert" in capsys.readouterr().out


def test_nothing_is_trained_on_refused_data(called, monkeypatch):
    def refused():
        raise DataFailed("1 of 2 datasets failed")

    monkeypatch.setattr(module, "data", refused)
    staleness(monkeypatch, ["fetch@sample"], ["features"])
    with pytest.raises(DataFailed):
        module.watch.fn()
    assert called == []


def test_report(called, monkeypatch, capsys):
    splits = {"train": {"events": MIX}, "test": {"events": {"item_view": {"share": 0.5}, "item_like": {"share": 0.5}},
                                                 "last": "2023-05-31"}}  # fmt: skip
    write_json("artifacts/ingest/sample/manifest.json", {"rows": 10, "splits": splits})
    staleness(monkeypatch, [])
    module.watch.fn()
    out = capsys.readouterr().out
    assert "| sample | 10 | 2023-05-31 | 0.879 (large) |" in out  # 0.4 ln(0.9 / 0.5) + 0.4 ln(0.5 / 0.1)
    assert "| other | - | - | - |" in out
    assert "Nothing new: nothing ran" in out


def test_drift_is_told_and_trains_nothing_alone(called, monkeypatch, capsys):
    monkeypatch.setattr(module, "look", lambda name: ["price: psi 0.31 (at most 0.2)"] * (name == "sample"))
    staleness(monkeypatch, [])
    assert module.watch.fn() == []
    assert called == []
    assert "- **drift** in sample: price: psi 0.31 (at most 0.2)" in capsys.readouterr().out


def test_a_log_that_cannot_be_compared_holds_up_no_model(called, monkeypatch, capsys):
    def broken(name):
        raise ValueError("test has no rows")

    monkeypatch.setattr(module, "look", broken)
    staleness(monkeypatch, [], ["features"], [])
    with pytest.raises(ValueError, match="test has no rows"):
        module.watch.fn()
    assert called == ["recommend"]
    assert "**sample** was not compared" in capsys.readouterr().out


def compared(over: list[str], retrain: str = "over_threshold", digest: str = "d1") -> None:
    """Sample was ingested and compared; params.yaml says when to train."""
    write_json("artifacts/ingest/sample/manifest.json", {"rows": 10, "digest": "d1"})
    write_json("artifacts/monitor/sample.json", {"over": over, "data": digest})
    params = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(params | {"monitor": {"retrain": retrain}}))


LATER = {
    "vectors": [{"changed deps": {"artifacts/features": "modified"}}],
    "backbone": [{"changed deps": {"artifacts/features": "modified", "artifacts/ingest/sample": "modified"}}],
    "recommender@similar": NEW,
}


def test_calm_data_wait_for_drift_where_that_is_asked_for(called, monkeypatch, capsys):
    compared([])
    staleness(monkeypatch, [], LATER)
    assert module.watch.fn() == list(LATER)  # DVC's word stays: they are stale
    assert called == []
    assert "- stale: backbone, and waits" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["drifted", "always", "not compared yet", "another reason", "another dataset"])
def test_everything_else_trains_at_once(called, monkeypatch, case):
    compared(["price"] if case == "drifted" else [], "always" if case == "always" else "over_threshold",
             "d0" if case == "not compared yet" else "d1")  # fmt: skip
    left = dict(LATER)
    if case == "another reason":
        told = {"artifacts/features": "modified", "params.yaml": {"recommend.tasks.offer_make": "new"}}
        left["prompt@offer_make"] = [{"changed deps": told}]
    if case == "another dataset":
        left = {"recommender@next": [{"changed deps": {"artifacts/ingest/other": "modified"}}]}
    staleness(monkeypatch, [], left, {})
    module.watch.fn()
    assert called == (["recommenders"] if case == "another dataset" else ["recommend"])


def test_new_data_are_compared_once_and_drift_is_an_event(made, monkeypatch):
    from tasks import monitor as unit

    seen, events = [], []
    monkeypatch.setattr(module, "make", made)
    monkeypatch.setattr(
        module, "emit_event", lambda event, resource, payload: events.append((event, resource, payload))
    )
    monkeypatch.setattr(unit, "due", lambda chosen, ingest, out: "sample" in str(ingest))
    monkeypatch.setattr(unit, "monitor", lambda *words: seen.append(words) or {})
    monkeypatch.setattr(unit, "alarms", lambda done: ["price: psi 0.31"])
    assert module.look.fn("other") == [] and not seen
    assert module.look.fn("sample") == ["price: psi 0.31"]
    [(_, name, ingest, out, features, models)] = seen
    assert (name, str(ingest), str(out)) == ("sample", "artifacts/ingest/sample", "artifacts/monitor/sample.json")
    assert str(features) == "artifacts/features" and made == ["features"]
    assert models == ["recommend-backbone", "recommend-offer_make", "recommend-buy_start", "recommend-buy_comp"]
    [(event, resource, payload)] = events
    assert event == "rootstock.drift" and resource["prefect.resource.id"] == "rootstock.dataset.sample"
    assert payload == {"dataset": "sample", "over": ["price: psi 0.31"]}


def stages() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_every_stage_belongs_to_one_flow():
    graph = stages()
    assert {module.flow_of(name, graph) for name in graph} == set(module.FLOWS)
    assert set(module.ALONE) - {"data.dvc"} <= {name for name in graph if "foreach" not in graph[name]}
    with pytest.raises(LookupError, match="stage weather of dvc.yaml belongs to no flow"):
        module.flow_of("weather", graph | {"weather": {"cmd": "x"}})
    with pytest.raises(LookupError, match="belongs to no flow"):
        module.flow_of("weather@x", graph | {"weather": {"foreach": "${forecasts.days}", "do": {"cmd": "x"}}})


@pytest.fixture(scope="module")
def whole_graph(tmp_path_factory):
    """A params.yaml with an entry in every part that a stage is run for, and DVC's graph of it."""
    from dvc.repo import Repo

    folder, params = tmp_path_factory.mktemp("whole"), yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in stages().values():
        if "foreach" in stage:
            *steps, last = stage["foreach"][2:-1].split(".")
            part = params
            for step in steps:
                part = part[step]
            if not part.get(last):
                part[last] = ENTRIES[f"{steps[0]}.{last}"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for file in ("dvc.yaml", "data.dvc"):
        shutil.copyfile(ROOT / file, folder / file)
    edges = Repo.init(str(folder), no_scm=True).index.graph.edges  # of a stage to one that it reads
    short = lambda stage: stage.addressing.replace(":", "/").rpartition("/")[2]  # without the file's folder
    return folder, networkx.DiGraph((short(one), short(other)) for one, other in edges)


ENTRIES = {
    "recommend.clicks": {"click": {"method": "ctr/dcnv2"}},
    "recommend.encoders": {"kd": {"from": "distill"}},
    "recommenders.indexes": ["similar"],
    "recommenders.rerank": {"wide": {"of": "similar", "data": "sample"}},
    "recommenders.releases": {"films": {"data": "sample"}},
    "recommenders.bandits": {"slots": {"train": "train.csv", "test": "test.csv"}},
    "language.bases": {"llama": "folder"},
    "language.generated": {"ads": {"from": "base/llama", "data": "shop"}},
    "language.judged": {"ads": {"texts": "ads", "data": "shop", "catalogue": "catalogue", "encoder": "folder"}},
    "distill.mixes": {"tiny": {"kd": {}}},
    "distill.chains": {
        "third": {"teacher": {"from": "distill", "name": "kd"}, "data": "ingest/listings", "of": {"minilm": {}}}
    },
    "distill.teachers": {"small": {"from": "distill", "name": "kd"}},
    "distill.several": {"both": {"teachers": ["small"], "by": {"tmkd": {}}}},
    "distill.specific": {
        "shop": {
            "start": {"from": "chain", "name": "third"},
            "data": "ingest/listings",
            "teacher": {"from": "finetune", "name": "category"},
        }
    },
    "distill.tasks": {"shop": {"from": "bert"}},
    "distill.of_tasks": {"less": {"from": "bert"}},
    "distill.served": {"shop_category": {"from": "distill_tasks/shop", "task": "category", "data": "listings"}},
    "distill.readings": {"words": {"data": "corpora"}},
    "distill.examples": {"few": {"data": "listings", "classifier": "category"}},
    "distill.reasons": {"match": {"data": "listings"}},
    "distill.relevance": {"fit": {"from": "bert", "data": "match"}},
    "distill.languages": {"more": {"from": "category", "data": "listings"}},
}


@pytest.mark.parametrize(
    ("flow", "chains"),
    [(recommend, ["chain"]), (recommenders, ["recommender", "whole"]), (language, ["pretrain", "finetune", "writer"]),
     (distill, ["student", "whole"])],
)  # fmt: skip
def test_every_flow_brings_all_of_its_stages(whole_graph, made, monkeypatch, flow, chains):
    """The graph says what a flow's stages rest on, `make` what it asks for: nothing of it may be left out."""
    folder, graph = whole_graph
    monkeypatch.chdir(folder)
    monkeypatch.setattr(flow, "make", made)
    for name in chains:
        monkeypatch.setattr(flow, name, Inline(getattr(flow, name).fn))
    flow_name = flow.__name__.rpartition(".")[2]
    getattr(flow, flow_name).fn()
    asked = {stage.removeprefix("-s ") for stage in made}
    whole = [stage for stage in made if not stage.startswith("-s ")]
    asked = asked.union(*(networkx.descendants(graph, stage) for stage in whole if stage in graph))
    every = stages()
    ours = {stage for stage in graph if module.flow_of(stage, every) == flow_name}
    assert len(ours) > 8
    assert ours - asked == set()


def test_texts_have_rows_and_no_time(tmp_path):
    write_json(tmp_path / "corpora/manifest.json", {"kind": "documents", "rows": {"train": 95, "heldout": 5}})
    assert tables(["corpora"], tmp_path) == [{"dataset": "corpora", "rows": 100, "last event": "-", "drift": "-"}]


def test_drift_by_hand():
    assert drift(MIX, MIX) == 0
    new = {"item_view": {"share": 0.5}, "item_like": {"share": 0.5}}
    expected = 0.4 * math.log(0.9 / 0.5) + 0.4 * math.log(0.5 / 0.1)
    assert drift(MIX, new) == drift(new, MIX) == pytest.approx(expected)
    one = {"item_view": {"share": 1.0}}
    assert drift(one, MIX) == pytest.approx(0.1 * math.log(1 / 0.9) + (0.1 - 1e-4) * math.log(0.1 / 1e-4))
