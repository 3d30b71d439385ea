"""Distances of vectors by hand, a judge of topics on words and on a model's vectors, the stage and what it refuses."""

import math
import zlib

import _authored
import _tuned
import numpy as np
import polars as pl
import pytest
import yaml
from _speaker import speaker

from tasks import on_topic as module
from tasks.diversity import distance, diversity
from tasks.files import read_json
from tasks.generate import generate
from tasks.on_topic import Topics, Unjudged, on_topic, variety
from tasks.poison import PoisonedFolder
from tasks.settings import SettingsError
from tasks.texts import UnreadableEncoder


def bag(texts):
    """An encoder of words: each has a direction of its own."""
    vectors = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in text.split():
            row += np.random.default_rng(zlib.crc32(word.encode())).normal(size=64)
    return vectors


TITLES = [f"{thing} number {n}" for thing in ("lamp", "shoe", "book") for n in range(30)]
TOPICS = [thing for thing in ("light", "foot", "page") for _ in range(30)]


@pytest.fixture(scope="module")
def judge():
    return Topics(bag, TITLES, TOPICS)


# ---------------------------------------------------------------- distance


def test_distance_by_hand():
    # pairs: (1, 1) 0, (1, -1) 2, (1, 0) 1, and again from the second: 0 + 2 + 1 + 2 + 1 + 1 = 7 of 6 pairs
    vectors = np.array([[1.0, 0.0], [5.0, 0.0], [-2.0, 0.0], [0.0, 0.1]])
    assert distance(vectors) == pytest.approx(7 / 6)
    assert distance(np.array([[1.0, 2.0], [2.0, 4.0]])) == pytest.approx(0)
    assert distance(np.array([[1.0, 2.0], [0.0, 0.0]])) == 1.0  # what says nothing is like nothing
    assert math.isnan(distance(vectors[:1])) and math.isnan(distance(vectors[:0]))


def test_distance_is_the_mean_over_all_pairs():
    vectors = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[a] @ unit[b] for a in range(9) for b in range(a)]
    assert distance(vectors) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_diversity_has_distances_where_it_has_an_encoder():
    texts = {"a": ["red lamp", "red lamp", "  "], "b": ["red lamp", "blue shoe"], "c": ["alone", ""]}
    plain, told = diversity(texts), diversity(texts, bag)
    assert "distance" not in plain and {key: told[key] for key in plain} == plain
    assert told["distance"] == pytest.approx(distance(bag(texts["b"])) / 2)  # of copies 0, of one text nothing


# ---------------------------------------------------------------- the judge


def test_a_judge_is_told_by_texts_that_it_has_not_learned(judge):
    assert judge.names == ["foot", "light", "page"] and judge(["my old lamp", "a shoe"]) == ["light", "foot"]
    told = judge.told
    assert told["accuracy"] == told["f1"] == 1.0 and told["learned"] + told["held_out"] == 90
    assert 0.2 < told["majority"] < 0.6 and 5 < told["held_out"] < 40 and judge([]) == []
    seen = []
    Topics(lambda texts: seen.append(set(texts)) or bag(texts), TITLES, TOPICS)
    assert len(seen) == 2 and not seen[0] & seen[1] and len(seen[0]) == told["learned"]


def test_a_judge_without_knowledge_says_so():
    shuffled = list(np.random.default_rng(1).permutation(TOPICS))
    told = Topics(bag, TITLES, shuffled).told
    assert told["accuracy"] < 0.7 and told["matthews"] < 0.5


def test_equal_texts_count_once_and_rare_topics_not():
    some = Topics(bag, [*TITLES, *TITLES, "", " ", "rare thing"], [*TOPICS, *reversed(TOPICS), "x", "x", "rare"])
    assert some.told["learned"] + some.told["held_out"] == 90 and "rare" not in some.names
    again = Topics(bag, TITLES[::-1], TOPICS[::-1])
    assert np.array_equal(again._weight, Topics(bag, TITLES, TOPICS)._weight)  # no order of the titles matters
    for texts, topics in ((TITLES[:30], TOPICS[:30]), ([], []), (TITLES[:3] + TITLES[-3:], TOPICS[:3] + TOPICS[-3:])):
        with pytest.raises(Unjudged, match="a judge needs two topics"):
            Topics(bag, texts, topics)


def test_off_topic_texts_are_told_apart_from_varied_ones(judge):
    rows = pl.DataFrame({
        "id": ["a"] * 5 + ["b"] * 2, "topic": ["light"] * 5 + ["page"] * 2,
        "text": ["lamp one", "lamp two", "shoe three", "", "book four", "book five", "book six"],
    })  # fmt: skip
    kept, found = variety(rows, judge, bag)
    assert kept["judged"].to_list() == ["light", "light", "foot", None, "page", "page", "page"]
    assert kept["on_topic"].to_list() == [True, True, False, False, False, True, True]
    assert found["on_topic"] == pytest.approx(4 / 7) and (found["texts"], found["unjudged"]) == (7, 0)
    # said: light 2, foot 1, page 3; asked: light 5, page 2
    assert found["on_topic_by_chance"] == pytest.approx((2 * 5 + 3 * 2) / 49)
    of = lambda *texts: distance(bag(texts))
    both = of("book five", "book six")
    assert found["distance"] == pytest.approx((of("lamp one", "lamp two", "shoe three", "book four") + both) / 2)
    assert found["on_topic_distance"] == pytest.approx((of("lamp one", "lamp two") + both) / 2)
    assert found["on_topic_distance"] < found["distance"] and 0 < found["on_topic_self_bleu"] < 1


