"""The house: who may import whom, every entry of params.yaml builds, the README's table is current."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from models import build, method, names, summary
from models.distill._signals import Shape
from tasks.curriculum import PARTS, read_entry, stages_of
from tasks.monitor import settings_for
from tasks.readme import fill, pages, refuse_lost_tables
from tasks.recipes import read_recipe

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "tasks", "flows")
FORBIDDEN = {  # folder -> imports that would run up the house
    "models": {"tasks", "flows", "prefect", "mlflow", "dvc", "polars", "great_expectations", "yaml", "pandas"},
    "tasks/datasets": {"torch", "models", "flows", "prefect", "mlflow", "dvc"},
    "tasks": {"flows"},
    "flows": {"models", "torch", "polars", "mlflow", "dvc", "great_expectations"},
}


def imports(file: Path) -> set[str]:
    """Full names of all modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write the whole name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_arrows_point_down(folder):
    assert files(folder), f"{folder} has no files: the test would pass on nothing"
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files(folder)
        for name in imports(file)
        if name.split(".")[0] in FORBIDDEN[folder]
    }
    assert not wrong


def test_the_import_test_can_fail(tmp_path):
    (tmp_path / "x.py").write_text("def f():\n    from mlflow.models import infer_signature\n")
    assert "mlflow" in {name.split(".")[0] for name in imports(tmp_path / "x.py")}


def families() -> list[str]:
    """`recommend`, `components.encoder`, ...: every folder below models/ that holds methods."""
    folders = [p.parent for p in (ROOT / "models").rglob("__init__.py") if p.parent != ROOT / "models"]
    return sorted(".".join(folder.relative_to(ROOT / "models").parts) for folder in folders)


def test_methods_do_not_import_each_other():
    for family in families():
        stem, methods = f"models.{family}.", set(names(family))
        for file in sorted((ROOT / "models").joinpath(*family.split(".")).glob("*.py")):
            siblings = {name for name in imports(file) if name.startswith(stem)}
            wrong = {name for name in siblings if name[len(stem) :].split(".")[0] in methods - {file.stem}}
            assert not wrong, f"{file.name} imports {wrong}; shared code moves to a _helper"


def test_families_of_models_keep_apart():
    """recommend, distill and language may use components, not each other; components use none of them."""
    kinds = {family.split(".")[0] for family in families()}
    for kind in kinds:
        wrong = {
            f"{file.relative_to(ROOT)} imports {name}"
            for file in files(f"models/{kind}")
            for name in imports(file)
            if name.startswith("models.") and name.split(".")[1] in kinds - {kind, "components"}
        }
        assert not wrong


def test_transformers_is_known_to_the_converters_only():
    knows = {file for file in files("models") if any(name.split(".")[0] == "transformers" for name in imports(file))}
    wrong = {file for file in knows if file.parent.name != "pretrained" and file.name != "_hooks.py"}
    assert not wrong


def test_mlflow_is_named_in_few_places():
    talks = {file.stem for file in files("tasks") if any(name.split(".")[0] == "mlflow" for name in imports(file))}
    assert talks <= {"track", "serve", "serve_lists", "score", "flavor", "recall"}


def test_every_entry_of_params_builds():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name in params["datasets"]:
        module = import_module(f"tasks.datasets.{name}")
        assert getattr(module, "KIND", None) or module.EVENTS
        assert callable(module.read) and module.expectations()
    for entry in params["recommenders"]["models"].values():
        kind, _, name = entry["method"].partition("/")
        assert method(f"recommend.{kind}", name) and entry["data"] in params["datasets"]
    for name, entry in params["language"]["pretrain"].items():
        assert read_recipe(entry.get("recipe", name), entry.get("size"), entry.get("overrides"))
        assert entry["data"] in params["language"]["tokens"]
    for entry in params["language"]["finetune"].values():
        assert entry["from"] in params["language"]["pretrain"] and entry["data"] in params["datasets"]
    students, shape = params["distill"], Shape(2, 8, 2, 11, 3)
    for part in PARTS:
        for name in students[part]:
            entry = read_entry(students, part, name)
            taught = [shape] * len(entry.own.get("teachers", [name]))
            assert stages_of(entry, shape, taught, students["data"].startswith("ingest/"), {})
    assert students["teacher"]["name"] in params["language"][students["teacher"]["from"]]
    backbone = params["recommend"]["backbone"]
    model = build("recommend", backbone["method"], [5, 6], 3, len(backbone["tasks"]), **backbone["settings"])
    assert model.head(**params["recommend"]["head"]["settings"])
    assert settings_for(params["monitor"])


def test_tables_are_current():
    texts = {page: page.read_text() for page in pages(ROOT)}
    assert [page.name for page, text in texts.items() if fill(text, ROOT) != text] == [], "run `python -m tasks.readme`"
    refuse_lost_tables(list(texts.values()))
    readme = texts[ROOT / "README.md"]
    assert all(f"| `{name}` | {summary('recommend', name)} |" in readme for name in names("recommend"))


def test_constraints_satisfy_pyproject():
    import tomllib

    from packaging.requirements import Requirement

    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), f"constraints.txt breaks {line}"
    assert Requirement("fastapi<0.151").specifier.contains(pins["fastapi"])  # or no flow runs
    assert Requirement("sqlalchemy<2.1").specifier.contains(pins["sqlalchemy"])  # or no schedule fires


def test_one_line_adds_exactly_its_stages():
    """The graph itself keeps the promise: what a task's stages read names no other task."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    params = [key for entry in stages["prompt"]["do"]["params"] for key in entry["params.yaml"]]
    assert "recommend.tasks.${key}" in params
    assert "recommend.tasks" not in params
    shared = [name for name, stage in stages.items() if "foreach" not in stage]
    for name in shared:
        for entry in stages[name].get("params", []):
            for key in entry["params.yaml"]:
                assert not key.startswith("recommend.tasks"), f"{name} reads {key}: a new task would re-run it"
                assert key != "recommend", f"{name} reads all of recommend: a new task would re-run it"


def test_a_student_depends_on_what_it_is_made_of():
    """DVC cannot read imports: tasks/student_parts.py lists the files, or an edit would leave old students."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    parts = {"distill": "methods", "mix": "mixes", "chain": "chains", "several": "several", "specific": "specific"}
    for name, part in parts.items():
        listed = f"artifacts/student_parts/{part}/${{key}}.json"
        assert listed in stages[name]["do"]["deps"]
        assert stages[f"parts_{name}"]["do"]["outs"] == [listed]
        assert {"models/components", "models/distill"} <= set(stages[f"parts_{name}"]["do"]["deps"])


def test_no_pickle_and_no_machine_path():
    for folder in PACKAGES:
        for file in files(folder):
            names_used = imports(file)
            assert not names_used & {"pickle", "cloudpickle", "joblib", "dill"}, file
            text = file.read_text()
            assert "torch.load(" not in text, f"{file}: weights are safetensors"
            assert "allow_pickle=True" not in text, file
            assert not re.search(r"[\"'](/home|/root|/work|/tmp)/", text), f"{file}: a path of one machine"
