"""What an entry reads is noted for itself: another data set's change leaves the note as it was."""

import pytest

from tasks.settings import SettingsError
from tasks.sources_of import sources_of

ENTRY = {"from": "pretrain/gpt2", "sources": {"en": {"data": "corpora"}, "zh": {"data": ["news", "corpora"]}}}


@pytest.fixture
def ingest(tmp_path):
    for name in ("corpora", "news", "other"):
        (tmp_path / "ingest" / name).mkdir(parents=True)
        (tmp_path / "ingest" / name / "manifest.json").write_text(name)
    return tmp_path / "ingest"


def test_every_data_set_once_and_no_other(ingest, tmp_path):
    first = sources_of(ENTRY, ingest, tmp_path / "note.json")
    assert list(first) == ["corpora", "news"]
    before = (tmp_path / "note.json").read_bytes()
    (ingest / "other/manifest.json").write_text("changed")
    sources_of(ENTRY, ingest, tmp_path / "note.json")
    assert (tmp_path / "note.json").read_bytes() == before
    (ingest / "news/manifest.json").write_text("changed")
    assert sources_of(ENTRY, ingest, tmp_path / "note.json")["news"] != first["news"]


def test_what_is_not_there_is_named(ingest, tmp_path):
    with pytest.raises(SettingsError, match="zhh: no such data set .*there are corpora, news, other"):
        sources_of({"data": "zhh"}, ingest, tmp_path / "note.json")
    with pytest.raises(SettingsError, match="names no data set"):
        sources_of({"from": "x"}, ingest, tmp_path / "note.json")
    assert not (tmp_path / "note.json").exists()
