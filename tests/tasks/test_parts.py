"""Which files a recipe is made of."""

import pytest

from tasks.parts import parts
from tasks.settings import SettingsError

FILES = {
    "models/components/_model.py": "from models.components._rows import Rows\n",
    "models/components/_rows.py": "",
    "models/components/_recurrent.py": "",
    "models/components/embedding/word.py": "",
    "models/components/embedding/dual.py": "",
    "models/components/encoder/gru.py": "import models.components._recurrent\n",
    "models/components/encoder/transformer.py": "",
    "models/components/decoder/transformer.py": "",
    "models/components/target/lm.py": "def f():\n    from models.components._loss import chunked\n",
    "models/components/_loss.py": "",
    "models/components/pretrained/x.py": "import transformers\n",
    "tasks/processors/lm.py": "from tasks.processors import _text\nfrom tasks.files import digest\n",
    "tasks/processors/_text.py": "",
    "models/components/recipes/x.yaml": "model: {embedding: {word: {}}, encoder: {gru: {}}, target: {lm: {}}}\n"
    "processor: {lm: {}}\ntransformers: x\n",
    "models/components/recipes/two.yaml": "model: {embedding: {dual: {a: {word: {}}}}, encoder: {transformer: {}}}\n",
}
OF_X = {
    "models/components/_loss.py", "models/components/_model.py", "models/components/_recurrent.py",
    "models/components/_rows.py", "models/components/embedding/word.py", "models/components/encoder/gru.py",
    "models/components/pretrained/x.py", "models/components/recipes/x.yaml", "models/components/target/lm.py",
    "tasks/processors/_text.py", "tasks/processors/lm.py",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_parts_and_what_they_import(root):
    assert set(parts({}, "x", root)) == OF_X
    assert set(parts({"recipe": "x", "size": "nano"}, "mine", root)) == OF_X


def test_parts_of_streams_count_and_a_decoder_only_where_there_is_one(root):
    found = set(parts({}, "two", root))
    assert {"models/components/embedding/dual.py", "models/components/embedding/word.py"} <= found
    assert "models/components/decoder/transformer.py" not in found
    assert "models/components/decoder/transformer.py" in parts(
        {"overrides": {"decoder": {"transformer": {}}}}, "two", root
    )


def test_a_part_that_an_entry_exchanges_counts(root):
    found = parts({"overrides": {"encoder": {"transformer": {}}}}, "x", root)
    assert "models/components/encoder/transformer.py" in found


def test_only_an_edit_of_an_own_file_shows(root):
    before = parts({}, "x", root)
    (root / "models/components/encoder/transformer.py").write_text("# edited\n")
    assert parts({}, "x", root) == before
    (root / "models/components/_recurrent.py").write_text("# edited\n")
    assert parts({}, "x", root) != before


def test_a_recipe_that_is_not_there(root):
    with pytest.raises(SettingsError, match=r"language\.pretrain\.y: there is no recipe 'y'; there are two, x"):
        parts({}, "y", root)
