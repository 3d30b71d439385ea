"""Rebuilding with real git and DVC, a miniature graph: the raw data of then, the stage that made it, the same bytes.

Rebuilds of real models stand beside what makes them, in the tests of whole checkouts.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import rebuild as module
from tasks import track
from tasks.command import environment
from tasks.files import digest
from tasks.rebuild import CannotRebuild, main, rebuild

GRAPH = """
vars: [params.yaml]
stages:
  fetch:
    foreach: ${datasets}
    do:
      cmd: python bring.py ${item.source} landing/${key}
      deps: ["${item.source}"]
      outs: [{"landing/${key}": {persist: true}}]
  recommender:
    foreach: ${models}
    do:
      cmd: python pack.py data/${item.data}/raw.txt artifacts/recommender/${key}/packed
      deps: ["data/${item.data}", pack.py]
      outs: ["artifacts/recommender/${key}/packed"]
"""
COPY = """
import pathlib, shutil, sys
pathlib.Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
shutil.copyfile(sys.argv[1], sys.argv[2] + "/raw.txt")
"""
PACK = """
import hashlib, json, os, pathlib, sys
print("threads", os.environ["OMP_NUM_THREADS"])
bundle = pathlib.Path(sys.argv[2], "bundle")
bundle.mkdir(parents=True)
content = pathlib.Path(sys.argv[1]).read_bytes().upper()
(bundle / "weights.txt").write_bytes(content)
(bundle / "manifest.json").write_text(json.dumps({"files": {"weights.txt": hashlib.sha256(content).hexdigest()}}))
"""
ATTACHED = ("data.dvc", "dvc.lock", "dvc.yaml", "params.yaml")


@pytest.fixture(scope="module")
def registered(tmp_path_factory) -> tuple[Path, track.Version]:
    """A repository whose one model was registered; then its source, its settings and its code moved on."""
    folder = tmp_path_factory.mktemp("rebuilt")
    source, home = folder / "source.txt", folder / "home"
    home.mkdir()
    source.write_text("old words")
    for name, text in {"dvc.yaml": GRAPH, "bring.py": COPY, "pack.py": PACK, ".gitignore": "/artifacts\n/landing\n",
                       "params.yaml": f"datasets: {{one: {{source: {source}}}}}\nmodels: {{similar: {{data: one}}}}\n",
                       }.items():  # fmt: skip
        (home / name).write_text(text)

    def do(*words: str) -> str:
        return subprocess.run(words, cwd=home, env=environment(), text=True, check=True, stdout=subprocess.PIPE).stdout

    dvc, git = (sys.executable, "-m", "dvc"), ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")
    do("git", "init", "-q")
    do(*dvc, "init", "-q")
    do(*dvc, "repro", "-q", "fetch@one")
    do(*dvc, "import-url", "-q", "landing", "data")
    do(*dvc, "unfreeze", "-q", "data.dvc")
    do(*git, "add", "-A")
    do(*git, "commit", "-qm", "start")
    do(*dvc, "repro", "-q")
    revision = do("git", "rev-parse", "HEAD").strip()
    (folder / "rebuild").mkdir()
    for file in ATTACHED:
        shutil.copyfile(home / file, folder / "rebuild" / file)
    path = "artifacts/recommender/similar/packed"
    tags = {"git_revision": revision, "git_dirty": "false", "paths": path, "stage": "similar, as it was once called",
            "content_sha256": digest(home / path / "bundle/manifest.json")}  # fmt: skip
    source.write_text("new words")
    (home / "pack.py").write_text(PACK.replace("upper", "lower"))
    do(*git, "commit", "-qam", "later")
    do(*dvc, "repro", "-q")
    assert (home / path / "bundle/weights.txt").read_text() == "new words"
    return home, track.Version("recommender-similar", 1, "run", tags)


@pytest.fixture
def asked(registered, monkeypatch):
    """The registry, as far as a rebuild asks it; the working folder is the repository."""
    home, version = registered
    monkeypatch.chdir(home)
    monkeypatch.setattr(track, "resolve", lambda uri: version)
    monkeypatch.setattr(track, "download", lambda version, place, folder: Path(shutil.copytree(
        home.parent / place, folder / place)))  # fmt: skip
    return version


@pytest.mark.parametrize("again", [False, True])
def test_the_bytes_of_then_although_source_and_code_moved_on(asked, again, capfd):
    before = (Path("artifacts/recommender/similar/packed/bundle/weights.txt")).read_text()
    main("models:/recommender-similar/1", *(["again"] if again else []))
    out = capfd.readouterr().out
    assert f"byte for byte the registered content {asked.tags['content_sha256'][:16]}" in out
    assert ("Running stage 'recommender@similar'" in out) is again  # else it came out of the cache
    assert Path("artifacts/recommender/similar/packed/bundle/weights.txt").read_text() == before  # not this checkout's
    assert subprocess.run(["git", "worktree", "list"], text=True, stdout=subprocess.PIPE).stdout.count("\n") == 1


def test_with_as_many_threads_as_then(asked, monkeypatch, capfd):
    monkeypatch.setitem(asked.tags, "threads", "3")
    main("models:/recommender-similar/1", "again")
    assert "threads 3" in capfd.readouterr().out


def test_other_bytes_and_other_words(asked, monkeypatch):
    monkeypatch.setitem(asked.tags, "content_sha256", "0" * 64)
    with pytest.raises(
        CannotRebuild, match=r"was 0000000000000000, rebuilt it is .*the registered version is untouched"
    ):
        main("models:/recommender-similar/1")
    with pytest.raises(ValueError, match="can only be `again`"):
        main("models:/recommender-similar/1", "twice")


def test_raw_data_that_nobody_kept(asked, monkeypatch, tmp_path):
    there = module._dvc
    monkeypatch.setattr(module, "_dvc", lambda folder, *words: subprocess.CompletedProcess(words, 0, str(tmp_path), "")
                        if words == ("cache", "dir") else there(folder, *words))  # fmt: skip
    with pytest.raises(CannotRebuild, match="lost the raw data"):
        rebuild("models:/recommender-similar/1")
