"""Sources: rows are a function of seed and number, packed rows leak nothing, what does not fit together is refused."""

import hashlib

import numpy as np
import pytest
import torch
from _corpus import BOS, EOS, PAD, documents, flat, given, made, source, stream, tokenizer

from models.components._model import assemble
from tasks.source import Source, collate, open_source

SMALL = {"width": 16, "vocabulary": 400, "dropout": 0.0, "embedding": {"word": {}}}
GPT = {
    **SMALL,
    "embedding": {"word": {}, "position": {"length": 64}},
    "encoder": {"transformer": {"layers": 2, "heads": 2, "inner": 32, "mask": "causal", "norm_first": True}},
    "target": {"lm": {}},
}
LLAMA = {
    **SMALL,
    "encoder": {
        "transformer": {
            "layers": 2, "heads": 4, "kv_heads": 2, "inner": 32, "mask": "causal", "norm_first": True, "norm": "rms",
            "positions": "rotary", "gated": True, "act": "silu", "bias": False,
        }
    },
    "target": {"lm": {}},
}  # fmt: skip
T5 = {
    **SMALL,
    "encoder": {"transformer": {"layers": 1, "heads": 2, "inner": 32, "positions": "relative"}},
    "target_embedding": {"word": {}},
    "decoder": {"transformer": {"layers": 1, "heads": 2, "inner": 32, "positions": "relative"}},
    "target": {"lm": {}},
}


def digests(batch: dict[str, torch.Tensor]) -> list[str]:
    """A hash of each row: its fields without what the mask calls padding."""
    found = []
    for row in range(len(batch["ids"])):
        total = hashlib.sha256()
        for name in sorted(batch):
            value = batch[name][row]
            stem = "target_" if name == "labels_lm" and "target_ids" in batch else name[: name.find("_") + 1]
            mask = batch.get(f"{stem}mask", batch["mask"])
            total.update(name.encode() + (value[mask[row]] if value.ndim else value).numpy().tobytes())
        found.append(total.hexdigest())
    return found


# ---- order and chance


@pytest.mark.parametrize("name", ["bert", "albert", "mlm", "lm", "t5", "bart", "gsg"])
def test_rows_do_not_depend_on_who_asks_for_them(tmp_path, name):
    whole = source(name, tmp_path, text=documents(30))
    start = len(whole) - 4  # the eight rows of this step lie in two epochs
    wanted = digests(whole.rows(range(start, start + 8)))
    assert len(set(wanted)) >= 6  # a row of the first epoch may come again in the second
    for ranks in (2, 4):
        shares = []
        for rank in range(ranks):
            mine = open_source(tmp_path, {name: {}}, tmp_path / "tokenizer", 64, 7)
            size = 8 // ranks
            shares += digests(mine.rows(range(start + rank * size, start + (rank + 1) * size)))
        assert shares == wanted
    assert [digests(whole.rows([n]))[0] for n in reversed(range(start, start + 8))] == wanted[::-1]


def test_packed_batches_are_the_same_bytes_for_any_number_of_ranks(tmp_path):
    lm = source("lm", tmp_path, length=32, text=[[[100] * 500]])
    whole = lm.rows(range(8))
    for size in (4, 2):
        shares = [lm.rows(range(n, n + size)) for n in range(0, 8, size)]
        for name, value in whole.items():
            assert torch.cat([share[name] for share in shares]).numpy().tobytes() == value.numpy().tobytes()


def test_an_epoch_has_every_row_once_and_the_next_another_order(tmp_path):
    lm = source("lm", tmp_path, length=32, text=documents(60))
    first, second = (lm.rows(range(n * len(lm), (n + 1) * len(lm))) for n in (0, 1))
    assert sorted(digests(first)) == sorted(digests(second))
    assert digests(first) != digests(second)
    tokens = first["ids"][first["mask"]]
    assert len(tokens) == sum(len(flat(text)) + 2 for text in documents(60))


def test_masks_differ_between_epochs_and_seeds(tmp_path):
    mlm = source("mlm", tmp_path, length=200, text=[[[100] * 150]])
    rows = mlm.rows(range(6))["labels_mlm"]
    assert len({tuple(row.tolist()) for row in rows}) == 6
    again, other = (open_source(tmp_path, {"mlm": {}}, tmp_path / "tokenizer", 200, seed) for seed in (7, 8))
    assert torch.equal(again.rows(range(6))["labels_mlm"], rows)
    assert not torch.equal(other.rows(range(6))["labels_mlm"], rows)


