"""The page of a model's keys, the page of what it writes, the study of trained keys; closed sets."""

import json

import polars as pl
import pytest
import torch
from _speaker import speaker, tokenizer
from safetensors.torch import load_file, save_file

from tasks import key_study, keys_page, samples_page, track
from tasks.closed_sets import closed_sets, mapk
from tasks.files import read_json
from tasks.generate import Decoding, task_of
from tasks.settings import SettingsError

SMALL = {"top": 30, "main": 5, "tokens": 3, "rounds": 2, "branch": 4, "clusters": 8, "sets": ["months", "weekdays"]}
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return speaker(tmp_path_factory.mktemp("speaker"))


@pytest.fixture
def prompts(tmp_path):
    pl.DataFrame({"id": ["a", "b"], "prompt": ["Name <some> months.", "Name a red bike."]}).write_parquet("p.parquet")
    return tmp_path / "p.parquet"


def planted(folder, groups: int = 20) -> None:
    """Output rows of an untied model in tight groups, number v in group v mod `groups`."""
    speaker(folder, kind="Llama", tie_word_embeddings=False)
    state = load_file(folder / "model.safetensors")
    keys = state["lm_head.weight"]
    torch.manual_seed(5)
    centers = torch.randn(groups, keys.shape[1])
    state["lm_head.weight"] = centers[torch.arange(len(keys)) % groups] + 0.01 * torch.randn_like(keys)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


# ---------------------------------------------------------------- the page of keys


def test_the_page_tells_identity_ranks_sets_and_clusters(model, tmp_path):
    report = keys_page.keys_page(model, SMALL, tmp_path / "out")
    words = len(tokenizer())
    assert report["identity"]["holds"] and report["identity"]["difference"] < 1e-4
    assert report["keys"]["rows"] == words + 5 and report["keys"]["kept"] < words
    assert report["clusters"]["count"] == 8 and sum(report["clusters"]["largest"]) <= report["keys"]["kept"]
    assert report["ranks"]["share_main"] + report["ranks"]["share_other"] == pytest.approx(1)
    assert set(report["sets"]) == {"months", "weekdays"} and report["sets"]["weekdays"]["answers"] == 7
    metrics = read_json(tmp_path / "out" / "metrics.json")["keys"]
    assert metrics["identity_holds"] == 1 and all(isinstance(value, float) for value in metrics.values())
    page = (tmp_path / "out" / "page.html").read_text()
    assert "Logits are W h" in page and "weekdays" in page and "<script" not in page
    again = keys_page.keys_page(model, SMALL | {"batch": 2}, tmp_path / "again")
    assert again["ranks"] == pytest.approx(report["ranks"], nan_ok=True) and again["clusters"] == report["clusters"]


def test_planted_groups_are_found_and_fill_the_middle_ranks(tmp_path):
    planted(tmp_path / "model")
    report = keys_page.keys_page(tmp_path / "model", SMALL | {"clusters": 20, "top": 12}, tmp_path / "out")
    assert report["clusters"]["smallest"] >= 12  # each group has 16 or 17 rows, a few of them special or padded
    assert report["ranks"]["share_main"] == 1.0  # ranks 6 to 12 are neighbours of the first five


def test_a_model_that_bends_its_logits_gets_a_page_that_says_so(model, tmp_path, monkeypatch):
    from models.language import _reader

    read = _reader.Reader.call
    monkeypatch.setattr(_reader.Reader, "call", lambda self, *given: (lambda out: (out[0] ** 3, *out[1:]))(
        read(self, *given)))  # fmt: skip
    report = keys_page.keys_page(model, SMALL, tmp_path / "out")
    assert not report["identity"]["holds"] and "ranks" not in report
    assert "Refused: logits are not W h: they differ by" in (tmp_path / "out" / "page.html").read_text()
    assert read_json(tmp_path / "out" / "metrics.json") == {"keys": {"identity_holds": 0.0}}


