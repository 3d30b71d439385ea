"""GLMD and the vocabulary of its student."""

import math

import pytest
import torch
from safetensors.torch import load, save

from models import build
from models.distill._signals import Shape, Signals
from models.distill._vocabulary import KeptEmbedding, Vocabulary, compress, cut
from models.distill._words import Words
from tests.models.distill._draw import SMALL, signals

LARGE = Shape(layers=4, width=12, heads=3, vocabulary=17, classes=3)
KEEP = [3, 16, 0, 5, 2, 9, 10, 11, 12, 4, 7]


def glmd(student=SMALL, teacher=SMALL, **settings):
    return build("distill", "glmd", student, teacher, **settings)


def test_by_hand():
    # The teacher says (1/2, 1/4, 1/4) at temperature 2; of the kept words 2 and 0 (1/3, 2/3). The student is even.
    mask = torch.tensor([[True, False]])
    teacher = Signals(mask, logits=torch.tensor([[[math.log(4), 0.0, 0.0], [9.0, 0.0, 3.0]]]))
    student = Signals(mask, logits=torch.tensor([[[1.0, 1.0], [5.0, 0.0]]]))
    shape = lambda words: Shape(1, 1, 1, words)
    it = glmd(shape(2), shape(3), temperature=2.0, keep=[2, 0])
    expected = 4 * (1 / 3 * math.log(2 / 3) + 2 / 3 * math.log(4 / 3))
    assert it(student, teacher).item() == pytest.approx(expected)
    # what a published implementation computes instead: padded places count in the mean
    assert it(student, teacher).item() != pytest.approx(expected / 2)


@pytest.mark.parametrize("temperature", [1.0, 5.0, 15.0])
def test_the_teacher_itself_loses_nothing(temperature):
    assert glmd(temperature=temperature)(signals(1), signals(1)).item() == pytest.approx(0, abs=1e-12)


def test_more_padding_changes_nothing():
    student, teacher = signals(1, padding=7.0), signals(2, padding=7.0)
    longer = lambda s: Signals(
        torch.nn.functional.pad(s.mask, (0, 4)), torch.nn.functional.pad(s.logits, (0, 0, 0, 4), value=3.0)
    )
    torch.testing.assert_close(glmd()(student, teacher), glmd()(longer(student), longer(teacher)))


def test_fewer_words_out_equal_all_words_of_which_only_kept_ones_count():
    student, teacher = signals(1), signals(2, LARGE)
    it = glmd(SMALL, LARGE, keep=KEEP)
    to_student = torch.zeros(LARGE.vocabulary, dtype=torch.int64)
    to_student[KEEP] = torch.arange(len(KEEP))
    expanded = student.logits[..., to_student]
    tau = 15.0
    p, q = ((z[..., KEEP][student.mask] / tau).log_softmax(-1) for z in (teacher.logits, expanded))
    torch.testing.assert_close(it(student, teacher), tau**2 * (p.exp() * (p - q)).sum(-1).mean())


def test_the_gradient_of_one_place():
    student, teacher = signals(1), signals(2, LARGE)
    student.logits.requires_grad_()
    glmd(SMALL, LARGE, keep=KEEP)(student, teacher).backward()
    tau, real = 15.0, 8
    apart = (student.logits[0, 1] / tau).softmax(-1) - (teacher.logits[0, 1, KEEP] / tau).softmax(-1)
    torch.testing.assert_close(student.logits.grad[0, 1], tau * apart.detach() / real)
    assert not student.logits.grad[1, 3:].any()


def test_heads_in_place_of_logits():
    generator = torch.Generator().manual_seed(0)
    mask = signals(1).mask
    head = lambda shape: Words(
        torch.randn(2, 5, shape.width, generator=generator).requires_grad_(),
        torch.randn(shape.vocabulary, shape.width, generator=generator).requires_grad_(),
        torch.randn(shape.vocabulary, generator=generator),
    )
    student, teacher, it = head(SMALL), head(LARGE), glmd(SMALL, LARGE, keep=KEEP)
    chunked = it(Signals(mask, student), Signals(mask, teacher))
    plain = it(Signals(mask, student.tensor()), Signals(mask, teacher.tensor().detach()))
    torch.testing.assert_close(chunked, plain)
    learning = (student.hidden, student.weight)
    for got, expected in zip(*(torch.autograd.grad(x, learning) for x in (chunked, plain)), strict=True):
        torch.testing.assert_close(got, expected)


