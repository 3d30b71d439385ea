"""Acting inside the forward pass: changed states and borrowed layers, in models of transformers and ours."""

import pytest
import torch
import transformers

from models.distill._hooks import edits_of, inside, watch
from tests.models.distill._pairs import SIZES, new, rows, states

FAMILIES = ["bert", "gpt2", "albert", "ours"]


@pytest.mark.parametrize("name", FAMILIES)
def test_without_edits_nothing_changes(name, tmp_path):
    model, batch = new(name, 2, tmp_path), rows()
    plain = states(model, *batch)
    with inside(model, {}):
        assert torch.equal(states(model, *batch), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_changed_output_is_what_the_next_layer_reads(name, tmp_path):
    torch.manual_seed(0)
    model, (ids, mask) = new(name, 3, tmp_path), rows()
    plain, met = states(model, ids, mask), []

    def silence(state, seen):
        met.append(torch.equal(seen, mask))
        return torch.zeros_like(state)

    with inside(model, {"output.1": silence}, mask):
        changed = states(model, ids, mask)
        again = states(model, ids[:, :1].expand_as(ids), mask)  # nothing of the words is left after layer 1
    torch.testing.assert_close(changed, again)
    assert met == [True, True] and not torch.allclose(changed, plain)
    torch.testing.assert_close(states(model, ids, mask), plain)  # the edits are gone


@pytest.mark.parametrize("name", FAMILIES)
def test_the_embedding_is_a_place(name, tmp_path):
    model, (ids, mask) = new(name, 2, tmp_path), rows()
    with inside(model, {"embedding": lambda state, mask: state + 1}, mask), watch(model, {"embedding": []}) as seen:
        states(model, ids, mask)
    with watch(model, {"embedding": []}) as plain:
        states(model, ids, mask)
    assert not torch.allclose(seen.embedding, plain.embedding) or name == "gpt2"  # there level 0 is normalised
    if name != "gpt2":
        torch.testing.assert_close(seen.embedding, plain.embedding + 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_that_borrows_every_layer_is_the_teacher(name, tmp_path):
    torch.manual_seed(0)
    student, teacher, batch = new(name, 2, tmp_path / "s"), new(name, 4, tmp_path / "t"), rows()
    around = {k: v for k, v in teacher.state_dict().items() if not any(p in k for p in ("layer", "h."))}
    student.load_state_dict(around, strict=False)  # embedding and last norm
    assert not torch.allclose(states(student, *batch), states(teacher, *batch))
    with inside(student, {"layer.0": [0, 1], "layer.1": [2, 3]}, lender=teacher):
        borrowed = states(student, *batch)
    torch.testing.assert_close(borrowed, states(teacher, *batch))
    assert all("forward" not in vars(module) for module in student.modules())


def test_a_cache_is_off_while_layers_are_borrowed():
    torch.manual_seed(0)
    student, teacher, batch = new("gpt2", 2), new("gpt2", 4), rows()
    student.load_state_dict({k: v for k, v in teacher.state_dict().items() if "h." not in k}, strict=False)
    student.h[1].load_state_dict(teacher.h[3].state_dict())  # layer 1 of both models runs: one number, two layers
    with inside(student, {"layer.0": [0, 1, 2]}, lender=teacher):
        torch.testing.assert_close(states(student, *batch), states(teacher, *batch))
    assert student.config.use_cache


def test_edits_of_one_model():
    edits = {"student.output.0": 1, "teacher.output.1": 2, "student.layer.0": 3}
    assert edits_of(edits, "student") == {"output.0": 1, "layer.0": 3}
    assert edits_of(edits, "teacher") == {"output.1": 2}


def test_what_cannot_be_is_refused(tmp_path):
    bert, enter = new("bert", 2), lambda *a, **k: inside(*a, **k).__enter__()
    with pytest.raises(LookupError, match="no place 'pooler' inside a model"):
        enter(bert, {"pooler": None})
    with pytest.raises(LookupError, match="no place 'output.x'"):
        enter(bert, {"output.x": None})
    with pytest.raises(ValueError, match="output.2 is to be changed, but the model has 2 layers"):
        enter(bert, {"output.2": None})
    with pytest.raises(LookupError, match="no model lends its layers"):
        enter(bert, {"layer.0": [0]})
    with pytest.raises(LookupError, match="a bert model cannot run the layers of a gpt2 model"):
        enter(bert, {"layer.0": [0]}, lender=new("gpt2", 2))
    with pytest.raises(ValueError, match=r"layers \[4\] are to be borrowed, but the lender has 4 layers"):
        enter(bert, {"layer.0": [4]}, lender=new("bert", 4))
    t5 = {"d_model": 16, "d_kv": 4, "num_layers": 2, "num_heads": 4, "d_ff": 32, "vocab_size": 60}
    t5 = transformers.T5EncoderModel(transformers.T5Config(**t5))
    with pytest.raises(LookupError, match="hand each other their scores or positions"):
        enter(t5, {"layer.0": [0]}, lender=t5)
    vision = transformers.ViTModel(transformers.ViTConfig(**{k: v for k, v in SIZES.items() if k != "vocab_size"}))
    with pytest.raises(LookupError, match="vit is not known here"):
        enter(vision, {})
