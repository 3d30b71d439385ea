"""The table on paper: what fits where, and what is asked wrongly."""

import pytest

from tasks.estimate import PAPER, Question, answer, main
from tasks.files import write_json
from tasks.recipes import read_recipe
from tasks.settings import SettingsError

NANO = {"recipe": "bert", "size": "nano"}


def lines(table: str, placed: str) -> list[list[str]]:
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return [cells for cells in found if cells[0] == placed]


def test_a_hundred_billion_on_paper():
    """201 GB of teacher fit on no device; among eight each holds 25.1 less what is whole, and the cache holds none."""
    table = answer(PAPER)
    assert "Teacher 100,439,664,640 parameters, student 6,939,701,248" in table
    whole, shared, away = (lines(table, placed) for placed in ("device", "fsdp", "cache"))
    assert {cells[7] for cells in whole} == {"no"} and min(float(cells[2]) for cells in whole) > 200.8
    assert {cells[7] for cells in shared} == {"yes"}
    assert 100.4 * 2 / 8 < float(shared[0][2]) < 100.4 * 2 / 8 + 10
    assert {cells[9] for cells in away} == {"0%"} and {cells[2] for cells in away} == {"0.0"}
    assert float(away[-1][8]) < 0.25 * float(shared[-1][8])
    assert "2.0 TB, 388 bytes a token" in table


def test_of_a_method_and_folders(tmp_path, capsys):
    write_json(tmp_path / "recipe.json", {"model": read_recipe("bert", "nano").model})
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"ask: {{teacher: {tmp_path}, student: {{recipe: bert, size: nano}}, method: tinybert, "
                        f"settings: {{stage: inner}}, devices: [H200], placed: [device, cache], "
                        f"batch: 4}}\n")  # fmt: skip
    main(f"{settings}:ask")
    said = capsys.readouterr().out
    assert len(lines(said, "device")) == len(lines(said, "cache")) == 1 and "1 x H200" in said
    assert lines(said, "device")[0][7] == "yes" and lines(said, "device")[0][5] == "0.0"  # no logits


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "kd", "signals": {"logits": []}}, "either a method .* or the signals"),
        ({}, "either a method .* or the signals"),
        ({"method": "kd", "devices": ["abacus"]}, "peak and memory of abacus are not known"),
        ({"method": "kd", "mfu": 1.5}, "mfu in 0..1"),
        ({"method": "kd", "gpu": "H100"}, "no setting gpu; it has: teacher, student"),
        ({"method": "kd", "student": {"size": "nano"}}, "a folder, or {recipe, size, overrides}"),
        ({"method": "kd", "student": "nowhere"}, "nowhere has no recipe.json"),
    ],
)
def test_what_cannot_be_asked_is_refused(change, words):
    with pytest.raises(SettingsError, match=words):
        answer(Question.read({"teacher": NANO, "student": NANO} | change))


def test_both_models_must_be_named():
    with pytest.raises(SettingsError, match="an estimate lacks student; it needs teacher, student"):
        Question.read({"teacher": NANO})