def test_the_labels_stage_by_hand_and_without_gold():
    it = glmd(stage="labels")
    assert it.needs == ("task",) and it.hard_weight() == 0
    mask = torch.ones(1, 1, dtype=torch.bool)
    student, teacher = (Signals(mask, task=torch.tensor([x])) for x in ([math.log(3), 0.0], [0.0, 0.0]))
    assert it(student, teacher).item() == pytest.approx(-0.5 * (math.log(3 / 4) + math.log(1 / 4)))


@pytest.mark.parametrize("stage", ["corpus", "task", "labels"])
def test_no_stage_reads_a_gold_label(stage):
    assert "hard" not in glmd(stage=stage).needs and glmd(stage=stage).hard_weight() == 0


def test_the_kept_words_are_part_of_the_state():
    first, second = glmd(SMALL, LARGE, keep=KEEP), glmd(SMALL, LARGE, keep=KEEP[::-1])
    second.load_state_dict(first.state_dict())
    assert second.keep.tolist() == KEEP


@pytest.mark.parametrize(
    ("teacher", "keep", "said"),
    [
        (LARGE, None, "11 words and the teacher 17; give `keep`"),
        (LARGE, KEEP[:-1], "10 words are kept"),
        (LARGE, [*KEEP[:-1], 3], "different ids in 0..16"),
        (LARGE, [*KEEP[:-1], 17], "different ids in 0..16"),
    ],
)
def test_words_that_do_not_fit_are_refused(teacher, keep, said):
    with pytest.raises(ValueError, match=said):
        glmd(SMALL, teacher, keep=keep)


# The vocabulary


def test_the_order_by_hand():
    # 8 words, keep half in pairs: protected 7, then 5 and 6 by count, then the most frequent other.
    counts = torch.tensor([4, 9, 9, 1, 2, 0, 3, 0])
    made = compress(counts, torch.eye(8), [[7], [5, 6, 7]], multiple=2)
    assert made.keep.tolist() == [7, 6, 5, 1]
    assert made.rows(torch.tensor([[7, 1], [-100, 5]])).tolist() == [[0, 3], [-100, 2]]


@pytest.mark.parametrize(("ratio", "size"), [(0.25, 8), (0.3, 12), (0.5, 16), (0.75, 24), (0.9, 28), (1.0, 30)])
def test_what_every_map_promises(ratio, size):
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(100, (30,), generator=generator)
    special = [0, 29, 13]
    made = compress(counts, torch.randn(30, 5, generator=generator), [special], ratio=ratio, multiple=4)
    assert len(made.keep) == size
    assert torch.equal(made.to_student[made.keep], torch.arange(size))
    assert made.to_student.min() >= 0 and made.to_student.max() < size
    assert set(special) <= set(made.keep.tolist())
    others = torch.tensor([i for i in made.keep.tolist() if i not in special])
    dropped = torch.tensor([i for i in range(30) if i not in made.keep.tolist()], dtype=torch.int64)
    assert not len(dropped) or counts[others].min() >= counts[dropped].max()


@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
def test_every_substitute_is_the_closest_kept_word(similarity):
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(100, (40,), generator=generator)
    table = torch.randn(40, 3, generator=generator).round()  # many ties
    made = compress(counts, table, multiple=10, similarity=similarity)
    alike = {
        "dot": lambda x, y: (x @ y).item(),
        "cosine": lambda x, y: torch.cosine_similarity(x, y, dim=0).item(),
        "euclidean": lambda x, y: -(x - y).square().sum().item(),
    }[similarity]
    kept = made.keep.tolist()
    for word in set(range(40)) - set(kept):
        best = max(alike(table[word], table[k]) for k in kept)
        chosen = made.keep[made.to_student[word]].item()
        assert alike(table[word], table[chosen]) == pytest.approx(best, abs=1e-6)
        if similarity == "dot":  # exact in float32, so ties are seen
            assert chosen == next(k for k in kept if alike(table[word], table[k]) == best)