@pytest.mark.parametrize(("chosen", "words"), [
    ({"cluster": 3}, "no setting cluster; it"), ({"main": 200}, "main must be in 1..99"), ({"sets": ["x"]}, "no set x"),
])  # fmt: skip
def test_questions_that_cannot_be(chosen, words, model, tmp_path):
    with pytest.raises(SettingsError, match=words):
        keys_page.keys_page(model, chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_closed_sets_by_hand(tmp_path):
    elements = closed_sets(["elements", "currencies"])
    assert len(set(elements["elements"].names.values())) == 118
    assert elements["elements"].number(" The aluminum!") == elements["elements"].number("Aluminium") is not None
    assert elements["elements"].number("steel") is None and elements["currencies"].number("us DOLLAR.") == 0
    # precision 1, 1/2, 2/3 of the first one, two, three
    assert mapk([True, False, True], 3) == pytest.approx((1 + 0.5 + 2 / 3) / 3) and mapk([]) == 0
    own = tmp_path / "own.json"
    own.write_text(
        json.dumps({"colours": {"instruction": "Name colours.", "answers": [["red", "crimson"]]}, "bad": {}})
    )
    assert closed_sets(["colours"], own)["colours"].number("Crimson") == 0
    with pytest.raises(SettingsError, match="bad needs an instruction"):
        closed_sets(file=own)


def test_every_closed_set_can_be_asked(model):
    from tasks.causal import open_causal

    opened = open_causal(model)
    for name, each in closed_sets().items():
        assert task_of(opened, each.instruction, Decoding()).prompt and len(each.names) >= 7, name


# ---------------------------------------------------------------- the page of samples


def test_candidate_and_champion_write_side_by_side(model, prompts, tmp_path):
    old = speaker(tmp_path / "old", seed=1)
    chosen = {"decodings": {"greedy": {"decode": "greedy", "form": "lines", "tokens": 6},
                            "icn": {"rounds": 1, "branch": 3, "tokens": 4}}}  # fmt: skip
    told = samples_page.samples_page(model, prompts, chosen, tmp_path / "out", str(old))
    assert read_json(tmp_path / "out" / "samples.json") == told
    texts = told["prompts"][0]["texts"]["icn"]
    assert texts["candidate"] != texts["champion"] and 0 < len(texts["champion"]) <= 3
    page = (tmp_path / "out" / "page.html").read_text()
    assert "Name &lt;some&gt; months." in page and "<some>" not in page and "<th>champion</th>" in page
    alone = samples_page.samples_page(model, prompts, {"prompts": 1}, tmp_path / "alone")
    assert alone["champion"] is None and len(alone["prompts"]) == 1
    assert "no champion yet" in (tmp_path / "alone" / "page.html").read_text()
    same = samples_page.samples_page(model, prompts, {}, tmp_path / "same", str(model))
    assert same["champion"]["content"] == same["candidate"]["content"]
    assert "These files are" in (tmp_path / "same" / "page.html").read_text()


def test_the_champion_is_looked_up_in_the_registry(model, prompts, tmp_path, monkeypatch):
    version = track.Version("language-zh", 3, "run")
    asked = []
    monkeypatch.setattr(track, "by_alias", lambda name, alias: asked.append((name, alias)) or version)
    monkeypatch.setattr(track, "model_files", lambda found, folder: model if found is version else None)
    told = samples_page.samples_page(model, prompts, {"prompts": 1}, tmp_path / "out", "language-zh")
    assert asked == [("language-zh", "champion")] and told["champion"]["name"] == "models:/language-zh/3"
    monkeypatch.setattr(track, "by_alias", lambda name, alias: None)
    assert samples_page.samples_page(model, prompts, {"prompts": 1}, tmp_path / "b", "language-zh")["champion"] is None


def test_samples_that_cannot_be(model, prompts, tmp_path):
    with pytest.raises(SettingsError, match="closest: prompts"):
        samples_page.samples_page(model, prompts, {"prompt": 1}, tmp_path / "out")
    with pytest.raises(SettingsError, match="at least 1"):
        samples_page.samples_page(model, prompts, {"prompts": 0}, tmp_path / "out")


# ---------------------------------------------------------------- the study of trained keys


def test_neighbours_leak_where_the_head_is_frozen(prompts, tmp_path):
    planted(tmp_path / "model", groups=8)
    chosen = {"clusters": 8, "trained": 3, "steps": 8, "lr": 3e-3, "top": 400}
    report = key_study.key_study(tmp_path / "model", prompts, chosen, tmp_path / "out")
    frozen, free, rerank = (report["ways"][way] for way in ("frozen", "free", "rerank"))
    assert not report["tied"] and len(report["trained"]) == 3
    assert len({token % 8 for token in report["trained"]}) == 3  # of three planted groups
    assert all(told["loss"] < told["loss_before"] for told in (frozen, free, rerank))
    assert frozen["key_drift"] == 0 < free["key_drift"] and frozen["query_drift"] > 0
    assert frozen["leak"] == pytest.approx(1, abs=0.1)  # keys 0.01 apart cannot be told apart
    assert rerank["key_drift"] == rerank["query_drift"] == 0 and rerank["leak"] < 0.5 and rerank["in_top"] == 1
    assert frozen["leak_control"] < 0.2
    assert "| frozen |" in (tmp_path / "out" / "report.md").read_text()
    again = key_study.key_study(tmp_path / "model", prompts, chosen, tmp_path / "again")
    assert again["ways"] == report["ways"]


@pytest.mark.parametrize("kind", ["gpt2", "Llama"])
def test_adapters_leave_the_head_alone(kind, prompts, tmp_path):
    speaker(tmp_path / "model", kind=kind)
    chosen = {"clusters": 6, "trained": 2, "steps": 4, "lr": 1e-2, "rank": 2}
    report = key_study.key_study(tmp_path / "model", prompts, chosen, tmp_path / "out")
    frozen = report["ways"]["frozen"]
    assert report["tied"] == (kind == "gpt2")
    assert frozen["key_drift"] == 0 and frozen["query_drift"] > 0 and frozen["loss"] < frozen["loss_before"]


def test_studies_that_cannot_be(model, prompts, tmp_path):
    with pytest.raises(SettingsError, match="no setting step; it has: "):
        key_study.key_study(model, prompts, {"step": 1}, tmp_path / "out")
    with pytest.raises(SettingsError, match="at least 1"):
        key_study.key_study(model, prompts, {"trained": 0}, tmp_path / "out")
    with pytest.raises(ValueError, match="1 of 1 clusters"):
        key_study.key_study(model, prompts, {"clusters": 1}, tmp_path / "out")
