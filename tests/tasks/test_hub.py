"""A source on the hub: one commit, the wanted files only, kept where the line dropped; no network is used here."""

from pathlib import Path

import pytest

from tasks.datasets import corpora
from tasks.fetch import copy_files, fetch
from tasks.hub import HubError
from tasks.settings import SettingsError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"en/train.jsonl": '{"text": "One text."}\n{"text": "Another one."}\n', "en/readme.md": "no",
         "zh/train.jsonl": '{"text": "一篇文章。"}\n'}  # fmt: skip


class Hub:
    """Stands in for the hub's client."""

    def __init__(self):
        self.asked, self.fails = [], False

    def __call__(self, name, *, repo_type, revision, allow_patterns, local_dir):
        self.asked.append((name, repo_type, revision))
        for file, content in FILES.items():
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (Path(local_dir) / file).parent.mkdir(parents=True, exist_ok=True)
                (Path(local_dir) / file).write_text(content)
                if self.fails:
                    raise ConnectionError("the line dropped")
        (Path(local_dir) / ".cache").mkdir(parents=True, exist_ok=True)
        (Path(local_dir) / ".cache" / "notes.json").write_text("{}")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "landing").mkdir()
    made = Hub()
    monkeypatch.setattr("huggingface_hub.snapshot_download", made)
    return made


def names(folder: str = "landing") -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("", ["en/train.jsonl", "zh/train.jsonl"]),
        ("/en", ["en/train.jsonl"]),
        ("/zh/train.jsonl", ["zh/train.jsonl"]),
        ("/*/train.jsonl", ["en/train.jsonl", "zh/train.jsonl"]),
    ],
)
def test_the_wanted_files_of_one_commit(hub, path, wanted):
    copy_files(Path("landing"), Path(f"hub:owner/name@{COMMIT}{path}"))
    assert hub.asked == [("owner/name", "dataset", COMMIT)]
    assert names() == wanted
    assert not list(Path().glob(".staging-*"))


def test_a_text_data_set_from_the_hub(hub):
    settings = {"source": f"hub:owner/name@{COMMIT}/en", "licence": "MIT"}
    assert fetch("corpora", settings, "landing/corpora", "report")["rows"] == 2
    assert corpora.read(Path("landing/corpora")).collect()["licence"].to_list() == ["MIT", "MIT"]


def test_a_broken_line_keeps_what_came(hub):
    hub.fails = True
    with pytest.raises(HubError, match=r"(?s)ConnectionError: the line dropped.*give their folder as `source`"):
        copy_files(Path("landing"), Path(f"hub:owner/name@{COMMIT}"))
    assert names(f".staging-owner-name-{COMMIT[:12]}") == ["en/train.jsonl"]


def test_nothing_there_is_told(hub):
    with pytest.raises(HubError, match=r"owner/name at 0123.* has no ja/\*.parquet or"):
        copy_files(Path("landing"), Path(f"hub:owner/name@{COMMIT}/ja"))


@pytest.mark.parametrize("source", ["hub:owner/name", "hub:owner/name@main/en", "hub:name@" + COMMIT])
def test_a_source_without_a_commit_is_refused(hub, source):
    with pytest.raises(SettingsError, match="is not hub:OWNER/NAME@COMMIT/PATH"):
        copy_files(Path("landing"), Path(source))
    assert not hub.asked
