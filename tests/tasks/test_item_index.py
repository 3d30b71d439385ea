import shutil

import polars as pl
import pytest
import torch
from _bars import seen
from _described import ENTRY, write_described

from models.recommend.towers._towers import Prompt
from tasks import item_index
from tasks.encoder import EncodingError
from tasks.files import digest, read_json
from tasks.item_index import IndexRejected, ItemIndex, add_items, exact, make_index
from tasks.recommender import load, train_recommender

ENTRIES = {
    "pair": ENTRY | {"training": {"epochs": 2, "batch": 64, "lr": 5e-3}},
    "many": ENTRY | {"method": "towers/prototypes", "training": {"epochs": 1, "batch": 64},
                     "settings": {"embedding": 8, "widths": [16], "width": 8, "prototypes": 6}},
    "ids": {"method": "retrieval/als", "data": "log", "pairs": {"events": ["item_like"]}, "settings": {"width": 8}},
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """log/, <name>/ of each recommender and index/ of "pair"; read only."""
    root = tmp_path_factory.mktemp("index")
    write_described(root / "log", users=24)
    for name in ENTRIES:
        train_recommender(ENTRIES, name, root / "log", root / name, None)
    make_index(root / "pair/packed", root / "index")
    return root


def asked(served, count: int = 10) -> torch.Tensor:
    users = served.model.users.rows["user"].head(count)
    none = torch.empty(0, dtype=torch.int64)
    return served.model.ask(users, none, none)[0]


def test_the_index_finds_what_exact_search_finds(root):
    found, served = ItemIndex.open(root / "index"), load(root / "pair/packed")
    assert found.manifest["recall@100"] >= 0.95 and found.manifest["items"] == len(served.items)
    users = asked(served)
    lists, rows = found.search(users, 20)
    best = exact(users, found.vectors, 20)
    assert (rows[:, :, None] == best[:, None]).any(1).float().mean() >= 0.95
    assert lists["items"][0].to_list() == found.items.gather(rows[0]).to_list()
    assert lists["scores"][0].to_list() == pytest.approx((users[0] @ found.vectors[rows[0]].mT).tolist(), abs=1e-5)
    # Exact search of the exported vectors is the served ranking, nothing left out.
    scores, known = served.model.score(
        served.model.users.rows["user"].head(10), *[torch.empty(0, dtype=torch.int64)] * 2
    )
    assert torch.equal(exact(users, found.vectors, 20), exact(torch.eye(10), scores.mT.contiguous(), 20))
    assert (known == 2).all()


def test_the_same_model_gives_the_same_file(root, tmp_path, monkeypatch):
    bars = seen(monkeypatch)
    again = make_index(root / "pair/packed", tmp_path / "again")
    assert again == read_json(root / "index/manifest.json")
    assert [(bar.total, bar.n) for bar in bars] == [(again["items"], again["items"])]
    assert again["packed"] == digest(root / "pair/packed/bundle/manifest.json")


def test_items_are_added_a_part_at_a_time(root, tmp_path, monkeypatch):
    monkeypatch.setattr(item_index, "PART", 5)
    assert make_index(root / "pair/packed", tmp_path / "again")["recall@100"] >= 0.95
    assert ItemIndex.open(tmp_path / "again").graph.ntotal == len(ItemIndex.open(root / "index").items)


def test_lengths_that_differ_lose_nothing(root, tmp_path):
    draw = torch.Generator().manual_seed(0)
    # As of towers that hardly differ yet: a common direction, a few long vectors, users on the other side.
    vectors = torch.randn(3000, 16, generator=draw) * torch.rand(3000, 1, generator=draw).exp() + 2
    users = torch.randn(50, 16, generator=draw) - 2
    items = pl.Series("item", range(3000))
    item_index._write(tmp_path / "index", items, vectors, users, root / "pair/packed")
    found = ItemIndex.open(tmp_path / "index")
    assert found.manifest["recall@100"] >= 0.95 and found.graph.d == 17
    lists, rows = found.search(users, 5)
    assert lists["scores"][0].to_list() == pytest.approx((vectors[rows[0]] @ users[0]).tolist(), rel=1e-4)


def test_an_item_longer_than_all_makes_a_new_graph(root, tmp_path, monkeypatch):
    listed = pl.DataFrame(
        {"item_id": [9001], "c0_id": [1], "brand_id": [1], "price": [3.0], "name": ["red thing no 1"]}
    )
    longest = []
    monkeypatch.setattr(item_index, "_longest", lambda vectors: 2.0 if len(vectors) == 1 else 3.0)
    real = item_index.even
    monkeypatch.setattr(
        item_index, "even", lambda vectors, most: longest.append((len(vectors), most)) or real(vectors, most)
    )
    manifest = add_items(root / "index", root / "pair/packed", listed, tmp_path / "larger")
    assert longest == [(manifest["items"], 3.0)] and manifest["longest"] == 3.0


def test_a_new_item_is_added_from_its_fields_and_nothing_else_moves(root, tmp_path):
    served, before = load(root / "pair/packed"), ItemIndex.open(root / "index")
    weights = digest(root / "pair/packed/bundle/model.safetensors")
    listed = pl.DataFrame({"item_id": [9001, 9002], "c0_id": [1, 2], "brand_id": [1, 2], "price": [3.0, 4.0],
                           "name": ["red thing no 1", "green thing no 2"]})  # fmt: skip
    made = add_items(root / "index", root / "pair/packed", listed, tmp_path / "larger")
    after = ItemIndex.open(tmp_path / "larger")
    assert made["items"] == len(before.items) + 2 and after.items.tail(2).to_list() == [9001, 9002]
    assert torch.equal(after.vectors[:-2], before.vectors)
    assert digest(root / "pair/packed/bundle/model.safetensors") == weights
    # It lies where an item of the same fields lies: item 0 of the log is a red thing of brand 1 for 3.
    same = before.items.to_list().index(100)
    assert (after.vectors[-2] @ before.vectors[same]).item() > 0.9
    assert 9001 in after.search(after.vectors[-2:-1], 5)[0]["items"][0].to_list()
    assert ItemIndex.open(root / "index").manifest == before.manifest
    assert asked(served).isfinite().all()


def test_what_cannot_be_added_is_refused(root, tmp_path):
    add = lambda **columns: add_items(root / "index", root / "pair/packed", pl.DataFrame(columns), tmp_path / "no")
    with pytest.raises(IndexRejected, match="1 of 1 new items are in"):
        add(item_id=[100])
    with pytest.raises(IndexRejected, match="1 of 2 new items"):
        add(item_id=[9001, 9001])
    with pytest.raises(IndexRejected, match="in the column item_id"):
        add(c0_id=[1])
    with pytest.raises(EncodingError, match="c0_id is absent"):
        add(item_id=[9001])
    with pytest.raises(IndexRejected, match="of another model"):
        add_items(root / "index", root / "many/packed", pl.DataFrame({"item_id": [9001]}), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_interests_are_searched_together(root, tmp_path):
    make_index(root / "many/packed", tmp_path / "many")
    found, served = ItemIndex.open(tmp_path / "many"), load(root / "many/packed")
    users = asked(served)
    assert users.dim() == 3
    lists, rows = found.search(users, 15)
    assert all(items.n_unique() == 15 for items in lists["items"])
    best = exact(users, found.vectors, 15)
    assert (rows[:, :, None] == best[:, None]).any(1).float().mean() >= 0.95
    assert lists["scores"][0].to_list() == sorted(lists["scores"][0], reverse=True)


def test_a_changed_file_is_not_read(root, tmp_path):
    shutil.copytree(root / "index", tmp_path / "index")
    with open(tmp_path / "index/index.faiss", "ab") as file:
        file.write(b"x")
    (tmp_path / "index/items.parquet").unlink()
    with pytest.raises(IndexRejected, match=r"index.faiss, items.parquet changed since the index was made"):
        ItemIndex.open(tmp_path / "index")


def test_an_index_that_finds_too_little_is_not_written(root, tmp_path, monkeypatch):
    monkeypatch.setattr(
        item_index, "_approximate", lambda graph, users, k, search: (torch.zeros(len(users), k).long(), None)
    )
    with pytest.raises(IndexRejected, match=r"finds 0.010 of the 100 best items, less than 0.95, with 1024"):
        make_index(root / "pair/packed", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_model_of_ids_has_no_index(root, tmp_path):
    with pytest.raises(IndexRejected, match="an index is made of a method of towers/"):
        make_index(root / "ids/packed", tmp_path / "index")


def test_a_prompt_leaves_the_list_and_the_index_as_they_are(root):
    found, served = ItemIndex.open(root / "index"), load(root / "pair/packed")
    users, prompt, before = asked(served).clone(), Prompt(8), digest(root / "index/index.faiss")
    plain = exact(users, found.vectors, 20)
    assert torch.equal(exact(prompt(users).detach(), found.vectors, 20), plain)
    optimizer = torch.optim.Adam(prompt.parameters(), 0.1)
    for _ in range(10):  # a new task that likes the index's first item
        loss = -(prompt(users) @ found.vectors[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tuned = prompt(users).detach()
    assert (tuned @ found.vectors[0]).mean() > (users @ found.vectors[0]).mean()
    assert not torch.equal(exact(tuned, found.vectors, 20), plain)
    assert digest(root / "index/index.faiss") == before


def test_the_command_makes_an_index_and_adds_to_it(root, tmp_path, capsys):
    item_index.main(str(root / "pair/packed"), str(tmp_path / "index"))
    assert "108 items of width 8; recall@100" in capsys.readouterr().out
    listed = pl.DataFrame({"item_id": [9001], "c0_id": [1], "brand_id": [1], "price": [3.0], "name": ["red"]})
    listed.write_parquet(tmp_path / "listed.parquet")
    paths = (root / "pair/packed", tmp_path / "larger", tmp_path / "index", tmp_path / "listed.parquet")
    item_index.main(*map(str, paths))
    assert "109 items" in capsys.readouterr().out
    assert not hasattr(item_index, "faiss")  # the library is imported by its users only
