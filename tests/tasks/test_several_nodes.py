"""`torchrun --nnodes 2` as docs/scale.md has it: two agents meet at one address and train what one process trains."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tasks.files import read_json, write_json
from tasks.tokenizer import make_tokenizer
from tasks.tokens import tokens

ROOT = Path(__file__).parents[2]
TRAINING = {"steps": 6, "batch": 8, "lr": 5.0e-3, "evaluate_steps": 3, "checkpoint_steps": 3, "evaluate_rows": 8}
SMALL = {"recipe": "gpt2", "size": "nano", "data": "made", "length": 32, "training": TRAINING,
         "overrides": {"encoder": {"transformer": {"layers": 1}}, "dropout": 0.0}}  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """tokens/, tokenizer/ and params.yaml: what `python -m tasks.pretrain` needs."""
    random, words = (
        np.random.default_rng(0),
        ["red", "lamp", "chair", "sold", "with", "the", "old", "of", "new", "blue"],
    )
    sentence = lambda: " ".join(random.choice(words, random.integers(3, 9)))
    for split, count in (("train", 60), ("heldout", 12)):
        (tmp_path / "ingest/rows").mkdir(parents=True, exist_ok=True)
        rows = {"sentences": [[sentence() for _ in range(4)] for _ in range(count)]}
        pl.DataFrame(rows).write_parquet(tmp_path / f"ingest/rows/{split}.parquet")
    write_json(tmp_path / "ingest/manifest.json", {"kind": "documents", "digest": "made",
                                                   "rows": {"train": 60, "heldout": 12}})  # fmt: skip
    make_tokenizer({"kind": "wordpiece", "vocabulary": 80}, [tmp_path / "ingest"], tmp_path / "tokenizer")
    tokens(tmp_path / "tokenizer", tmp_path / "ingest", tmp_path / "tokens")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"language": {"pretrain": {"small": SMALL}}}))
    return tmp_path


def started(folder: Path, out: str, *launcher: str) -> subprocess.Popen:
    words = ["tasks.pretrain", "params.yaml:language", "small", "tokens", "tokenizer", out, f"kept-{out}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ROOTSTOCK_SLOTS": "64"}
    return subprocess.Popen([sys.executable, *launcher, "-m", *words], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def test_two_agents_train_what_one_process_trains(made):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    node = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", address, "--rdzv-id", "small", "--local-addr", "127.0.0.1"]  # fmt: skip
    agents = [started(made, "two", *node) for _ in range(2)]
    try:
        said = [agent.communicate(timeout=240)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)[-6000:]
    alone = started(made, "one")
    told = alone.communicate(timeout=240)[0]
    assert alone.returncode == 0, told[-6000:]
    one, two = (load_file(made / out / "model/model.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=5e-5)  # a step moves them by 5e-3
    ends = [read_json(made / out / "metrics.json")["heldout"]["loss"] for out in ("one", "two")]
    assert ends[1] == pytest.approx(ends[0], rel=1e-5)
