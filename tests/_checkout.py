"""A copy of the repository for tests that run the real tools: DVC, MLflow, git."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RECOMMEND = ("features", "backbone", "prompt", "gate_backbone", "promote_backbone", "gate", "promote")
LANGUAGE = (
    "tokenizer", "tokens", "parts", "pretrain", "gate_pretrain", "promote_pretrain", "finetune", "gate_finetune",
    "promote_finetune",
)  # fmt: skip
DISTILL = ("distill", "gate_distill", "promote_distill", "mix", "gate_mix", "promote_mix")


class Checkout:
    """A copy of the repository in which commands run as a user would type them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
        }
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def __call__(self, *words: str, fails: bool = False) -> str:
        done = subprocess.run([sys.executable, "-m", *words], cwd=self.folder, env=self.environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert (done.returncode != 0) == fails, f"{words} exit {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def repro(self, *words: str, fails: bool = False) -> list[str]:
        """Run `dvc repro`; the stages it ran, without the two that always run."""
        self.said = self("dvc", "repro", *words, fails=fails)
        return [s for s in re.findall(r"Running stage '(.+)'", self.said) if s not in ("guard", "registry")]

    def stale(self) -> set[str]:
        """The stages that DVC would run, without the two that always run."""
        return set(json.loads(self("dvc", "status", "--json").strip().splitlines()[-1])) - {"guard", "registry"}

    def params(self, change) -> None:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        change(params)
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def json(self, path: str):
        return json.loads((self.folder / path).read_text())

    def champion(self, model: str) -> int:
        code = f"import mlflow; print(mlflow.MlflowClient('sqlite:///mlruns/mlflow.db').get_model_version_by_alias('{model}', 'champion').version)"  # noqa: E501
        return int(subprocess.run([sys.executable, "-c", code], cwd=self.folder, env=self.environment, text=True,
                                  check=True, stdout=subprocess.PIPE).stdout.split()[-1])  # fmt: skip


def copied(folder: Path, change: Callable[[dict], None], without: Iterable[str]) -> Checkout:
    """A copy in `folder` that is a git repository of its own, with other settings and without some stages."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, check=True,
                            stdout=subprocess.PIPE).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith("benchmarks/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    graph = yaml.safe_load((folder / "dvc.yaml").read_text())
    for stage in without:
        del graph["stages"][stage]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False, width=4096))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    made = Checkout(folder)
    made.params(change)
    return made
