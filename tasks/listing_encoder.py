"""Always runs: which encoder reads the listings' titles now? A moved alias brings another folder, and so a retraining.

    encoder.json    SHA-256 of the encoder's files (null: none is asked for), and what is read of it; later stages
                    depend on this file, so they are stale exactly when the bytes behind an address are others
    model/          the encoder's files, in the transformers layout
    source.json     the address that was asked for, and the registered version behind it; nothing depends on it

`recommend.backbone.text` is null, `models:/listing-encoder@champion`, `models:/<name>/<version>`, or a folder that
transformers loads. Training never waits for a registry: one that does not answer, or that has lost the model, leaves
the folder as it was, with a warning.
"""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks.command import run
from tasks.files import digest, new_folder, read_if_there, write_json
from tasks.settings import SettingsError, read

__all__ = ["Asked", "listing_encoder"]


@dataclass(frozen=True)
class Asked:
    """What `recommend.backbone.text` says.

    Attributes:
        encoder: an address of the registry, or a folder.
        columns: of the rows, joined to a listing's text.
        width: numbers that the backbone reads of it, at most.
    """

    encoder: str
    columns: tuple[str, ...] = ("name",)
    width: int = 32

    @classmethod
    def read(cls, chosen: str | Mapping | None) -> "Asked | None":
        """Check the setting; a plain address stands for `{encoder: address}`, null for none.

        Raises:
            SettingsError: names every fault.
        """
        if chosen is None:
            return None
        told = {"encoder": chosen} if isinstance(chosen, str) else chosen
        if not isinstance(told, Mapping):
            raise SettingsError(f"recommend.backbone.text is {chosen!r}; write null, an address such as "
                                f"models:/listing-encoder@champion, or {{encoder: address}}")  # fmt: skip
        known = list(cls.__dataclass_fields__)
        faults = [f"there is no {key!r}; it has {', '.join(known)}" for key in told if key not in known]
        encoder, columns, width = (told.get(key, getattr(cls, key, None)) for key in known)
        if not isinstance(encoder, str) or not encoder:
            faults.append(f"encoder is {encoder!r}; write models:/listing-encoder@champion or a folder")
        if not isinstance(columns, (list, tuple)) or not columns or not all(isinstance(c, str) for c in columns):
            faults.append(f"columns is {columns!r}; write a list of names, such as [name, brand_name]")
        if type(width) is not int or width < 1:
            faults.append(f"width is {width!r}; it must be 1 or more")
        if faults:
            raise SettingsError(f"recommend.backbone.text: {'; '.join(faults)}")
        return cls(encoder, tuple(columns), width)


def listing_encoder(chosen: str | Mapping | None, out: Path) -> dict:
    """Bring the folder `out` up to date, and return its encoder.json.

    Raises:
        SettingsError: the setting cannot be applied, or there is neither such an encoder nor one from before.
        PoisonedFolder: its files could run code when read.
    """
    asked = Asked.read(chosen)
    if asked is None:
        return _keep_or_write(out, {"content": None}, {"address": None}, None)
    kept, before = read_if_there(out / "source.json"), read_if_there(out / "encoder.json")
    facts = {"columns": list(asked.columns), "width": asked.width}
    try:
        with TemporaryDirectory() as place:
            content, source, bring = _find(asked.encoder, Path(place), before.get("content") if _whole(out) else None)
            source["address"] = asked.encoder
            return _keep_or_write(out, {"content": content, **facts}, source, bring)
    except _Unanswered as error:
        if kept.get("address") != asked.encoder or not _whole(out):
            raise SettingsError(f"recommend.backbone.text: {error}; nothing was fetched from there before") from None
        print(f"warning: {error}; the encoder fetched from there before ({before['content'][:12]}) stays",
              file=sys.stderr)  # fmt: skip
        return _keep_or_write(out, {"content": before["content"], **facts}, kept, None)


class _Unanswered(Exception):
    """What an address names cannot be known, or is gone."""


def _find(address: str, place: Path, have: str | None) -> tuple[str, dict, Callable[[Path], object] | None]:
    """The content behind an address, its source, and what fills a folder with it; None where `have` is that content."""
    from tasks import flavor

    if not address.startswith("models:/"):
        folder = Path(address)
        if not (folder / "config.json").is_file():
            raise _Unanswered(f"{folder} is no folder with a config.json of transformers")
        flavor.check_folder(folder)
        content = flavor.content(folder)
        return content, {"version": None}, None if content == have else lambda out: shutil.copytree(folder, out)
    from tasks import track

    try:
        version = track.resolve(address)
        content = version.tags.get("content_sha256")
        if content is not None and content == have:
            return content, {"version": version.uri}, None
        files = track.model_files(version, place / "version") / "model"
    except (track.RegistryError, OSError) as error:
        raise _Unanswered(str(error)) from None
    if not (files / "config.json").is_file():
        raise SettingsError(f"recommend.backbone.text: {version.uri} is no language model; register one by a line "
                            f"below `listing_encoders`, or name a folder")  # fmt: skip
    flavor.check_folder(files)
    if flavor.content(files) != content:
        raise SettingsError(f"{version.uri}: its files are not those that were registered; nothing was taken from it")
    return content, {"version": version.uri}, lambda out: shutil.copytree(files, out)


def _whole(out: Path) -> bool:
    """Whether the folder holds an encoder's files as they were fetched."""
    content = read_if_there(out / "encoder.json").get("content")
    return content is not None and (out / "model").is_dir() and digest(out / "model") == content


def _keep_or_write(out: Path, about: dict, source: dict, bring: Callable[[Path], object] | None) -> dict:
    """Write what differs; the model's files only when `bring` brings others."""
    if about["content"] is None or bring:
        if read_if_there(out / "encoder.json") != about or bring:
            with new_folder(out) as folder:
                if bring:
                    bring(folder / "model")
                write_json(folder / "encoder.json", about)
                write_json(folder / "source.json", source)
        return about
    for file, told in (("encoder.json", about), ("source.json", source)):
        if read_if_there(out / file) != told:
            write_json(out / file, told)
    return about


def main(address: str, out: str) -> None:
    """python -m tasks.listing_encoder params.yaml:recommend.backbone OUT"""
    about = listing_encoder(read(address).get("text"), Path(out))
    if about["content"]:
        print(f"{out}: {about['content'][:12]} reads {', '.join(about['columns'])}")


if __name__ == "__main__":
    run(main)
