"""A copy of the repository for tests that run the real tools: DVC, MLflow, git."""

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
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
    "lent", *(f"{step}{kind}" for kind in ("distill", "mix", "chain", "several", "specific")
              for step in ("parts_", "", "gate_", "promote_")),
    "distill_tasks", "distill_of_tasks", "gate_tasks", "promote_tasks", "generate_reading", "generate_examples",
    "generate_reasons", "distill_relevance", "distill_languages",
    *(f"{step}_{kind}" for kind in ("relevance", "languages") for step in ("gate", "promote")),
)  # fmt: skip


class Checkout:
    """A copy of the repository in which commands run as a user would type them.

    Args:
        python: runs them; `tests/_warm.py` has a quicker one, for tests that ask nothing about processes.
    """

    def __init__(self, folder: Path, python: str = sys.executable):
        self.folder, self.python = folder, python
        self.environment = os.environ | {
            "PATH": os.pathsep.join([os.path.dirname(python), os.path.dirname(sys.executable), os.environ["PATH"]]),
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
            "ROOTSTOCK_SLOTS": "64",  # a test waits for nobody who trains on this host
        }
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def __call__(self, *words: str, fails: bool = False) -> str:
        done = self.run("-m", *words, stderr=subprocess.STDOUT)
        assert (done.returncode != 0) == fails, f"{words} exit {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def plain(self) -> "Checkout":
        """The same, run by Python itself."""
        return Checkout(self.folder)

    def run(self, *words: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess:
        """Call Python here."""
        environment = dict(self.environment)
        if self.python != sys.executable and words[:2] == ("-m", "dvc"):
            environment["ROOTSTOCK_RUN"] = f"dvc-{uuid.uuid4().hex}"  # the journal finds no DVC above a forked process
        return subprocess.run([self.python, *words], cwd=self.folder, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=stderr, check=False)  # fmt: skip

    def told(self, code: str, alone: bool = False):
        """What a program prints as its last line, from JSON; `alone`: it cannot import what lies in the checkout."""
        done = self.run(*["-P"] * alone, "-c", code)
        assert not done.returncode, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

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

    def tags(self, model: str) -> dict[str, str]:
        """Those of a model's champion, as the product reads them."""
        asked = f"track.by_alias('{model}', 'champion').tags"
        return self.told(f"import json; from tasks import track; print(json.dumps({asked}))")

    def champion(self, model: str) -> int:
        client = "mlflow.MlflowClient('sqlite:///mlruns/mlflow.db')"
        code = f"import mlflow; print({client}.get_model_version_by_alias('{model}', 'champion').version)"
        return int(self.told(code))


def copied(
    folder: Path, change: Callable[[dict], None], without: Iterable[str], python: str = sys.executable
) -> Checkout:
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
    made = Checkout(folder, python)
    made.params(change)
    return made
