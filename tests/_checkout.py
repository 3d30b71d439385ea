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
ALWAYS = ("guard", "registry", "listing_encoder")
RECOMMEND = (
    "features", "vectors", "backbone", "prompt", "gate_backbone", "promote_backbone", "gate", "promote",
    "gate_listings", "promote_listings", "made_of_click", "click", "gate_click", "promote_click",
)  # fmt: skip
ITEMS = (
    "made_of", "recommender", "gate_recommender", "promote_recommender", "item_index", "rerank", "release", "bandit",
)  # fmt: skip
LANGUAGE = (
    "tokenizer", "tokens", "parts", "pretrain", "gate_pretrain", "promote_pretrain", "finetune", "gate_finetune",
    "promote_finetune",
)  # fmt: skip
WRITING = (
    "base", "near", "vocabulary_of", "vocabulary", "continued_of", "continued", "evaluation_of", "evaluate_continued",
    "pages_continued", "gate_continued", "promote_continued", "authored", "instructed", "evaluate_instructed",
    "pages_instructed", "gate_instructed", "promote_instructed", "generated", "judged",
)  # fmt: skip
DISTILL = (
    "lent", *(f"{step}{kind}" for kind in ("distill", "mix", "chain", "several")
              for step in ("parts_", "", "gate_", "promote_")),
    "distill_tasks", "distill_of_tasks", "gate_tasks", "promote_tasks", "generate_reading", "generate_examples",
    "generate_reasons", "distill_relevance", "distill_languages",
    *(f"{step}_{kind}" for kind in ("relevance", "languages") for step in ("gate", "promote")),
)  # fmt: skip


class Checkout:
    """A copy of the repository in which commands run as a user would type them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
            "ROOTSTOCK_SLOTS": "64",  # a test waits for nobody who trains on this host
        }
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def __call__(self, *words: str, fails: bool = False) -> str:
        done = subprocess.run([sys.executable, "-m", *words], cwd=self.folder, env=self.environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert (done.returncode != 0) == fails, f"{words} exit {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def repro(self, *words: str, fails: bool = False) -> list[str]:
        """Run `dvc repro`; the stages it ran, without those that always run."""
        self.said = self("dvc", "repro", *words, fails=fails)
        return [s for s in re.findall(r"Running stage '(.+)'", self.said) if s not in ALWAYS]

    def stale(self) -> set[str]:
        """The stages that DVC would run, without those that always run."""
        return set(json.loads(self("dvc", "status", "--json").strip().splitlines()[-1])) - {*ALWAYS}

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
