"""What a dvc.lock says: which stage made a path, what that stage read, and which stages made that."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

__all__ = ["Lock", "Stage"]


class Stage(dict):
    """An entry of dvc.lock: `cmd`, `deps` and `outs` with a `path` and an `md5` each, `params` by file."""

    def hashes(self, part: str) -> dict[str, str]:
        """Path -> MD5 of its `deps` or its `outs`."""
        return {entry["path"]: entry.get("md5", "") for entry in self.get(part, [])}

    @property
    def parameters(self) -> dict[str, object]:
        """Dotted keys of params.yaml that it read, and their values."""
        return {key: value for told in self.get("params", {}).values() for key, value in told.items()}


class Lock:
    """The stages that ran, by name such as `prompt@offer_make`."""

    def __init__(self, content: Mapping):
        self.stages = {name: Stage(entry) for name, entry in (content.get("stages") or {}).items()}

    @classmethod
    def read(cls, file: Path) -> "Lock":
        """A dvc.lock; an empty one where there is no such file.

        Raises:
            ValueError: it is no YAML.
        """
        if not file.is_file():
            return cls({})
        try:
            return cls(yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {})
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is no dvc.lock: {str(error).splitlines()[0]}") from None

    def makers(self, path: str) -> list[str]:
        """The stages whose outputs are this path, lie in it, or hold it."""
        return [name for name, stage in self.stages.items() if any(_meet(path, out) for out in stage.hashes("outs"))]

    def above(self, name: str) -> list[str]:
        """The stages that made what a stage read, without itself.

        Of a folder in which many stages write, such as artifacts/ingest, those that its parameters name, if they do.
        """
        stage = self.stages.get(name, Stage())
        words, found = _words(stage.parameters), []
        for path in stage.hashes("deps"):
            makers = self.makers(path)
            named = [maker for maker in makers if words & {self._within(path, maker)}]
            found += named or makers
        return [maker for maker in dict.fromkeys(found) if maker != name]

    def _within(self, path: str, maker: str) -> str:
        """The first step below `path` to what a stage writes there; empty where it writes the path itself or more."""
        below = (
            out.removeprefix(f"{path}/") for out in self.stages[maker].hashes("outs") if out.startswith(f"{path}/")
        )
        return next(below, "").partition("/")[0]

    def whole(self, name: str) -> list[str]:
        """A stage and every stage that it rests on, the nearest first."""
        return list(self._walk(name, set()))

    def _walk(self, name: str, seen: set[str]) -> Iterator[str]:
        waiting = [name]
        while waiting:
            here = waiting.pop(0)
            if here not in seen:
                seen.add(here)
                yield here
                waiting += self.above(here)

    def weights(self, paths: str) -> tuple[str | None, str]:
        """The stage that made a model, and the MD5 of its weights.

        Args:
            paths: of a version's tag: folders, the model's own last.
        """
        path = paths.split()[-1] if paths.split() else ""
        for name in self.makers(path) if path else []:
            outs = self.stages[name].hashes("outs")
            held = [md5 for out, md5 in sorted(outs.items()) if path == out or path.startswith(f"{out}/")]
            held += [md5 for out, md5 in sorted(outs.items())
                     if out.startswith(f"{path}/") and out.endswith(".safetensors")]  # fmt: skip
            if held:
                return name, " ".join(held)
        return None, ""


def _words(value: object) -> set[str]:
    """Every key and every text in settings, cut at its slashes."""
    if isinstance(value, Mapping):
        return set().union(*(_words(key) | _words(part) for key, part in value.items()))
    if isinstance(value, list):
        return set().union(*map(_words, value))
    return set(value.split("/")) if isinstance(value, str) else set()


def _meet(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
