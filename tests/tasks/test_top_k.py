import polars as pl
import pytest
from _likers import GATES, answer, entries, write_log

from tasks import fresh, recommender
from tasks import top_k as module
from tasks.gate_recommender import gate_recommender
from tasks.promote_recommender import promote_recommender
from tasks.recommender import load, train_recommender
from tasks.top_k import main, open_recommender, top_k


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("top_k")
    write_log(root / "log")
    train_recommender(entries(), "similar", root / "log", root / "similar", None)
    return root


def requests(path, count=50):
    rows = pl.DataFrame({"user": [7 + 10 * (n % 60) for n in range(count)], "mine": range(count)})
    rows.write_parquet(path)
    return path


def test_parts_give_what_the_whole_gives(root, tmp_path, monkeypatch):
    model = load(root / "similar/packed")
    top_k(model, requests(tmp_path / "in.parquet"), tmp_path / "whole.parquet", 5)
    monkeypatch.setattr(module, "PART", 7)
    assert top_k(model, tmp_path / "in.parquet", tmp_path / "parts.parquet", 5) == 50
    whole, parts = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("whole", "parts"))
    assert whole.drop("scores").equals(parts.drop("scores"))
    assert (whole["scores"].explode() - parts["scores"].explode()).abs().max() < 1e-5  # sums are cut otherwise
    assert whole.columns == ["user", "mine", "items", "scores", "known"]
    assert whole["mine"].to_list() == list(range(50))
    assert whole["items"].list.len().unique().to_list() == [5]


def test_the_command_with_allowed_items(root, tmp_path, capsys):
    pl.DataFrame({"item": [100, 106, 112]}).write_parquet(tmp_path / "allowed.parquet")
    main(str(root / "similar/packed"), str(requests(tmp_path / "in.parquet")), str(tmp_path / "out.parquet"),
         "--k", "2", "--allowed", str(tmp_path / "allowed.parquet"))  # fmt: skip
    found = pl.read_parquet(tmp_path / "out.parquet")["items"].explode().drop_nulls()
    assert set(found) <= {100, 106, 112}
    assert "50 requests answered with up to 2 items" in capsys.readouterr().out


def test_no_request_is_an_empty_answer(root, tmp_path):
    requests(tmp_path / "in.parquet", 0)
    assert top_k(load(root / "similar/packed"), tmp_path / "in.parquet", tmp_path / "out.parquet") == 0
    assert pl.read_parquet(tmp_path / "out.parquet").columns == ["user", "mine", "items", "scores", "known"]


def test_a_registered_version_answers_if_its_code_is_ours(root, registry, tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "score", answer)
    gate_recommender(GATES, entries(), "similar", root / "log", root / "similar", tmp_path / "gate")
    promote_recommender("similar", tmp_path / "gate", root / "similar", tmp_path / "receipt.json")
    rows = pl.DataFrame({"user": [7, 17]})
    model, own = open_recommender("models:/recommender-similar@champion"), load(root / "similar/packed")
    assert model.lists(rows, 4).equals(own.lists(rows, 4))
    monkeypatch.setattr(recommender, "SERVED", {"serve.py": "serve.py", "bundled.py": "bundled.py"})
    with pytest.raises(ValueError, match="registered with another serve.py than this checkout has"):
        open_recommender("models:/recommender-similar@champion")


def test_bad_input_leaves_no_file(root, tmp_path):
    model, out = load(root / "similar/packed"), tmp_path / "out.parquet"
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        top_k(model, tmp_path / "text", out)
    pl.DataFrame({"user": [7], "items": [1]}).write_parquet(tmp_path / "taken.parquet")
    with pytest.raises(ValueError, match="has the columns items already"):
        top_k(model, tmp_path / "taken.parquet", out)
    pl.DataFrame({"user": ["seven"]}).write_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="`user` must be Int64"):
        top_k(model, tmp_path / "text.parquet", out)
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == []
    with pytest.raises(ValueError, match="holds no recommender"):
        open_recommender(str(tmp_path))
