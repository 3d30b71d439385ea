"""Language models end to end, with the real tools: DVC runs the graph, MLflow keeps what transformers loads.

One checkout is built once, and every test leaves it healthy for the next: each ends with `dvc repro` succeeding.
"""

import pytest
import yaml
from _checkout import ALWAYS, DISTILL, ITEMS, LANGUAGE, RECOMMEND, ROOT, WRITING, Checkout, copied

STEPS = {kind: [kind, f"gate_{kind}", f"promote_{kind}"] for kind in ("pretrain", "finetune")}
LOAD = """
import json, mlflow, transformers
transformers.logging.set_verbosity_error()
mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
said = {}
for name in ("bert", "category"):
    loaded = mlflow.transformers.load_model(f"models:/language-{name}@champion")
    said[name] = [type(loaded).__name__, type(loaded.model).__name__]
said["answer"] = loaded("wooden garden chair")[0]
said["served"] = mlflow.pyfunc.load_model("models:/language-category@champion").predict(["a chair"]).columns.tolist()
said["plain"] = type(transformers.AutoModel.from_pretrained("artifacts/pretrain/bert/model")).__name__
print(json.dumps(said))
"""


def small(params: dict) -> None:
    params["datasets"] = {
        "corpora": {"source": "tasks/datasets/corpora.py", "documents": 200},
        "listings": {"source": "tasks/datasets/listings.py", "rows": 200},
    }
    params["language"] = {
        "tokenizer": {"kind": "wordpiece", "vocabulary": 500, "data": "corpora"},
        "tokens": ["corpora"],
        "pretrain": {"bert": {"size": "nano", "data": "corpora", "length": 48, "training": {"steps": 8, "batch": 8}}},
        "finetune": {"category": tuned("listings", 4)},
        "gates": {
            "pretrain": {"ceilings": {"loss": 20.0}, "improvement": {"metric": "loss", "margin": -1.0}},
            "finetune": {"floors": {"accuracy": 0.0}, "improvement": {"metric": "accuracy", "margin": -1.0}},
        },
    }
    params["distill"] |= {
        "length": 32, "student": {"layers": 1}, "training": {"steps": 3, "batch": 8}, "methods": {}, "mixes": {},
        "gates": {"distill": {"floors": {"kept": 0.0}, "ceilings": {"ratio": 1.0, "latency_ms": 10000}}},
    }  # fmt: skip


def tuned(data: str, steps: int) -> dict:
    return {"from": "bert", "kind": "classification", "data": data, "length": 32,
            "training": {"steps": steps, "batch": 8}}  # fmt: skip


def stages(kind: str, name: str) -> set[str]:
    return {f"{step}@{name}" for step in STEPS[kind]}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm) -> Checkout:
    folder = tmp_path_factory.mktemp("language") / "rootstock"
    made = copied(folder, small, without=RECOMMEND + ITEMS + WRITING, python=warm)
    made.first = made.repro()
    return made


def test_fresh_checkout_builds_everything(checkout):
    data = {f"{step}@{name}" for step in ("fetch", "ingest") for name in ("corpora", "listings")}
    shared = {"tokenizer", "tokens@corpora", "parts@bert"}
    assert set(checkout.first) == data | shared | stages("pretrain", "bert") | stages("finetune", "category")
    for kind, name in (("pretrain", "bert"), ("finetune", "category")):
        assert checkout.json(f"artifacts/{kind}/{name}/metrics.json")["export"]["equal"] is True
        checks = {check["name"]: check["passed"] for check in
                  checkout.json(f"artifacts/language/gate/{name}/verdict.json")["checks"]}  # fmt: skip
        assert checks["export equals the trained model"] is True
        assert checks["loads with AutoModel, as BertModel"] is True
        page = (checkout.folder / f"artifacts/language/gate/{name}/verdict.html").read_text()
        assert "the gate is <span class=open>open</span>" in page
        assert "data:image/png;base64" in page


def test_nothing_new_runs_nothing(checkout):
    assert checkout.repro() == []


def test_the_registry_loads_as_transformers(checkout):
    said = checkout.told(LOAD, alone=True)
    assert said["bert"] == ["FeatureExtractionPipeline", "BertForPreTraining"]
    assert said["category"] == ["TextClassificationPipeline", "BertForSequenceClassification"]
    assert said["answer"]["label"] in checkout.json("artifacts/finetune/category/run.json")["labels"]
    assert said["served"] == ["label", "score"]
    assert said["plain"] == "BertModel"
    kept = list((checkout.folder / "mlruns").rglob("model/model.safetensors"))
    judged = [(checkout.folder / f"artifacts/{at}/model/model.safetensors").read_bytes()
              for at in ("pretrain/bert", "finetune/category")]  # fmt: skip
    assert sorted(path.read_bytes() for path in kept) == sorted(judged)


def test_one_line_tunes_one_task(checkout):
    weights = checkout.folder / "artifacts/pretrain/bert/model/model.safetensors"
    before = weights.read_bytes()
    checkout.params(lambda p: p["language"]["finetune"].update(again=tuned("listings", 3)))
    assert checkout.stale() == stages("finetune", "again")
    assert set(checkout.repro()) == stages("finetune", "again")
    assert weights.read_bytes() == before
    assert checkout.champion("language-again") == 1
    assert checkout.champion("language-category") == 1


