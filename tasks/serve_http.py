"""`make serve`: a registered version over HTTP, on this machine only, after its files were compared with the registry.

    python -m tasks.serve_http recommend-offer_make          POST http://127.0.0.1:5001/invocations
    python -m tasks.serve_http models:/recommend-offer_make/3

MLflow's scoring server has no password of its own, so it listens to nobody else. Other machines reach it through a
proxy that asks for one (nginx, Caddy, Traefik: TLS, basic auth or your single sign-on) and passes to this address.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks import flavor, score, track
from tasks.command import run
from tasks.hosts import HostRefused, host, port, this_machine

__all__ = ["checked", "serve"]


def serve(model: str) -> int:
    """Serve a version until it is stopped; the server's exit status.

    Raises:
        HostRefused: ROOTSTOCK_HOST is not this machine.
        ChangedVersion, PoisonedFolder: its files are not the registered ones, or could run code; nothing was loaded.
        RegistryError: there is no such version.
    """
    address, number = host(), port(5001)
    if not this_machine(address):
        raise HostRefused(
            f"MLflow's scoring server has no password, so it does not listen on {address}; nothing was started. Unset "
            f"ROOTSTOCK_HOST, and put a proxy with TLS and a password before http://127.0.0.1:{number}"
        )
    uri = model if model.startswith("models:/") else f"models:/{model}@champion"
    with TemporaryDirectory() as place:
        files = checked(uri, Path(place))
        print(f"{uri}: its files are the registered ones; serving at http://{address}:{number}/invocations", flush=True)
        words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(files), "--env-manager", "local",
                 "--host", address, "--port", str(number)]  # fmt: skip
        with subprocess.Popen(words, env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:
                return process.wait()  # it had the same signal


def checked(uri: str, folder: Path) -> Path:
    """A copy of a version's files below `folder`, compared with the registry; nothing of it was run.

    Raises:
        ChangedVersion, PoisonedFolder, RegistryError: see `serve`.
    """
    version = track.resolve(uri)
    files, expected = track.model_files(version, folder), version.tags.get("content_sha256")
    if not (files / "model").is_dir():
        score.check(files, expected, uri)
    elif flavor.content(files / "model") != expected:
        raise score.ChangedVersion(f"{uri}: its model/ is not the registered one; nothing was loaded")
    else:
        flavor.check_version(files)
    return files


def main(model: str) -> None:
    """python -m tasks.serve_http MODEL"""
    sys.exit(serve(model))


if __name__ == "__main__":
    run(main)
