import pytest
import torch

from tasks.checkpoint import latest, pack_optimizer, save_checkpoint, unpack_optimizer


def test_newest_sound_one_is_used(tmp_path, capsys):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"w": torch.full((2,), float(step)), "n": torch.tensor(step)}, {"step": step})
    assert len(list(tmp_path.iterdir())) == 2
    tensors, state = latest(tmp_path)
    assert state == {"step": 3}
    assert tensors["w"].tolist() == [3, 3]
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x01")  # one flipped byte
    assert latest(tmp_path)[1] == {"step": 2}
    newest.write_bytes(newest.read_bytes()[:20])  # cut off
    assert latest(tmp_path)[1] == {"step": 2}
    assert "is corrupt" in capsys.readouterr().err
    assert latest(tmp_path / "none") is None


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    import pickle

    (tmp_path / "step-000000001.safetensors").write_bytes(pickle.dumps(Bomb()))
    assert latest(tmp_path) is None
    assert not (tmp_path / "marker").exists()


def test_half_written_checkpoint_is_not_seen(tmp_path):
    save_checkpoint(tmp_path, 1, {"w": torch.ones(1)}, {})
    (tmp_path / ".step-000000002.safetensors.99").write_bytes(b"half")
    assert latest(tmp_path)[0]["w"].item() == 1


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_optimizer_continues(kind, tmp_path):
    def run(optimizer, weight, steps):
        for _ in range(steps):
            (weight**2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    one = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    unbroken = kind([one], lr=0.1)
    run(unbroken, one, 6)
    two = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    first = kind([two], lr=0.1)
    run(first, two, 3)
    tensors, state = pack_optimizer(first)
    save_checkpoint(tmp_path, 3, tensors | {"w": two}, state)
    tensors, state = latest(tmp_path)
    three = torch.nn.Parameter(tensors["w"])
    second = kind([three], lr=0.9)  # the saved groups carry lr 0.1
    unpack_optimizer(second, tensors, state)
    run(second, three, 3)
    assert torch.equal(one, three)
