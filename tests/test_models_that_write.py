"""Models that write, end to end with the real tools: an English model learns Chinese, then authors, and is judged.

One checkout is built once, and every test leaves it healthy for the next: each ends with `dvc repro` succeeding.
"""

import pytest
from _checkout import DISTILL, ITEMS, RECOMMEND, Checkout, copied

CONTINUED = ["continued", "pages_continued", "evaluate_continued", "gate_continued", "promote_continued"]
INSTRUCTED = ["instructed", "pages_instructed", "evaluate_instructed", "gate_instructed", "promote_instructed"]
LOAD = """
import json, mlflow, transformers
transformers.logging.set_verbosity_error()
mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
loaded = mlflow.transformers.load_model("models:/language-authoring@champion")
asked = [{"role": "user", "content": "Write an ad."}]
print(json.dumps({
    "class": type(loaded.model).__name__,
    "prompt": loaded.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True),
    "said": isinstance(loaded("boots", max_new_tokens=3)[0]["generated_text"], str),
}))
"""


def small(params: dict) -> None:
    params["datasets"] = {
        "corpora": {"source": "tasks/datasets/corpora.py", "documents": 300},
        "parallel": {"source": "tasks/datasets/parallel.py", "pairs": 200},
        "catalogue": {"source": "tasks/datasets/catalogue.py", "rows": 150},
    }
    language = params["language"]
    language |= {"tokenizer": {"kind": "bpe", "vocabulary": 600, "data": "corpora"}, "finetune": {}}
    language["pretrain"] = {"gpt2": language["pretrain"]["gpt2"] | {"training": {"steps": 4, "batch": 4}}}
    language["vocabularies"]["zh"]["characters"] = 60
    language["continued"]["bilingual"] |= {"sampler": {"preset": "chatflow", "grow": 60},
                                           "training": {"steps": 4, "batch": 4}}  # fmt: skip
    language["authored"]["shop"]["records"] = 60
    language["instructed"]["authoring"] |= {"peft": {"lora": {}}, "training": {"steps": 3, "batch": 4}}
    language["evaluations"]["authoring"] = {"rows": 2, "new_tokens": 4, "shots": 0}
    language["samples"] = {"prompts": 2, "decodings": {"greedy": {"decode": "greedy", "form": "lines", "tokens": 4}}}
    language["gates"] |= {"continued": {"improvement": {"metric": "perplexity_zh", "margin": -1e9}},
                          "instructed": {"ceilings": {"classification_illegal": 0.0}}}  # fmt: skip
    params["distill"] |= {"methods": {}, "teacher": {"from": "pretrain", "name": "gpt2"}}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm) -> Checkout:
    folder = tmp_path_factory.mktemp("writing") / "rootstock"
    made = copied(folder, small, without=RECOMMEND + ITEMS + DISTILL, python=warm)
    made.first = made.repro("promote_instructed@authoring", "promote_continued@bilingual")
    return made


def test_from_a_base_to_a_registered_author(checkout):
    asked = {f"{step}@bilingual" for step in ("continued_of", "evaluation_of", *CONTINUED)}
    asked |= {"near", "vocabulary_of@zh", "vocabulary@zh", "authored@shop"}
    asked |= {f"{step}@authoring" for step in INSTRUCTED}
    assert asked <= set(checkout.first)
    assert checkout.champion("language-bilingual") == checkout.champion("language-authoring") == 1
    verdict = checkout.json("artifacts/language/gate/bilingual/verdict.json")
    assert verdict["passed"] and {"forgetting_en", "gain_zh", "retrieval_gain"} <= set(verdict["metrics"]["evaluation"])
    assert "data:image/png;base64" in (checkout.folder / "artifacts/language/gate/bilingual/verdict.html").read_text()
    evaluated = checkout.json("artifacts/evaluated/authoring/metrics.json")["evaluation"]
    assert evaluated["classification_illegal"] == 0 and "grounding" in evaluated


def test_nothing_new_runs_nothing(checkout):
    assert checkout.repro("promote_instructed@authoring", "promote_continued@bilingual") == []


def test_versions_name_their_base_and_keep_their_pages(checkout):
    code = """
import json, mlflow
client = mlflow.MlflowClient("sqlite:///mlruns/mlflow.db")
version = client.get_model_version_by_alias("language-authoring", "champion")
files = [file.path for folder in ("pages", "pages/samples", "evaluation") for file in
         client.list_artifacts(version.run_id, folder)]
print(json.dumps([version.tags, files]))
"""
    tags, files = checkout.told(code)
    assert tags["base"] == "models:/language-bilingual/1"
    assert {"pages/samples/page.html", "pages/keys", "evaluation/metrics.json"} <= set(files)


def test_the_registry_loads_as_transformers_with_its_chat_template(checkout):
    said = checkout.told(LOAD, alone=True)
    assert said["class"] == "GPT2LMHeadModel" and said["said"]
    assert said["prompt"].endswith("### Instruction:\nWrite an ad.\n\n### Response:\n")


def test_a_candidate_is_shown_and_judged_beside_the_champion(checkout):
    # other texts to be judged by: the champion is measured anew on them
    checkout.params(lambda p: p["language"]["evaluations"]["bilingual"]["texts"]["en"].update(characters=9000))
    checkout.params(lambda p: p["language"]["continued"]["bilingual"]["training"].update(steps=5))
    ran = checkout.repro("promote_continued@bilingual")
    assert set(ran) == {f"{step}@bilingual" for step in ("continued_of", "evaluation_of", *CONTINUED)}
    shown = checkout.json("artifacts/pages/bilingual/samples/samples.json")
    assert shown["champion"]["name"].endswith("language-bilingual/1")
    told = checkout.json("artifacts/language/gate/bilingual/verdict.json")
    assert told["champion"]["version"] == 1 and told["champion"]["rows"] == "anew"
    assert checkout.champion("language-bilingual") == 2


def test_a_closed_gate_keeps_the_champion(checkout):
    checkout.params(lambda p: p["language"]["gates"].update(authoring={"floors": {"grounding": 1.01}}))
    checkout.repro("-s", "gate_instructed@authoring", "promote_instructed@authoring")
    assert "gate of language-authoring: CLOSED" in checkout.said
    assert checkout.json("artifacts/language/receipt/authoring.json")["status"] == "rejected"
    assert checkout.champion("language-authoring") == 1
