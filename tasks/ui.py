"""`make ui`: the MLflow pages on this machine; on a network only behind a password.

    python -m tasks.ui                                  http://127.0.0.1:5000 (PORT says another port)
    ROOTSTOCK_HOST=0.0.0.0 python -m tasks.ui           needs MLFLOW_AUTH_ADMIN_PASSWORD in the environment

With a password, on any address, MLflow's `basic-auth` asks for it; the user is MLFLOW_AUTH_ADMIN_USERNAME, or admin.
Clients set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. The password is on no command line and in no file:
mlruns/auth.db holds a salted hash of it. It travels unencrypted; on a network put a proxy that speaks TLS before it.
"""

import os
import secrets
import sqlite3
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from tasks.command import run
from tasks.files import write_text
from tasks.hosts import HostRefused, host, password, port

__all__ = ["server", "ui"]

FOLDER = Path("mlruns")
STORE = f"sqlite:///{FOLDER}/mlflow.db"
PASSWORD, USER = "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_AUTH_ADMIN_USERNAME"
OPENINGS = {  # variables that switch a check of MLflow's security middleware off -> the values that do
    "MLFLOW_SERVER_ALLOWED_HOSTS": ("*",),
    "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ("*",),
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": ("true", "1"),
}


def ui() -> None:
    """Become the server; it ends with Ctrl-C.

    Raises:
        HostRefused: see `server`.
    """
    words, environment = server()
    print(f"MLflow: http://{host()}:{port(5000)}{', behind a password' if PASSWORD in environment else ''}", flush=True)
    os.execve(words[0], words, environment)


def server() -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of the server.

    The environment carries what may hold a secret, such as the address of a PostgreSQL database: any user of a
    machine can read its command lines.

    Raises:
        HostRefused: other machines could reach it without a password, or a check is switched off; the password is not
            that of mlruns/auth.db; its library is missing.
    """
    _refuse_openings()
    address, number = host(), port(5000)
    store = os.environ.get("MLFLOW_TRACKING_URI") or STORE
    if store.startswith(("http://", "https://")):
        raise HostRefused("MLFLOW_TRACKING_URI names a server already: open that one, or unset it to see this checkout")
    given = password(PASSWORD, address, "the MLflow server")
    words = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", address, "--port", str(number)]
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_ARTIFACTS_DESTINATION": str(FOLDER / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a dozen processes for jobs that nothing here submits
    }
    if names := _names(address, number):
        environment.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", names)
    if not given:
        return words, environment
    return [*words, "--app-name", "basic-auth"], environment | _behind_password(given)


def _refuse_openings() -> None:
    for name, values in OPENINGS.items():
        if any(part.strip().lower() in values for part in os.environ.get(name, "").split(",")):
            raise HostRefused(f"{name}={os.environ[name]} switches a check of MLflow's off: any page in a browser "
                              f"could then reach the server. Unset it, or name hosts and origins")  # fmt: skip


def _names(address: str, number: int) -> str:
    """Host headers that are answered; "" for 0.0.0.0 and ::, where MLflow's own hold: this machine, private ranges."""
    if address.strip("[]") in ("0.0.0.0", "::"):
        return ""
    known = {"127.0.0.1", "localhost", "[::1]", address}
    return ",".join(sorted(known | {f"{name}:{number}" for name in known}))


def _behind_password(given: str) -> Mapping[str, str]:
    """What MLflow's basic-auth reads."""
    if not find_spec("flask_wtf"):
        raise HostRefused("MLflow's password needs Flask-WTF, which is not installed: pip install -r constraints.txt")
    user, users = os.environ.get(USER) or "admin", FOLDER / "auth.db"
    _refuse_another(users, user, given)
    settings = write_text(
        FOLDER / "auth.ini",
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{users}\nadmin_username = {user}\n",
    )
    return {
        USER: user,
        "MLFLOW_AUTH_CONFIG_PATH": str(settings.resolve()),
        # against forged forms; one server needs no key that outlives it
        "MLFLOW_FLASK_SERVER_SECRET_KEY": os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32),
    }


def _refuse_another(users: Path, user: str, given: str) -> None:
    """MLflow keeps the first password it was started with and says nothing of another one."""
    from werkzeug.security import check_password_hash

    if not users.is_file():
        return
    connection = sqlite3.connect(f"file:{users}?mode=ro", uri=True)
    try:
        found = connection.execute("select password_hash from users where username = ?", (user,)).fetchone()
    except sqlite3.OperationalError:  # an empty file: its creation was killed
        found = None
    finally:
        connection.close()
    if found and not check_password_hash(found[0], given):
        raise HostRefused(f"{users} knows another password for {user} than {PASSWORD} gives; give the old one and "
                          f"change it in MLflow, or delete the file, and with it the users made there")  # fmt: skip


def main() -> None:
    """python -m tasks.ui"""
    ui()


if __name__ == "__main__":
    run(main)
