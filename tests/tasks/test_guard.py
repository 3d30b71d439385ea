"""Nobody's own file in data/ is deleted, and what DVC itself put there never stops a run."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.guard import SEEN, OwnFiles, guard

ROOT = Path(__file__).parents[2]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def record(files: dict[str, bytes]) -> None:
    """data.dvc, and DVC's list of the files in its cache, as `dvc import-url landing data` would leave them."""
    entries = [{"md5": md5(content), "relpath": name} for name, content in sorted(files.items())]
    listed = json.dumps(entries, sort_keys=True).encode()
    whole = md5(listed)
    Path("data.dvc").write_text(
        f"md5: {'0' * 32}\ndeps:\n- md5: {'1' * 32}.dir\n  path: landing\nouts:\n- md5: {whole}.dir\n  path: data\n"
    )
    write(f".dvc/cache/files/md5/{whole[:2]}", {f"{whole[2:]}.dir": listed})


def write(folder: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (path := Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


FILES = {"README.md": b"note", "shop/a.parquet": b"PAR1" * 9, "shop/b.parquet": b"PAR1" * 7}


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    record(FILES)
    write("data", FILES)


def test_recorded_files_pass_and_the_note_never_changes():
    note = guard("data", "landing")
    assert note == Path("landing/README.md")
    before = note.read_bytes()
    guard("data", "landing")
    assert note.read_bytes() == before
    assert b"`source`" in before


@pytest.mark.parametrize("missing", ["data", "data.dvc"])
def test_nothing_to_lose(missing):
    shutil.rmtree(missing) if missing == "data" else os.remove(missing)
    write("elsewhere", {"x": b"x"})
    assert guard("data", "landing").exists()


@pytest.mark.parametrize("name", ["notes.txt", "shop/mine.parquet", "mine/deep/x.csv", ".hidden"])
def test_own_file_stops_the_run_and_stays(name):
    write("data", {name: b"two days of work"})
    with pytest.raises(OwnFiles) as stopped:
        guard("data", "landing")
    assert f"\n  data/{name}\n" in str(stopped.value)
    assert "1 file(s)" in str(stopped.value)
    assert "`source`" in str(stopped.value)
    assert (Path("data") / name).read_bytes() == b"two days of work"
    assert not Path("landing").exists()
    with pytest.raises(OwnFiles):  # asking twice is no consent
        guard("data", "landing")
    (Path("data") / name).unlink()
    assert guard("data", "landing").exists()


def test_edited_file_stops_the_run_even_after_it_was_seen_whole():
    guard("data", "landing")
    write("data", {"shop/b.parquet": b"PAR2" * 7})
    with pytest.raises(OwnFiles, match="data/shop/b.parquet") as stopped:
        guard("data", "landing")
    assert "a.parquet" not in str(stopped.value)


def test_many_own_files_are_counted_not_all_listed():
    write("data", {f"own/{i:02}": f"{i}".encode() for i in range(25)})
    with pytest.raises(OwnFiles, match=r"25 file\(s\)(.|\n)*own/09\n  and 15 more"):
        guard("data", "landing")


def test_each_file_is_hashed_once(monkeypatch):
    guard("data", "landing")
    monkeypatch.setattr("tasks.guard._md5", lambda path: pytest.fail(f"hashed {path} again"))
    guard("data", "landing")
    assert sorted(json.loads(SEEN.read_text())) == sorted(FILES)


def test_leftovers_of_a_killed_import_pass():
    new = {"shop/c.parquet": b"PAR1" * 50, "shop/d.parquet": b"PAR1" * 60}
    write("landing", new)
    write("data", {"shop/c.parquet": new["shop/c.parquet"], "shop/d.parquet": new["shop/d.parquet"][:33]})
    write("data", {"shop/.Oba5mXR_xbcRQDAaHKilRw.tmp": b"half", "shop/.DS_Store": b"x"})
    guard("data", "landing")
    write("data", {"shop/d.parquet": new["shop/d.parquet"][:32] + b"X"})  # as long, other bytes
    with pytest.raises(OwnFiles, match="d.parquet"):
        guard("data", "landing")


def test_leftovers_seen_once_pass_when_landing_has_moved_on():
    write("landing", {"shop/c.parquet": b"PAR1" * 50})
    write("data", {"shop/c.parquet": b"PAR1" * 20})
    guard("data", "landing")
    write("landing", {"shop/c.parquet": b"another version"})
    guard("data", "landing")


def test_older_version_in_the_cache_passes():
    old = b"last month"
    write("data", {"shop/a.parquet": old})
    with pytest.raises(OwnFiles):
        guard("data", "landing")
    write(f".dvc/cache/files/md5/{md5(old)[:2]}", {md5(old)[2:]: old})
    guard("data", "landing")


def test_cache_elsewhere_is_found(tmp_path):
    shutil.move(".dvc/cache", tmp_path / "big disk")
    write("data", {"own": b"x"})
    Path(".dvc/config").write_text(f"[core]\n    analytics = false\n[cache]\n    dir = {tmp_path / 'big disk'}\n")
    with pytest.raises(OwnFiles, match=r"1 file\(s\)"):  # the others are on the list
        guard("data", "landing")


def test_without_a_cache_the_folder_as_a_whole_is_compared():
    shutil.rmtree(".dvc/cache")
    guard("data", "landing")
    SEEN.unlink()
    write("data", {"own": b"x"})
    with pytest.raises(OwnFiles, match="own"):
        guard("data", "landing")


@pytest.mark.parametrize("kind", ["frozen", "plain"])
def test_kinds_of_data_dvc_that_delete_nothing(kind):
    write("data", {"own": b"x"})
    text = Path("data.dvc").read_text()
    plain = text[: text.index("deps:")] + text[text.index("outs:") :]
    Path("data.dvc").write_text(f"frozen: true\n{text}" if kind == "frozen" else plain)
    assert guard("data", "landing").exists()


def test_link_of_ones_own_stops_the_run(tmp_path):
    (tmp_path / "disk").mkdir()
    Path("data/disk").symlink_to(tmp_path / "disk")
    with pytest.raises(OwnFiles, match="data/disk"):
        guard("data", "landing")


def test_dvc_repro_itself_deletes_only_what_it_put_there(monkeypatch):
    """The real tool: the import is made and repeated, and stops before an own file is lost."""
    shutil.rmtree("data"), shutil.rmtree(".dvc"), os.remove("data.dvc")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def dvc(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True, check=False)

    write("landing", {"README.md": b"first", "shop/a.csv": b"a\n1\n"})
    assert dvc("init", "--no-scm", "-q").returncode == 0
    assert dvc("import-url", "-q", "landing", "data").returncode == 0
    assert dvc("unfreeze", "data.dvc").returncode == 0
    Path("dvc.yaml").write_text(
        "stages:\n  guard:\n    cmd: python -m tasks.guard data landing\n    always_changed: true\n"
        "    outs:\n    - landing/README.md:\n        persist: true\n"
    )
    assert dvc("repro", "-q", "data.dvc").returncode == 0
    write("data", {"shop/mine.csv": b"precious"})
    stopped = dvc("repro", "data.dvc")
    assert stopped.returncode != 0
    assert "data/shop/mine.csv" in stopped.stdout + stopped.stderr
    assert Path("data/shop/mine.csv").read_bytes() == b"precious"
    Path("data/shop/mine.csv").rename("mine.csv")
    write("landing", {"shop/a.csv": b"a\n2\n"})
    assert dvc("repro", "-q", "data.dvc").returncode == 0
    assert Path("data/shop/a.csv").read_bytes() == b"a\n2\n"