def test_merged_words_are_counted():
    made = Vocabulary(torch.tensor([4, 0]), torch.tensor([1, 0, 0, 0, 0]))
    assert made.merged() == {"dropped": 3, "targets": 1, "largest": 4}


def test_rows_that_pad_the_table_never_displace_words():
    made = compress(torch.tensor([0, 0, 0, 0, 5, 5, 5, 5]), torch.eye(8), ratio=0.75, multiple=2, words=4)
    assert made.keep.tolist() == [0, 1, 2, 3, 4, 5]


def test_without_a_teacher_the_dropped_words_are_unknown():
    made = compress(torch.tensor([1, 5, 2, 4]), protected=[[0]], multiple=2, unknown=0)
    assert made.keep.tolist() == [0, 1] and made.to_student.tolist() == [0, 1, 0, 0]
    with pytest.raises(ValueError, match="substitute"):
        compress(torch.tensor([1, 5, 2, 4]), multiple=2, unknown=0)


def test_maps_that_cannot_be_are_refused():
    counts = torch.arange(8)
    with pytest.raises(ValueError, match="5 words are protected, but only 4"):
        compress(counts, torch.eye(8), [range(5)], multiple=2)
    with pytest.raises(ValueError, match="share"):
        compress(counts, torch.eye(8), ratio=0.0)
    with pytest.raises(ValueError, match="no similarity 'l1'"):
        compress(counts, torch.eye(8), multiple=2, similarity="l1")


def bert(seed: int, layers: int = 1, width: int = 8):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=30, max_position_embeddings=12, **sizes)
    model = BertForMaskedLM(config).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    return model


def test_a_cut_model_reads_original_ids_and_survives_saving():
    generator = torch.Generator().manual_seed(0)
    model, ids = bert(0), torch.randint(30, (2, 7), generator=generator)
    counts = torch.randint(100, (30,), generator=generator)
    made = compress(counts, model.get_input_embeddings().weight, [[0, 1]], multiple=4)
    cut(model, made)
    logits = model(ids).logits
    assert logits.shape == (2, 7, 16)
    only_kept = made.keep[torch.randint(16, (2, 7), generator=generator)]
    torch.testing.assert_close(model(only_kept).logits, bert(0)(only_kept).logits[..., made.keep])
    torch.testing.assert_close(logits, model(made.keep[made.to_student[ids]]).logits)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    again = bert(1)
    cut(again, Vocabulary(torch.arange(16), torch.arange(30) % 16))
    again.load_state_dict(load(save({k: v.clone() for k, v in model.state_dict().items()})))
    assert torch.equal(again(ids).logits, logits)
    table = again.get_input_embeddings()
    assert isinstance(table, KeptEmbedding) and torch.equal(table.vocabulary.keep, made.keep)
    with pytest.raises(ValueError, match="of 30 words, the model knows 16"):
        cut(again, made)


def test_a_student_of_other_width_depth_and_words_learns():
    """Width, depth and vocabulary differ; no adapter, no label: the loss falls to a tenth."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = bert(0, layers=2, width=12), bert(1)
    with torch.no_grad():  # a teacher that has something to say
        teacher.get_input_embeddings().weight.mul_(20)
    made = compress(torch.arange(30), teacher.get_input_embeddings().weight, [[0]], multiple=8)
    cut(student, made)
    shapes = Shape(1, 8, 2, len(made.keep)), Shape(2, 12, 2, 30)
    it = glmd(*shapes, keep=made.keep, temperature=2.0)
    ids = torch.randint(30, (8, 6), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        told = Signals(mask, logits=teacher(ids).logits)
    optimizer, losses = torch.optim.Adam(student.parameters(), 0.03), []
    for _ in range(150):
        loss = it(Signals(mask, logits=student(ids).logits), told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
