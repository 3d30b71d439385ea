import numpy as np
import pytest

from tasks.batches import Batches, in_order, load_split


def drawn(batches, count):
    return [batch["x"].tolist() for batch, _ in zip(batches, range(count), strict=False)]


def test_order_is_a_function_of_seed_and_count():
    x = np.arange(10)
    unbroken = drawn(Batches({"x": x}, 3, seed=1), 9)
    assert sorted(sum(unbroken[:4], [])) == list(range(10))  # an epoch: all rows once, the small last batch kept
    assert unbroken[:4] != unbroken[4:8]  # another epoch, another order
    first = Batches({"x": x}, 3, seed=1)
    head = [batch["x"].tolist() for batch, _ in zip(first, range(5), strict=False)]
    state = first.state_dict()
    second = Batches({"x": x}, 3, seed=1)
    second.load_state_dict(state | {"batch": 5})
    assert head[:5] + drawn(second, 4) == unbroken
    assert drawn(Batches({"x": x}, 3, seed=2), 4) != unbroken[:4]


def test_chosen_rows_only():
    rows = np.array([1, 4, 6])
    assert sorted(sum(drawn(Batches({"x": np.arange(10)}, 2, 0, rows), 2), [])) == [1, 4, 6]


def test_another_order_is_refused():
    state = Batches({"x": np.arange(10)}, 3, seed=1).state_dict()
    with pytest.raises(ValueError, match="cannot continue"):
        Batches({"x": np.arange(11)}, 3, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="differ in length"):
        Batches({"x": np.arange(3), "y": np.arange(4)}, 1, 0)
    with pytest.raises(ValueError, match="at least 1"):
        Batches({"x": np.arange(0)}, 1, 0)


def test_in_order_reads_all():
    assert [part["x"].tolist() for part in in_order({"x": np.arange(5)}, 2)] == [[0, 1], [2, 3], [4]]


def test_arrays_that_do_not_belong_together(tmp_path):
    for kind, rows in (("categorical", 3), ("numerical", 4)):
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "train.npy", np.zeros((rows, 2)))
    with pytest.raises(ValueError, match="3 rows, .* 4"):
        load_split(tmp_path, "train")
    (tmp_path / "numerical" / "train.npy").write_bytes(b"PK\x03\x04 not an array")
    with pytest.raises(ValueError, match="not a numpy array"):
        load_split(tmp_path, "train")
