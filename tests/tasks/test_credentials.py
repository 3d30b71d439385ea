"""Secrets are named, not written down; what a run writes and prints never holds one."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import polars as pl
import pytest
import yaml

from tasks.credentials import secret, without
from tasks.settings import SettingsError
from tasks.writers._writer import Prompt, WriterRefused, open_writer, write_all

ROOT = Path(__file__).parents[2]
CANARY = "canary-7f3a-swordfish"


def test_a_name_of_the_environment(monkeypatch):
    monkeypatch.setenv("A_KEY", CANARY)
    assert secret("A_KEY") == secret("env:A_KEY") == CANARY
    monkeypatch.setenv("A_KEY", "")
    assert secret("A_KEY") is secret("NO_SUCH_KEY") is None


@pytest.mark.parametrize(
    "given", ["sk-" + CANARY, "env:sk-" + CANARY, "block:Not A Name", "vault:key", "", "block:", "a b"]
)
def test_what_is_no_name_is_not_repeated(given):
    with pytest.raises(SettingsError, match="It is not shown here") as refused:
        secret(given)
    assert CANARY not in str(refused.value) and "Not A Name" not in str(refused.value)


def test_a_secret_block(monkeypatch):
    from prefect.blocks.system import Secret

    kept = {"openai-key": Secret(value=CANARY)}

    def load(name, **_):
        if name not in kept:
            raise ValueError(f"Unable to find block document named {name}")
        return kept[name]

    monkeypatch.setattr(Secret, "load", load)
    assert secret("block:openai-key") == CANARY
    with pytest.raises(SettingsError, match="no Secret block 'other'"):
        secret("block:other")
    assert CANARY not in repr(kept) and CANARY not in str(kept["openai-key"])


def test_what_others_repeat(monkeypatch):
    assert without(f"Incorrect key {CANARY}, {CANARY}!", CANARY, None, "") == "Incorrect key ***, ***!"


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was given, as some providers do; 401, or nonsense, by the path."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        said = f"Incorrect API key provided: {self.headers.get('Authorization')}".encode()
        if self.path.startswith("/good"):
            said = json.dumps({"choices": [{"message": {"content": "a red bike"}}]}).encode()
        self.send_response(401 if self.path.startswith("/no") else 200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = HTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize("path", ["/no/v1", "/odd/v1"])
def test_a_server_that_repeats_the_key(server, monkeypatch, path, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_KEY", CANARY)
    writer = open_writer({"endpoint": {"address": server + path, "model": "m", "licence": "CC0-1.0",
                                       "key_variable": "A_KEY", "tries": 1}})  # fmt: skip
    with pytest.raises(WriterRefused, match=r"Bearer \*\*\*") as refused:
        write_all(writer, [Prompt("row 0", "Sell it.", {})], "v1", tmp_path / "written.jsonl")
    assert CANARY not in str(refused.value)
    assert not found_in(tmp_path)


def test_an_address_with_a_password_is_refused():
    with pytest.raises(SettingsError, match="carries a password") as refused:
        open_writer(
            {"endpoint": {"address": f"https://me:{CANARY}@example.org/v1", "model": "m", "licence": "CC0-1.0"}}
        )
    assert CANARY not in str(refused.value)


def found_in(folder: Path) -> list[Path]:
    """Files that hold the canary, plain or in base64."""
    import base64

    forms = [CANARY.encode(), *(base64.b64encode((pad + CANARY).encode())[4:-4] for pad in ("", "x", "xx"))]
    return [path for path in folder.rglob("*") if path.is_file() and any(form in path.read_bytes() for form in forms)]


def test_the_search_finds_one(tmp_path):
    assert found_in(tmp_path) == []
    (tmp_path / "log").write_text(f"Authorization: Bearer {CANARY}\n")
    assert found_in(tmp_path) == [tmp_path / "log"]


def command(folder: Path, *words: str, **more: str) -> str:
    """What a command printed; it may fail."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ROOTSTOCK_SLOTS": "16"} | more
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    return done.stdout


def test_a_run_with_a_key_leaves_no_trace_of_it(server, tmp_path):
    """A teacher behind an address writes a data set's readings; the key is in nothing that was written or printed."""
    rows = {"text": [f"A red bike number {n}, in good shape, with a lamp." for n in range(6)], "label": [0, 1] * 3}
    (tmp_path / "ingest/rows").mkdir(parents=True)
    for split in ("train", "dev"):
        pl.DataFrame(rows).write_parquet(tmp_path / f"ingest/rows/{split}.parquet")
    for path, where in {"/good/v1": "good", "/no/v1": "no"}.items():
        writer = {"endpoint": {"address": server + path, "model": "m", "licence": "CC0-1.0", "key_variable": "A_KEY"}}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"writer": writer}))
        program = (
            "from tasks.command import run; from tasks.settings import read\n"
            "from tasks.writers._writer import Prompt, open_writer, write_all\n"
            "run(lambda: write_all(open_writer(read('params.yaml:writer')), [Prompt('a', 'Sell it.', {})], 'v1', "
            f"'{where}.jsonl'))"
        )
        (tmp_path / f"{where}.py").write_text(program)
        said = command(
            tmp_path, where, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}", A_KEY=CANARY, ROOTSTOCK_TRACEBACK="1"
        )
        assert CANARY not in said
    assert json.loads((tmp_path / "good.jsonl").read_text())["text"] == "a red bike"
    assert "***" in said and found_in(tmp_path) == []


ADDRESSES = (
    f"http://me:{CANARY}@127.0.0.1:9",
    f"http://me:p@ss-{CANARY}@127.0.0.1:9",
)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("words", [
    ("tasks.registry", "out.json"),
    ("tasks.rollback", "recommend-offer_make"),
    ("tasks.score", "models:/recommend-offer_make@champion", "rows.parquet", "out.parquet"),
])  # fmt: skip
def test_the_password_of_a_registry_is_in_no_message(tmp_path, words, address):
    more = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    said = command(tmp_path, *words, MLFLOW_TRACKING_URI=address, **more)
    assert "127.0.0.1:9" in said
    assert CANARY not in said
    assert found_in(tmp_path) == []


def test_addresses_are_shown_without_passwords(monkeypatch):
    from tasks import track

    for address, shown in {
        f"postgresql://me:{CANARY}@db.example.org/mlflow": "postgresql://db.example.org/mlflow",
        f"http://me:p@ss:{CANARY}@127.0.0.1:9": "http://127.0.0.1:9",
        "sqlite:///mlruns/mlflow.db": "sqlite:///mlruns/mlflow.db",
    }.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert track.shown() == shown


def test_what_mlflow_is_told_holds_no_secret_of_the_environment(registry, tmp_path, monkeypatch):
    """Everything that a logged run left behind: database, artefacts, params, tags."""
    from tasks import track

    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD",
                 "PREFECT_API_AUTH_STRING", "MLFLOW_AUTH_ADMIN_PASSWORD"):  # fmt: skip
        monkeypatch.setenv(name, CANARY)
    (tmp_path / "params.yaml").write_text("writer: {endpoint: {key_variable: OPENAI_API_KEY}}\n")
    run = track.log_run("x", params={"writer": {"endpoint": {"key_variable": "OPENAI_API_KEY"}}}, metrics={"auc": 0.5},
                        files={"rebuild/params.yaml": tmp_path / "params.yaml"})  # fmt: skip
    assert track.run_data(run)[0] == {"writer.endpoint.key_variable": "OPENAI_API_KEY"}
    assert found_in(registry.parent) == [] and found_in(tmp_path) == []
