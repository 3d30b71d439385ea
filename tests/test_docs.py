"""The documentation: what it tells to type exists, its links lead somewhere, the reference follows the code."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from _pages import blocks, commands

from tasks.reference import commands_page, method_page, reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "reference" not in path.parts)]
TYPED = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]
OTHERS = (
    ".",
    "cd",
    "git",
    "pip",
    "curl",
    "docker",
    "kubectl",
    "export",
    "psql",
    "createdb",
    "apt-get",
    "mlflow",
    "prefect",
)


def stages() -> dict[str, bool]:
    """Stage of dvc.yaml -> whether it has one of each name."""
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: "foreach" in stage or "matrix" in stage for name, stage in listed.items()}


def test_there_are_commands_to_check():
    assert len(TYPED) > 30 and {"python", "dvc", "make"} <= {line.split()[0] for _, line in TYPED}


@pytest.mark.parametrize(("page", "line"), TYPED, ids=[f"{page}: {line}"[:80] for page, line in TYPED])
def test_what_is_typed_exists(page, line):
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if not words:
        return
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    words[0] = words[0].removeprefix(".venv/bin/")
    if words[0] == "python" and "-m" in words:
        module = words[words.index("-m") + 1]
        assert find_spec(module), f"{page}: no module {module}"
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"{page}: no file {words[1]}"
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words[1:] if word not in targets] == [], page
    elif words[:2] == ["dvc", "repro"]:
        known = stages()
        for word in (word for word in words[2:] if word[0] != "-"):
            name, at, _ = word.partition("@")
            assert name in known and (known[name] or not at), f"{page}: no stage {word}"
    elif words[0] == "dvc":
        said = subprocess.run([sys.executable, "-m", "dvc", words[1], "--help"], capture_output=True, check=False)
        assert said.returncode == 0, f"{page}: dvc has no {words[1]}"
    else:
        assert words[0] in OTHERS, f"{page}: who is {words[0]}?"


def test_every_yaml_block_is_yaml():
    for page in PAGES:
        for kind, text in blocks(page):
            if kind == "yaml":
                assert yaml.safe_load(text) is not None, page


def test_links_lead_somewhere(tmp_path):
    """mkdocs, strict: a page or a heading that is not there is an error."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("reference"))
    reference(ROOT, tmp_path / "docs" / "reference")
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    built = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site/reference/recommend/mpt_rec.html").is_file()


def test_a_method_s_page():
    text, said = method_page(ROOT / "models/recommend/mmoe.py", ROOT)
    assert said.startswith("MMoE: every task mixes")
    assert "```text\nz_t = sum_i" in text and "doi:10.1145/3219819.3220007" in text
    assert "experts: int=8" in text and "- `experts`: how many." in text and "File: `models/recommend/mmoe.py`." in text


def test_the_page_of_commands():
    text = commands_page(ROOT)
    assert "- `python -m tasks.prune" in text and "- `python -m flows.watch" in text and "tasks.files" not in text


def test_every_method_has_a_page(tmp_path):
    counts = reference(ROOT, tmp_path / "out")
    assert sum(number for family, number in counts.items() if family.startswith("distill")) >= 25
    assert sum(counts.values()) == len(list((tmp_path / "out").rglob("*.md"))) - 2
    index = (tmp_path / "out/index.md").read_text()
    assert all((tmp_path / "out" / link).is_file() for link in re.findall(r"\]\((\S+)\)", index))