def test_one_recipe_never_triggers_another(checkout):
    entry = {"size": "nano", "data": "corpora", "length": 48, "training": {"steps": 2, "batch": 4}}
    checkout.params(lambda p: p["language"]["pretrain"].update(gpt2=entry))
    assert set(checkout.repro()) == {"parts@gpt2"} | stages("pretrain", "gpt2")
    assert checkout.champion("language-gpt2") == 1
    checkout.params(lambda p: p["language"]["pretrain"]["gpt2"]["training"].update(steps=3))
    assert checkout.stale() == {"parts@gpt2", "pretrain@gpt2"}
    checkout.params(lambda p: p["language"]["pretrain"]["gpt2"]["training"].update(steps=2))


def test_an_edit_of_a_part_reaches_the_recipes_that_have_it(checkout):
    part = checkout.folder / "models/components/embedding/segment.py"  # BERT's, not GPT-2's
    unused = checkout.folder / "models/components/encoder/gru.py"
    texts = {path: path.read_text() for path in (part, unused)}
    unused.write_text(texts[unused] + "\n# another word\n")
    assert set(checkout.repro()) == {"parts@bert", "parts@gpt2"}
    part.write_text(texts[part] + "\n# another word\n")
    checkout("dvc", "repro", "-s", "parts@bert", "parts@gpt2")
    stale = checkout.stale()
    assert {"pretrain@bert", "finetune@category"} <= stale
    assert "pretrain@gpt2" not in stale
    for path, text in texts.items():
        path.write_text(text)
    assert checkout.repro() == []  # DVC knows these files' results


def test_a_retired_model_is_pruned(checkout):
    checkout.params(lambda p: p["language"]["finetune"].pop("again") and p["language"]["pretrain"].pop("gpt2"))
    assert checkout.repro() == []
    said = checkout("tasks.prune")
    assert "finetune/again" in said
    assert "parts/gpt2.json" in said
    assert not (checkout.folder / "artifacts/finetune/again").exists()
    assert not (checkout.folder / "artifacts/language/gate/again").exists()
    assert (checkout.folder / "artifacts/language/gate/category/verdict.json").exists()
    assert checkout.champion("language-again") == 1  # what is served is taken away by a person only


def test_a_closed_gate_keeps_the_champion(checkout):
    before = checkout.champion("language-category")
    checkout.params(lambda p: p["language"]["gates"].update(category={"floors": {"accuracy": 1.01}}))
    ran = set(checkout.repro())
    assert "gate of language-category: CLOSED" in checkout.said
    assert ran == {"gate_pretrain@bert", "gate_finetune@category", "promote_finetune@category", "promote_pretrain@bert"}
    receipt = checkout.json("artifacts/language/receipt/category.json")
    assert receipt["status"] == "rejected"
    assert "< 1.01" in receipt["reasons"][0]
    assert checkout.champion("language-category") == before
    checkout.params(lambda p: p["language"]["gates"].pop("category"))
    assert "promote_finetune@category" in checkout.repro()
    assert checkout.json("artifacts/language/receipt/category.json")["status"] == "promoted"
    assert checkout.champion("language-category") == before


def test_a_recipe_that_is_not_there_is_refused_before_any_training(checkout):
    checkout.params(lambda p: p["language"]["pretrain"].update(brt={"size": "nano", "data": "corpora", "length": 48}))
    assert checkout.repro(fails=True) == ["parts@brt"]
    assert "there is no recipe 'brt'" in checkout.said
    assert "Traceback" not in checkout.said
    checkout.params(lambda p: p["language"]["pretrain"].pop("brt"))
    assert checkout.repro() == []


def test_language_and_recommender_read_nothing_of_each_other():
    """The graph itself: no path and no parameter in common but raw data and what reads those."""
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(graph) == {*ALWAYS, "fetch", "ingest", *RECOMMEND, *ITEMS, *LANGUAGE, *WRITING, *DISTILL}

    def reads(name: str) -> tuple[set[str], set[str]]:
        stage = graph[name].get("do", graph[name])
        return set(stage.get("deps", [])), {key for entry in stage.get("params", []) for key in entry["params.yaml"]}

    def makes(name: str) -> set[str]:
        stage = graph[name].get("do", graph[name])
        outs = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
        return {next(iter(out)) if isinstance(out, dict) else out for out in outs}

    whole = (*LANGUAGE, *WRITING)
    for ours, others, own in ((whole, RECOMMEND, "language."), (RECOMMEND, whole, ("recommend.", "gates"))):
        made = {path for name in others for path in makes(name)}
        for name in ours:
            paths, keys = reads(name)
            assert not paths & made, name
            assert all(key.startswith(own) for key in keys), name
    taught = {path for name in ("distill", "mix", "chain", "several", "specific") for path in makes(name)}
    for name in (*whole, *RECOMMEND):  # students read language models, and nothing reads students
        assert not reads(name)[0] & taught, name
    per_key = {"parts": "pretrain", "pretrain": "pretrain", "finetune": "finetune"}
    for name, kind in per_key.items():
        assert reads(name)[1] == {f"language.{kind}.${{key}}"}
