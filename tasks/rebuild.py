"""Make a registered version again from what its tags and attached files name, and compare the bytes.

A checkout of its git revision, with the dvc.lock, dvc.yaml, params.yaml and data.dvc that are attached to it, shares
this repository's DVC cache: what the cache still has is not computed again, what it has lost is. Raw data are those of
then, from the cache: a source outside moves on.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from tasks import track
from tasks.bundled import check_files
from tasks.command import environment, run
from tasks.files import digest
from tasks.lineage import stage_of
from tasks.lock import Lock

__all__ = ["CannotRebuild", "rebuild"]


class CannotRebuild(ValueError):
    """The version cannot be made again here, and why."""


def rebuild(uri: str, again: bool = False) -> tuple[str, str]:
    """Rebuild `models:/<name>/<version>` in a temporary checkout.

    Args:
        again: run the version's own stage even where the cache has its result.

    Returns:
        The registered content's SHA-256, and that of the rebuilt content.

    Raises:
        CannotRebuild: the revision is unknown here, files were not committed, or a stage failed; says which.
    """
    version = track.resolve(uri)
    revision = version.tags.get("git_revision", "none")
    if revision == "none":
        raise CannotRebuild(f"{uri} was made outside of git, so nothing says which code made it")
    if version.tags.get("git_dirty") == "true":
        raise CannotRebuild(f"{uri} was made from revision {revision[:12]} with changes that were not committed; "
                            f"commit before training, and train it again")  # fmt: skip
    if _git("cat-file", "-e", f"{revision}^{{commit}}").returncode:
        raise CannotRebuild(f"this repository does not know revision {revision[:12]} of {uri}; fetch it and try again")
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _must(_git("worktree", "add", "--detach", str(tree), revision), f"cannot check out {revision[:12]}")
        try:
            return version.tags["content_sha256"], _made(version, tree, Path(folder), again)
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _made(version, tree: Path, folder: Path, again: bool) -> str:
    attached = track.download(version, "rebuild", folder)
    for file in attached.iterdir():
        shutil.copyfile(file, tree / file.name)
    stage = stage_of(version, Lock.read(tree / "dvc.lock"))
    cache = _must(_dvc(Path.cwd(), "cache", "dir"), "cannot find the DVC cache").stdout.strip()
    _must(_dvc(tree, "cache", "dir", "--local", str(Path(cache).resolve())), "cannot share the DVC cache")
    _pin(tree)
    # The encoder of listings that was read then, also where its alias has moved: an empty registry moves nothing.
    _dvc(tree, "checkout", "listing_encoder")
    alone = _environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/none.db"}
    if count := version.tags.get("threads"):
        alone["OMP_NUM_THREADS"] = count
    shown = subprocess.run(_words("repro", stage), cwd=tree, env=alone, check=False)
    if again and not shown.returncode:
        shown = subprocess.run(_words("repro", "-f", "-s", stage), cwd=tree, env=alone, check=False)
    if shown.returncode:
        raise CannotRebuild(
            f"`dvc repro {stage}` failed at revision {version.tags['git_revision'][:12]}; its messages are above"
        )
    if version.name.startswith("recommender-"):  # packed by its own stage
        bundle = tree / version.tags["paths"] / "bundle"
        check_files(bundle)
        return digest(bundle / "manifest.json")
    folder_alone = version.name.startswith(("language-", "distill-", track.LISTINGS))
    unit = "tasks.flavor" if folder_alone else "tasks.bundle"
    words = [sys.executable, "-m", unit, *version.tags["paths"].split()]
    packed = subprocess.run(words, cwd=tree, env=_environment(), text=True, capture_output=True, check=False)
    return _must(packed, "cannot pack the rebuilt artefacts").stdout.split()[-1]


def _pin(tree: Path) -> None:
    """Take the raw data out of the cache and keep DVC from fetching them anew."""
    for file, keys in (("dvc.yaml", ("stages", "fetch", "do")), ("data.dvc", ())):
        if not (tree / file).is_file():
            continue
        content = part = yaml.safe_load((tree / file).read_text())
        for key in keys:
            part = part[key]
        part["frozen"] = True
        (tree / file).write_text(yaml.safe_dump(content, sort_keys=False, width=4096))
    _must(_dvc(tree, "checkout", "data.dvc"), "the DVC cache has lost the raw data; `dvc pull` may bring them")


def _git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *words], text=True, capture_output=True, check=False)


def _dvc(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(_words(*words), cwd=folder, env=_environment(), text=True, capture_output=True, check=False)


def _words(*words: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *words]


def _environment() -> dict[str, str]:
    """The stages' `python` is this one, and imports from the folder it runs in, not from ours."""
    return {key: value for key, value in environment().items() if key != "PYTHONPATH"}


def _must(done: subprocess.CompletedProcess, what: str) -> subprocess.CompletedProcess:
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise CannotRebuild(f"{what}: {said[-600:] or f'exit {done.returncode}'}")
    return done


def main(uri: str, again: str | None = None) -> None:
    """python -m tasks.rebuild models:/NAME/VERSION [again]"""
    if again not in (None, "again"):
        raise ValueError(f"the second word can only be `again`, got {again!r}")
    registered, made = rebuild(uri, again == "again")
    if registered != made:
        raise CannotRebuild(f"{uri} was {registered[:16]}, rebuilt it is {made[:16]}: another machine, library "
                            f"or source gives other bytes; the registered version is untouched")  # fmt: skip
    print(f"{uri}: rebuilt, byte for byte the registered content {registered[:16]}")


if __name__ == "__main__":
    run(main)
