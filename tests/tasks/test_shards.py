"""Streams of tokens: written block by block, mapped back, refused when they are not what was written."""

import numpy as np
import pytest

from tasks.files import digest, read_json, write_json
from tasks.shards import Shards, ShardsBroken, Writer, id_type, write

DOCUMENTS = [[[5, 6, 7], [8]], [[9, 10]], [[11], [12, 13], [14, 15, 16]]]


def test_offsets_by_hand(tmp_path):
    shards = write(tmp_path, DOCUMENTS, vocabulary=100, tokenizer="abc")
    assert shards.ids.tolist() == list(range(5, 17))
    assert shards.ids.dtype == np.uint16
    assert shards.sentences.tolist() == [0, 3, 4, 6, 7, 9, 12]
    assert shards.documents.tolist() == [0, 2, 3, 6]
    assert shards.words.all()
    assert len(shards) == 3
    assert [s.tolist() for s in shards.document(2)] == DOCUMENTS[2]
    assert shards.span(1) == (4, 6)
    assert shards.manifest["tokens"] == 12
    assert shards.manifest["tokenizer"] == "abc"


def test_the_files_are_numpys_own_and_read_only(tmp_path):
    shards = write(tmp_path, DOCUMENTS, vocabulary=70_000, words=[[[1, 0, 0], [1]], [[1, 0]], [[1], [1, 0], [1, 1, 0]]])
    assert shards.ids.dtype == np.uint32
    assert np.load(tmp_path / "words.npy").tolist() == [1, 0, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        shards.ids[0] = 1


def test_any_blocks_give_the_same_bytes(tmp_path):
    write(tmp_path / "one", DOCUMENTS, vocabulary=100)
    writer = Writer(tmp_path / "two", 100)
    for document in DOCUMENTS:
        ids = np.array([i for s in document for i in s])
        writer.append(ids, np.ones(len(ids), bool), np.array([len(s) for s in document]), np.array([len(document)]))
    writer.close()
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_an_empty_stream_opens(tmp_path):
    shards = write(tmp_path, [], vocabulary=10)
    assert len(shards) == 0
    assert len(shards.ids) == 0


@pytest.mark.parametrize(("vocabulary", "name"), [(10, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_ids_fit_their_type(vocabulary, name):
    assert id_type(vocabulary).name == name


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (([1, 2], [True], [2], [1]), "do not add up"),
        (([1, 2], [True, True], [1], [1]), "do not add up"),
        (([1, 2], [True, True], [1, 1], [1]), "do not add up"),
        (([1, 10], [True, True], [2], [1]), "the vocabulary has the ids 0..9"),
    ],
)
def test_wrong_blocks_are_refused(tmp_path, block, words):
    with pytest.raises(ValueError, match=words):
        Writer(tmp_path, 10).append(*map(np.array, block))


def test_what_changed_or_is_missing_is_named(tmp_path):
    write(tmp_path, DOCUMENTS, vocabulary=100)
    content = bytearray((tmp_path / "ids.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "ids.npy").write_bytes(content)
    with pytest.raises(ShardsBroken, match=r"ids.npy has changed since it was written"):
        Shards.open(tmp_path)
    assert len(Shards.open(tmp_path, verify=False)) == 3  # by size alone
    (tmp_path / "ids.npy").write_bytes(content[:-2])
    size = len(content)
    with pytest.raises(ShardsBroken, match=rf"ids.npy has {size - 2} bytes, its manifest says {size} bytes"):
        Shards.open(tmp_path, verify=False)
    (tmp_path / "words.npy").unlink()
    with pytest.raises(ShardsBroken, match="lacks words.npy; run the tokens stage"):
        Shards.open(tmp_path)


def test_counts_are_those_of_the_manifest(tmp_path):
    write(tmp_path, DOCUMENTS, vocabulary=100)
    manifest = read_json(tmp_path / "manifest.json")
    write_json(tmp_path / "manifest.json", {**manifest, "documents": 4})
    with pytest.raises(ShardsBroken, match="documents"):
        Shards.open(tmp_path)
