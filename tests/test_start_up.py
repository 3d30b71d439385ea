"""A command says how it is called at once; what takes seconds to import is imported where it is needed."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("dvc", "faiss", "great_expectations", "implicit", "matplotlib", "mlflow", "pandas", "prefect", "sacrebleu",
         "scipy", "sklearn", "torch", "transformers")  # fmt: skip
TRAIN = {
    "bandit", "continue_pretraining", "distill", "distill_languages", "distill_relevance", "distill_tasks",
    "finetune", "merrec_benchmark", "pretrain", "recommender", "release", "rerank", "train", "tune_prompt",
}  # fmt: skip
OPEN_A_MODEL = {
    "estimate",  # puts a model together without memory
    "extend_vocabulary",
    "gate",
    "gate_listings",
    "gate_recommender",
    "generate",
    "generate_examples",
    "generate_reasons",
    "item_index",
    "key_study",
    "keys_page",
    "on_topic",
    "reason",
    "samples_page",
    "student_parts",  # asks the methods' classes what they need
    "teacher_cache",
    "vectors",
}
PROBE = """
import sys
from importlib import import_module
from importlib.util import spec_from_loader

class Refuse:  # an import, but no question whether the library is there
    def find_spec(self, name, path=None, target=None):
        return spec_from_loader(name, self) if name in sys.argv[1].split() else None

    def create_module(self, spec):
        raise ImportError("heavy", name=spec.name)

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Refuse())
for name in sys.argv[2:]:
    try:
        import_module(f"tasks.{name}")
    except ImportError as error:
        if error.msg != "heavy":
            raise
        print(name, error.name)
"""


def commands() -> list[str]:
    """Every file of tasks/ whose last lines give its main function to `tasks.command.run`."""
    texts = {path.stem: path.read_text() for path in (ROOT / "tasks").glob("*.py")}
    ends = {name: ast.unparse(ast.parse(text).body[-1]) for name, text in texts.items() if "tasks.command" in text}
    return sorted(name for name, end in ends.items() if end.startswith("if __name__ == '__main__':"))


def called(*words: str, flags: tuple[str, ...] = (), folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *flags, "-m", *words], cwd=folder, text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)  # fmt: skip


def test_what_neither_trains_nor_opens_a_model_imports_nothing_heavy():
    told = subprocess.run([sys.executable, "-c", PROBE, " ".join(HEAVY), *commands()], cwd=ROOT, text=True,
                          capture_output=True, check=True).stdout  # fmt: skip
    heavy = dict(line.split() for line in told.splitlines())
    assert {name: library for name, library in heavy.items() if name not in TRAIN | OPEN_A_MODEL} == {}
    assert (TRAIN | OPEN_A_MODEL) - heavy.keys() == set(), "these import nothing heavy now: they are no exceptions"


@pytest.mark.parametrize("name", commands())
def test_help_comes_before_the_imports(name, tmp_path):
    done = called(f"tasks.{name}", "--help", flags=("-X", "importtime"), folder=tmp_path)
    assert done.returncode == 0 and f"python -m tasks.{name}" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "tasks" in imported and not imported & set(HEAVY)
    assert not list(tmp_path.iterdir())


def test_a_call_with_too_few_or_too_many_words_is_refused_with_the_right_one():
    few, many = called("tasks.made_of", "a.py"), called("tasks.made_of", "a.py", "b.json", "c")
    assert few.returncode == many.returncode == 1
    assert few.stderr == "error: tasks.made_of was given a.py; type python -m tasks.made_of " \
                         "models/recommend/retrieval/als.py OUT.json\n"  # fmt: skip
    assert "was given a.py b.json c; type" in many.stderr
    none = called("tasks.gate", flags=("-X", "importtime")).stderr
    assert none.endswith("[HEAD]\n") and "was given no words; type python -m tasks.gate" in none
    assert "tasks.journal" in none and "torch" not in none


def test_words_that_may_be_many_are_all_taken():
    assert "was given" not in called("tasks.monitor", "nowhere.yaml:monitor", "x", "y", "z", "a", "b", "c").stderr
    assert "supply_chain vulnerabilities" in called("tasks.supply_chain", "vulnerabilities", "--help").stdout
