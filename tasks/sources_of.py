"""Which data sets an entry of params.yaml reads, and what they are now: DVC takes no list of files from params.

    python -m tasks.sources_of params.yaml:language.continued.NAME artifacts/ingest OUT.json

DVC runs this moment-long unit after any data set changed; where none of the entry's own has, the note comes out as it
was, and nothing after it runs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tasks.command import run
from tasks.files import digest, write_json
from tasks.settings import SettingsError, read

__all__ = ["sources_of"]


def sources_of(entry: Mapping, ingest: str | Path, out: str | Path) -> dict[str, str]:
    """Write {data set: SHA-256 of its ingested files} of every `data:` in an entry, however deep it stands.

    Args:
        entry: of params.yaml; a `data` is a name or a list of names.
        ingest: folder of all ingested data sets.

    Raises:
        SettingsError: the entry reads no data set, or one that is not ingested; names what there is.
    """
    names, ingest = sorted(set(_named(entry))), Path(ingest)
    if not names:
        raise SettingsError("the entry names no data set; each of its sources has one below `data`")
    if lost := [name for name in names if not (ingest / name / "manifest.json").is_file()]:
        there = ", ".join(sorted(path.parent.name for path in ingest.glob("*/manifest.json"))) or "none"
        raise SettingsError(f"{', '.join(lost)}: no such data set in {ingest}; there are {there}. A data set is a line "
                            f"below `datasets`")  # fmt: skip
    found = {name: digest(ingest / name) for name in names}
    write_json(out, found)
    return found


def _named(entry) -> Iterator[str]:
    for key, value in entry.items():
        if key == "data":
            yield from [value] if isinstance(value, str) else value
        elif isinstance(value, Mapping):
            yield from _named(value)


def main(address: str, ingest: str, out: str) -> None:
    """python -m tasks.sources_of params.yaml:language.continued.NAME INGEST OUT.json"""
    print(f"{address}: reads {', '.join(sources_of(read(address), ingest, out))}")


if __name__ == "__main__":
    run(main)