def test_topics_that_no_title_has(judge):
    rows = pl.DataFrame({"id": ["a", "b"], "topic": ["light", "space"], "text": ["lamp", "rocket"]})
    kept, found = variety(rows, judge, bag)
    assert len(kept) == 1 and (found["texts"], found["unjudged"], found["on_topic"]) == (2, 1, 1.0)
    assert "distance" not in found and "on_topic_distance" not in found  # one text a prompt
    with pytest.raises(Unjudged, match="about space, the titles of foot, light, page; no topic is in both"):
        variety(rows.tail(1), judge, bag)
    nothing = rows.head(1).with_columns(text=pl.lit(""))
    assert variety(nothing, judge, bag)[1]["on_topic"] == 0.0


# ---------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """cat/ of English products, encoder/, prompts.parquet and texts.parquet: half of them about something else."""
    root = tmp_path_factory.mktemp("topics")
    _authored.write_catalogue(root, 300, "en")
    (root / "encoder").mkdir()
    _tuned.write_model(root / "encoder", "bert")
    asked = module.read_catalogue(root / "cat")
    chosen = [one for one in asked if one.category[0] == asked[0].category[0]][:4]
    others = [one for one in asked if one.category[0] != asked[0].category[0]][:4]
    pl.DataFrame({"id": ["ad/0"], "topic": [chosen[0].path]}).write_parquet(root / "prompts.parquet")
    texts = [one.title for one in chosen + others]
    pl.DataFrame({"id": ["ad/0"] * 8, "text": texts}).write_parquet(root / "texts.parquet")
    return root


def judged(made, out, **told):
    place = {name: made / name for name in ("texts.parquet", "prompts.parquet", "cat", "encoder")} | told.pop("at", {})
    return on_topic(*place.values(), told, out)


def test_the_stage_judges_by_the_catalogue(made, tmp_path):
    found = judged(made, tmp_path / "out", level=1)
    assert found["judge_topics"] == 8 and found["judge_accuracy"] > 2 * found["judge_majority"]
    assert found["texts"] == 8 and found["on_topic"] == pytest.approx(0.5, abs=0.13) and found["distance"] > 0
    assert read_json(tmp_path / "out" / "metrics.json") == {"judged": found}
    rows = pl.read_parquet(tmp_path / "out" / "topics.parquet")
    assert rows["on_topic"].mean() == found["on_topic"] and rows["topic"].n_unique() == 1
    run = read_json(tmp_path / "out" / "run.json")
    assert run["level"] == 1 and len(run["encoder"]) == 64
    assert judged(made, tmp_path / "again", level=1) == found
    assert judged(made, tmp_path / "whole")["judge_topics"] > 8  # whole paths
    prompts = pl.read_parquet(made / "prompts.parquet")
    for text, share in ((pl.read_parquet(made / "texts.parquet")["text"][0], 1.0), ("", 0.0)):
        prompts.with_columns(reference=pl.lit(text)).write_parquet(tmp_path / "more.parquet")
        more = judged(made, tmp_path / "more", level=1, at={"prompts.parquet": tmp_path / "more.parquet"})
        assert more.pop("judge_on_references") == share and more == found


def test_texts_of_a_model_are_judged_by_the_command(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")
    path = pl.read_parquet(made / "prompts.parquet")["topic"][0]
    asked = {"id": ["ad/0"], "prompt": ["Write an advertisement."], "topic": [path]}
    pl.DataFrame(asked).write_parquet("prompts.parquet")
    chosen = {"decode": "sample", "rounds": 1, "branch": 6, "tokens": 6, "form": "lines"}
    generate(speaker(tmp_path / "model"), "prompts.parquet", chosen, "texts")
    entry = {"texts": "ads", "data": "shop", "catalogue": "cat", "encoder": "x", "level": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"language": {"judged": {"ads": entry}}}))
    module.main("texts/texts.parquet", "prompts.parquet", str(made / "cat"), str(made / "encoder"),
                "params.yaml:language.judged.ads", "out")  # fmt: skip
    found = read_json("out/metrics.json")["judged"]
    assert found["texts"] == 6 and 0 <= found["on_topic"] <= 1
    assert "of 6 texts are on topic (by chance" in capsys.readouterr().out


def test_what_cannot_be_judged_is_refused_and_nothing_is_written(made, tmp_path):
    for told, words in (
        ({"level": 0}, "whole number >= 1"),
        ({"levels": 1}, "closest: level"),
        ({"level": True}, "level"),
    ):
        with pytest.raises(SettingsError, match=words):
            judged(made, tmp_path / "out", **told)
    pl.DataFrame({"id": ["ad/0"], "prompt": ["x"]}).write_parquet(tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match="has no column topic, but id, prompt"):
        judged(made, tmp_path / "out", at={"prompts.parquet": tmp_path / "bare.parquet"})
    pl.DataFrame({"id": ["b"], "topic": ["x"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="8 of 8 texts .* have no prompt with a topic .* 'ad/0'"):
        judged(made, tmp_path / "out", at={"prompts.parquet": tmp_path / "other.parquet"})
    (tmp_path / "poisoned").mkdir()
    _tuned.write_model(tmp_path / "poisoned", "bert")
    (tmp_path / "poisoned" / "more.bin").write_bytes(b"x")
    with pytest.raises(PoisonedFolder):
        judged(made, tmp_path / "out", at={"encoder": tmp_path / "poisoned"})
    (tmp_path / "poisoned" / "more.bin").unlink()
    (tmp_path / "poisoned" / "tokenizer_config.json").unlink()
    with pytest.raises(UnreadableEncoder, match="no tokenizer_config.json"):
        judged(made, tmp_path / "out", at={"encoder": tmp_path / "poisoned"})
    with pytest.raises(SettingsError, match="holds no encoder of texts"):
        judged(made, tmp_path / "out", at={"encoder": tmp_path})
    assert not (tmp_path / "out").exists()
