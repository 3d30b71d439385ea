"""What every served model does with its bundle: compare its files with the manifest, read weights. It travels along."""

import hashlib
import json
from pathlib import Path

__all__ = ["PICKLES", "UnsafeArtifact", "check_files", "fill"]

PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


class UnsafeArtifact(ValueError):
    """A model folder holds something else than what was registered; nothing of it was loaded."""


def check_files(folder: Path) -> dict:
    """The manifest of a bundle whose files are exactly those it lists, byte by byte.

    Raises:
        UnsafeArtifact: names every file that is not.
    """
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {"manifest.json"}
    if pickles := sorted(name for name in found if Path(name).suffix.lower() in PICKLES):
        raise UnsafeArtifact(
            f"{folder} holds files that can run code when read: {', '.join(pickles)}; nothing was loaded"
        )
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        listed = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise UnsafeArtifact(f"{folder}/manifest.json cannot be read ({error!r}); nothing was loaded") from None
    faults = [f"{name} is not in the manifest" for name in sorted(found - set(listed))]
    faults += [f"{name} is missing" for name in sorted(set(listed) - found)]
    for name in sorted(found & set(listed)):
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != listed[name]:
                faults.append(f"{name} changed since it was registered")
    if faults:
        raise UnsafeArtifact(f"{folder}: {'; '.join(faults)}; nothing was loaded. Roll back, or rebuild this version")
    return manifest


def fill(module, path: Path) -> None:
    """Load weights into a torch module, for serving.

    Raises:
        UnsafeArtifact: the file holds other tensors than the module has.
    """
    from safetensors import SafetensorError  # torch comes with them: whoever only checks files starts without it
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise UnsafeArtifact(f"{path} does not hold this model's weights: {str(error)[:300]}") from None
    module.eval().requires_grad_(False)
