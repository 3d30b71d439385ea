"""Remove what a retired task, recipe or dataset left: DVC keeps outputs and lock entries of stages that are gone.

Registered versions stay: retiring a task does not take away what is served; `mlflow` or the UI does that, by a person.
"""

import shutil
from pathlib import Path

from ruamel.yaml import YAML

from tasks.command import run
from tasks.files import locked
from tasks.settings import read

__all__ = ["prune"]


def prune(params: str = "params.yaml", lock: str = "dvc.lock", graph: str = "dvc.yaml") -> list[str]:
    """Delete outputs and lock entries of `stage@key` whose key is no longer among those that `graph` runs it for.

    Returns:
        The paths that went, sorted.

    Raises:
        SettingsError: params.yaml lacks what a stage is run for, such as `datasets` or `recommend.tasks`: an empty
            answer must not delete everything.
    """
    yaml, gone = YAML(), []
    yaml.width = 4096
    if not Path(lock).is_file():
        return gone
    each = {name: stage.get("foreach", "") for name, stage in read(graph)["stages"].items()}
    with locked("prune"):
        known = yaml.load(Path(lock))
        stages = known.get("stages", {})
        kept = {name: set(map(str, read(f"{params}:{each[name][2:-1]}")))  # ${recommend.tasks}
                for name in {name.split("@", 1)[0] for name in stages if "@" in name} if each.get(name)}  # fmt: skip
        retired = lambda stage, key: stage in kept and key not in kept[stage]
        for name in [name for name in stages if "@" in name and retired(*name.split("@", 1))]:
            for out in stages[name].get("outs", []):
                _remove(Path(out["path"]))
                gone.append(out["path"])
            del stages[name]
        if gone:
            fresh = Path(lock).with_name(f".{Path(lock).name}.new")
            yaml.dump(known, fresh)
            fresh.replace(lock)
    return sorted(gone)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def main(params: str = "params.yaml", lock: str = "dvc.lock") -> None:
    """python -m tasks.prune [params.yaml] [dvc.lock]"""
    gone = prune(params, lock)
    print("pruned " + ", ".join(gone) if gone else "nothing to prune: every stage in the lock is configured")


if __name__ == "__main__":
    run(main)