def test_heldout_rows_come_from_the_heldout_split(tmp_path):
    given(tmp_path, text=[[[100, 101]]])
    stream(tmp_path / "heldout" / "text", [[[200, 201]]])
    heldout = open_source(tmp_path, {"lm": {}}, tmp_path / "tokenizer", 8, 7, heldout=True)
    assert heldout.rows([0])["ids"].tolist() == [[BOS, 200, 201, EOS]]


def test_what_is_asked_for_must_exist(tmp_path):
    lm = source("lm", tmp_path, text=documents(3))
    for wrong in ([], [-1]):
        with pytest.raises(IndexError, match="numbered from 0 on"):
            lm.rows(wrong)

    class Nothing:
        report = {}

        def __len__(self):
            return 0

    with pytest.raises(ValueError, match="made no row"):
        Source(Nothing(), "", 0)


# ---- collation


def test_collate_by_hand():
    labels = [np.array([6, -100, 7]), np.array([-100])]
    rows = [
        {"ids": np.array([5, 6, 7]), "documents": np.array([0, 1, 1]), "labels_lm": labels[0], "labels_sp": 1},
        {"ids": np.array([8]), "documents": np.array([0]), "labels_lm": labels[1], "labels_sp": 0},
    ]
    batch = collate(rows, filler=9)
    assert batch["ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["documents"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch["labels_lm"].tolist() == [[6, -100, 7], [-100] * 3]
    assert batch["labels_sp"].tolist() == [1, 0] and batch["labels_sp"].dtype == torch.int64


def test_collate_masks_every_stream_by_its_own_length():
    rows = [
        {"first_ids": np.arange(n), "target_ids": np.arange(2), "frames": np.ones((n, 80), np.float32)} for n in (2, 3)
    ]
    batch = collate(rows)
    assert batch["first_mask"].tolist() == batch["frame_mask"].tolist() == [[True, True, False], [True] * 3]
    assert batch["target_mask"].all() and batch["frames"].shape == (2, 3, 80)
    assert batch["frames"][0, 2].eq(0).all() and batch["frames"].dtype == torch.float32


def test_padding_is_never_visible_nor_asked_for(tmp_path):
    for name in ("bert", "t5", "bart", "gsg"):
        batch = source(name, tmp_path / name, text=documents(40)).rows(range(16))
        for stem in ("", "target_"):
            if stem + "ids" in batch:
                padding = ~batch[stem + "mask"]
                assert padding.any(), "all rows are equally long: the test would say nothing"
                assert batch[stem + "ids"][padding].eq(PAD).all()
        labels = batch.get("labels_lm", batch.get("labels_mlm"))
        real = batch.get("target_mask", batch["mask"])
        assert labels[~real].eq(-100).all()


# ---- packing leaks nothing


def apart(batch: dict[str, torch.Tensor], row: int, document: int) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """One document of a packed row as a batch of its own, and its places on both sides."""
    here = {stem: batch[f"{stem}documents"][row].eq(document) & batch[f"{stem}mask"][row]
            for stem in ("", "target_") if f"{stem}ids" in batch}  # fmt: skip
    fields = {stem + name: batch[stem + name][row][here[stem]][None] for stem in here for name in ("ids", "positions")}
    return fields, here[""], here.get("target_", here[""])


@pytest.mark.parametrize("recipe", [GPT, LLAMA], ids=["gpt", "llama"])
def test_packed_logits_are_those_of_separate_documents(tmp_path, recipe):
    torch.manual_seed(0)
    model = assemble(recipe).eval()
    packed = source("lm", tmp_path, {"packing": "first_fit"}, length=48, text=documents(20, sentences=2))
    batch = packed.rows(range(4))
    assert batch["documents"].max() > 1
    logits = model.predict("lm", **batch)
    for row in range(4):
        for document in range(int(batch["documents"][row].max()) + 1):
            fields, here, _ = apart(batch, row, document)
            torch.testing.assert_close(logits[row][here], model.predict("lm", **fields)[0], atol=1e-5, rtol=1e-5)


def test_packed_t5_is_as_if_apart(tmp_path):
    torch.manual_seed(0)
    model = assemble(T5).eval()
    batch = source("t5", tmp_path, length=48, text=documents(20, sentences=2)).rows(range(3))
    logits = model.predict("lm", **batch)
    for row in range(3):
        assert batch["documents"][row].max() > 0
        for document in range(int(batch["documents"][row].max()) + 1):
            fields, _, there = apart(batch, row, document)
            torch.testing.assert_close(logits[row][there], model.predict("lm", **fields)[0], atol=1e-5, rtol=1e-5)


def test_packing_changes_neither_loss_nor_gradient(tmp_path):
    texts = documents(20, sentences=2)
    given(tmp_path, text=texts)
    found = []
    for packing in ("concat", "first_fit", "none"):
        torch.manual_seed(0)
        model = assemble(LLAMA)
        rows = open_source(tmp_path, {"lm": {"packing": packing}}, tmp_path / "tokenizer", 64, 7)
        batch = rows.rows(range(len(rows)))
        loss, _ = model(**batch)
        loss.backward()
        found.append((loss, model.embedding.word.weight.grad, int((batch["labels_lm"] != -100).sum())))
    assert found[1][2] == found[2][2]
    torch.testing.assert_close(found[1][0], found[2][0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[1][1], found[2][1], atol=1e-6, rtol=1e-5)
    assert found[0][2] == found[2][2]  # concat cuts documents, so that contexts are shorter, but asks for every token


# ---- what belongs together


def test_the_fingerprint_knows_data_settings_and_tokenizer(tmp_path):
    first = source("lm", tmp_path / "a", text=documents(5))
    assert len(first.fingerprint) == 64
    same = [
        source("lm", tmp_path / "b", text=documents(5)),
        source("lm", tmp_path / "c", {"bins": 8}, text=documents(5)),
        source("lm", tmp_path / "d", seed=8, text=documents(5)),
    ]
    assert {other.fingerprint for other in same} == {first.fingerprint}
    others = [
        source("lm", tmp_path / "e", text=documents(5, seed=1)),
        source("lm", tmp_path / "f", {"packing": "none"}, text=documents(5)),
        source("lm", tmp_path / "g", length=32, text=documents(5)),
        source("mlm", tmp_path / "h", text=documents(5)),
    ]
    tokenizer(tmp_path / "a" / "tokenizer", sentinels=3)
    others.append(open_source(tmp_path / "a", {"lm": {}}, tmp_path / "a" / "tokenizer", 64, 7))
    assert len({other.fingerprint for other in others} | {first.fingerprint}) == 6


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    from tasks.shards import write

    given(tmp_path, text=documents(5))
    write(tmp_path / "train" / "text", documents(5), 400, tokenizer="0" * 64)
    with pytest.raises(ValueError, match="made by another tokenizer"):
        open_source(tmp_path, {"lm": {}}, tmp_path / "tokenizer", 64, 7)


def test_a_changed_file_is_refused(tmp_path):
    given(tmp_path, text=documents(5))
    file = tmp_path / "train" / "text" / "ids.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="ids.npy has changed"):
        open_source(tmp_path, {"lm": {}}, tmp_path / "tokenizer", 64, 7)


def test_a_recipe_has_one_known_processor_and_data(tmp_path):
    given(tmp_path, text=documents(5))
    with pytest.raises(ValueError, match="one processor, got 2: lm, mlm"):
        open_source(tmp_path, {"lm": {}, "mlm": {}}, tmp_path / "tokenizer", 64, 7)
    with pytest.raises(LookupError, match="closest: mlm"):
        open_source(tmp_path, {"mml": {}}, tmp_path / "tokenizer", 64, 7)
    with pytest.raises(FileNotFoundError, match="run the tokens stage"):
        open_source(tmp_path / "nowhere", {"lm": {}}, tmp_path / "tokenizer", 64, 7)
    with pytest.raises(ValueError, match="it lacks manifest.json"):
        open_source(tmp_path, {"mt": {}}, tmp_path / "tokenizer", 64, 7)


def test_the_report_says_what_was_packed(tmp_path):
    assert source("lm", tmp_path, length=32, text=documents(30)).report["efficiency"] > 0.98
    assert made("lm", tmp_path, {"packing": "none"}, length=32).report["efficiency"] < 0.9
