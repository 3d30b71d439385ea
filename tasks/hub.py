"""Files of a data set on the Hugging Face hub, at one commit: `source: hub:OWNER/NAME@COMMIT/PATH`.

PATH is a folder, a file or a pattern within the repository, and may be absent. Without a network the same files,
downloaded elsewhere, serve as an ordinary source. What a broken line leaves is kept, and the next run goes on there.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.settings import SettingsError

__all__ = ["HubError", "downloaded", "on_the_hub"]

FORM = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})(?:/(?P<path>.+))?")


class HubError(OSError):
    """The hub gave no files; why."""


def on_the_hub(source: str | Path) -> bool:
    """Whether a source is on the hub.

    >>> on_the_hub("hub:openai/gsm8k@e53f048856ff4f594e959d75785d2c2d37b678ee/main"), on_the_hub("data/hub")
    (True, False)
    """
    return str(source).startswith("hub:")


@contextmanager
def downloaded(source: str | Path, suffixes: Sequence[str], beside: Path) -> Iterator[Path]:
    """A folder with the source's files that end in one of `suffixes`; it is removed when the block ends well.

    Args:
        source: as above; a branch instead of a commit would mean other bytes tomorrow.
        suffixes: of the files to download.
        beside: the folder for partial downloads.

    Raises:
        SettingsError: the source is not of that form.
        HubError: the hub cannot be reached, or has no such files.
    """
    from huggingface_hub import snapshot_download

    if not (found := FORM.fullmatch(str(source))):
        raise SettingsError(f"source {source} is not hub:OWNER/NAME@COMMIT/PATH, where COMMIT has 40 hex digits: the "
                            "data set's page shows it under Files, History")  # fmt: skip
    name, commit, path = found["name"], found["commit"], (found["path"] or "").rstrip("/")
    staging = beside / f".staging-{name.replace('/', '-')}-{commit[:12]}"
    wanted = [path] if path.endswith(tuple(suffixes)) else [f"{path}/*{s}" if path else f"*{s}" for s in suffixes]
    try:
        snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=wanted, local_dir=staging)
    except OSError as error:  # what the hub's client raises offline, for unknown names and for broken transfers
        raise HubError(f"could not download {name} at {commit}: {type(error).__name__}: {error}\nWhat came is kept in "
                       f"{staging}. Run this again where the hub can be reached, or download the files elsewhere and "
                       "give their folder as `source`") from error  # fmt: skip
    shutil.rmtree(staging / ".cache", ignore_errors=True)  # the client's notes
    if not any(file.is_file() for file in staging.rglob("*")):
        raise HubError(f"{name} at {commit} has no {' or '.join(wanted)}")
    yield staging
    shutil.rmtree(staging)
