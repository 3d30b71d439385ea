"""Prompts of a version's page: beginnings of held-out texts, the same every time."""

import polars as pl
import pytest

from tasks.files import write_json
from tasks.sample_prompts import sample_prompts
from tasks.settings import SettingsError


@pytest.fixture
def ingested(tmp_path):
    texts = {"en": ["I am selling my blue comic from Pavelo, as good as new, cheap."],
             "zh": ["出售我的红色皮革运动鞋Albora牌，几乎全新，没有任何磨损，价格可议，谢谢。"]}  # fmt: skip
    rows = [{"sentences": said, "language": language} for language, said in texts.items()]
    (tmp_path / "in/corpora/rows").mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(tmp_path / "in/corpora/rows/heldout.parquet")
    write_json(tmp_path / "in/corpora/manifest.json", {"kind": "documents", "languages": ["en", "zh"]})
    return tmp_path / "in"


def test_a_third_of_a_text_up_to_a_whole_word(ingested, tmp_path):
    settings = {"texts": {language: {"data": "corpora"} for language in ("en", "zh")}}
    found = sample_prompts(settings, ingested, tmp_path / "prompts.parquet")
    # 62 characters: 20 are "I am selling my blue"; 39: 13 are the eleven before "Al", which is cut off
    assert dict(found.rows()) == {"en/0": "I am selling my blue", "zh/0": "出售我的红色皮革运动鞋"}
    assert pl.read_parquet(tmp_path / "prompts.parquet").equals(found)


def test_without_texts_there_is_no_file(ingested, tmp_path):
    with pytest.raises(SettingsError, match="no held-out text to begin from"):
        sample_prompts({"pairs": {}}, ingested, tmp_path / "prompts.parquet")
    assert not (tmp_path / "prompts.parquet").exists()
