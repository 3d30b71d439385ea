"""Which files a student is made of: its methods and combiners, the components of its teachers, what those import."""

from pathlib import Path

import pytest

from models import names
from tasks.files import write_json
from tasks.lent import lent, main
from tasks.settings import SettingsError
from tasks.student_parts import student_parts

ROOT = Path(__file__).parents[2]
RECIPE = {"model": {"embedding": {"word": {}, "segment": {}}, "encoder": {"transformer": {}}, "target": {"cls": {}}},
          "transformers": "bert"}  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    write_json(tmp_path / "teacher/recipe.json", RECIPE)
    write_json(tmp_path / "teacher/run.json", {"kind": "classification"})
    return tmp_path / "teacher/recipe.json"


def made_of(part, name, entry, recipe, notes=None) -> dict:
    chosen = {"student": {"layers": 1}, part: {name: entry}}
    return student_parts(chosen, part, name, recipe, notes, ROOT)


def test_a_method_is_made_of_its_file_its_helpers_and_its_teachers_components(recipe):
    files = set(made_of("methods", "minilm", {}, recipe)["files"])
    assert {"models/distill/minilm.py", "models/distill/_relations.py", "models/distill/_maths.py",
            "models/distill/_distillation.py", "models/distill/_exact.py", "models/components/encoder/transformer.py",
            "models/components/embedding/segment.py", "models/components/_attention.py",
            "models/components/pretrained/bert.py", "tasks/kinds/classification.py",
            "tasks/kinds/_classes.py"} <= files  # fmt: skip
    others = {f"models/distill/{name}.py" for name in names("distill") if name != "minilm"}
    assert not files & (others - {"models/distill/wid.py"})
    assert not files & {"models/components/encoder/gru.py", "models/components/embedding/patch.py",
                        "models/distill/_writing.py", "models/distill/_inheriting.py"}  # fmt: skip


def test_a_mix_and_a_combiner_are_made_of_all_their_methods(recipe, tmp_path):
    mixed = made_of("mixes", "tiny", {"tinybert": {"stage": "inner"}, "kd": {"weight": 0.5}}, recipe)["files"]
    assert {"models/distill/tinybert.py", "models/distill/kd.py"} <= set(mixed)
    folder = tmp_path / "teacher"
    (folder / "model").mkdir()
    (folder / "model/x").write_text("weights")
    for name in ("small", "large"):
        lent(folder, tmp_path / f"notes/{name}.json")
    entry = {"teachers": ["small"], "by": {"tmkd": {}}, "of": {"pkd": {}}}
    found = made_of("several", "both", entry, None, tmp_path / "notes")
    assert {"models/distill/teachers/tmkd.py", "models/distill/teachers/_several.py",
            "models/distill/pkd.py"} <= set(found["files"])  # fmt: skip
    assert list(found["teachers"]) == [str(folder)]
    (folder / "model/x").write_text("other weights")
    main(str(folder), str(tmp_path / "notes/small.json"))
    assert made_of("several", "both", entry, None, tmp_path / "notes")["teachers"] != found["teachers"]


def test_a_student_that_goes_on_is_made_of_what_it_was(recipe, tmp_path):
    """Its own components and content, beside those of its teacher."""
    import torch
    from _tuned import RECIPES, write_tokenizer
    from safetensors.torch import save_file

    from models.components._model import assemble
    from tasks.tokenizer import Vocabulary

    (begun := tmp_path / "begun/model").mkdir(parents=True)
    write_tokenizer(begun)
    own = RECIPES["bert"] | {"vocabulary": Vocabulary.open(begun).size}
    own["embedding"] = {"word": {}, "sinusoidal": {}}
    torch.manual_seed(1)
    save = lambda: save_file({k: v.clone() for k, v in assemble(own).state_dict().items()},
                             begun / "model.safetensors")  # fmt: skip
    save()
    write_json(begun / "recipe.json", own)
    made = lambda: student_parts({"specific": {"shop": {"of": "minilm"}}}, "specific", "shop", recipe, None, ROOT,
                                 begun.parent)  # fmt: skip
    found = made()
    assert {"models/distill/minilm.py", "models/components/embedding/sinusoidal.py",
            "models/components/embedding/segment.py"} <= set(found["files"])  # fmt: skip
    assert list(found["start"]) == [str(begun.parent)]
    save()
    assert made()["start"] != found["start"] and made()["files"] == found["files"]
    assert "start" not in made_of("methods", "minilm", {}, recipe)


@pytest.mark.parametrize(("name", "file"), [("wid", "_inheriting"), ("on_policy", "_writing")])
def test_what_trains_otherwise_is_listed_for_it(recipe, name, file):
    assert f"models/distill/{file}.py" in made_of("methods", name, {}, recipe)["files"]


def test_what_is_not_there_is_refused(recipe, tmp_path):
    entry = {"teachers": ["third"], "by": {"tmkd": {}}}
    (tmp_path / "notes").mkdir()
    with pytest.raises(SettingsError, match="distill.teachers has no third; it has: nothing"):
        made_of("several", "both", entry, None, tmp_path / "notes")
    with pytest.raises(FileNotFoundError, match="has no model; distill.teachers names what trained it"):
        lent(tmp_path / "nothing", tmp_path / "note.json")
    with pytest.raises(LookupError, match="kdd"):
        made_of("methods", "kdd", {}, recipe)
