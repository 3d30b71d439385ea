import copy
import math

import pytest
import torch

from models.components._model import assemble
from models.components._rows import Rows

B, T, VOCABULARY = 3, 7, 20
STACK = {"layers": 2, "heads": 2, "inner": 16}
FACTS = {"width": 8, "vocabulary": VOCABULARY, "dropout": 0.0}
BERT = FACTS | {
    "embedding": {"word": {}, "position": {"length": 16}, "segment": {}},
    "encoder": {"transformer": STACK},
    "target": {"mlm": {}, "sp": {}},
    "tie": True,
}
GPT = FACTS | {
    "embedding": {"word": {}, "position": {"length": 16}, "norm": "none"},
    "encoder": {"transformer": STACK | {"mask": "causal", "norm_first": True}},
    "target": {"lm": {}},
    "tie": True,
}
T5 = FACTS | {
    "norm": "t5",
    "bias": False,
    "embedding": {"word": {}, "norm": "none"},
    "encoder": {"transformer": STACK | {"norm_first": True, "positions": "relative"}},
    "target_embedding": {"word": {}, "norm": "none"},
    "decoder": {"transformer": STACK | {"norm_first": True, "positions": "relative"}},
    "target": {"lm": {"rescale": True}},
    "tie": True,
    "share": True,
}
ALBERT = BERT | {"embedding": {"width": 4, **BERT["embedding"]}, "encoder": {"transformer": STACK | {"shared": True}}}


def model(recipe):
    torch.manual_seed(0)
    return assemble(recipe)


def fields(seed=1, real=(7, 4, 5), length=T):
    torch.manual_seed(seed)
    mask = torch.arange(length) < torch.tensor(real)[:, None]
    shape = mask.shape
    labels = torch.randint(VOCABULARY, shape).where(mask & (torch.rand(shape) < 0.5), -100)
    return {
        "ids": torch.randint(VOCABULARY, shape),
        "mask": mask,
        "segments": torch.randint(2, shape),
        "labels_mlm": labels,
        "labels_lm": labels,
        "labels_sp": torch.randint(2, shape[:1]),
        "target_ids": torch.randint(VOCABULARY, shape),
        "target_mask": mask,
    }


RECIPES = {"bert": BERT, "gpt": GPT, "t5": T5, "albert": ALBERT}


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_step(name):
    part = model(RECIPES[name])
    before = copy.deepcopy(part.state_dict())
    loss, terms = part(**fields())
    loss.backward()
    assert all(parameter.grad is not None for parameter in part.parameters())
    torch.optim.SGD(part.parameters(), 0.5).step()
    assert part(**fields())[0] < loss
    assert any(not torch.equal(before[key], value) for key, value in part.state_dict().items())
    assert not any(term.requires_grad for term in terms.values())


def test_at_the_start_each_token_costs_the_logarithm_of_the_vocabulary():
    _, terms = model(BERT | {"std": 1e-4})(**fields())
    assert terms["mlm"].item() == pytest.approx(math.log(VOCABULARY), abs=1e-3)
    assert terms["sp"].item() == pytest.approx(math.log(2), abs=1e-3)
    assert set(terms) == {"mlm", "mlm_correct", "sp", "sp_correct"}


def test_the_loss_is_the_sum_of_its_targets_means():
    part, batch = model(BERT), fields()
    loss, terms = part(**batch)
    torch.testing.assert_close(loss, terms["mlm"] + terms["sp"])
    counts = part.counts(**batch)
    assert counts == {"mlm": (batch["labels_mlm"] != -100).sum(), "sp": B}
    halved, _ = part({name: 2 * count for name, count in counts.items()}, **batch)
    torch.testing.assert_close(halved, loss / 2)


@pytest.mark.parametrize("name", RECIPES)
def test_any_split_has_the_loss_and_gradient_of_the_whole(name):
    part, whole = model(RECIPES[name]), fields()
    counts = part.counts(**whole)
    loss, _ = part(counts, **whole)
    wanted = torch.autograd.grad(loss, list(part.parameters()))
    total, sums = 0.0, [torch.zeros_like(x) for x in wanted]
    for rows in (slice(0, 1), slice(1, 3)):
        share, _ = part(counts, **{key: value[rows] for key, value in whole.items()})
        total = total + share.detach()
        for x, grad in zip(sums, torch.autograd.grad(share, list(part.parameters())), strict=True):
            x += grad
    torch.testing.assert_close(total, loss.detach())
    torch.testing.assert_close(sums, list(wanted), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_more_padding_changes_nothing(name):
    part, batch = model(RECIPES[name]), fields()
    wide = {}
    for key, value in batch.items():
        fill = {"mask": False, "target_mask": False}.get(key, -100 if key.startswith("labels") else 1)
        wide[key] = value if value.dim() == 1 else torch.nn.functional.pad(value, (0, 4), value=fill)
    torch.testing.assert_close(part(**wide)[0], part(**batch)[0])


def test_nothing_labelled_costs_nothing():
    batch = fields() | {"labels_lm": torch.full((B, T), -100)}
    loss, terms = model(GPT)(**batch)
    loss.backward()
    assert loss.item() == 0 and terms["lm_correct"] == 0


def test_embedding_by_hand():
    part = model(BERT)
    torch.nn.init.normal_(part.embedding.segment.weight)
    batch = fields()
    hidden, rows = part.embedding(batch)
    total = part.embedding.word.weight[batch["ids"]] + part.embedding.position.weight[:T]
    total = total + part.embedding.segment.weight[batch["segments"]]
    deviation = (total.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt()
    torch.testing.assert_close(hidden, (total - total.mean(-1, keepdim=True)) / deviation, rtol=1e-4, atol=1e-5)
    assert torch.equal(rows.mask, batch["mask"])


def test_a_narrow_embedding_is_projected_and_tied():
    part = model(ALBERT)
    assert part.embedding.word.weight.shape == (VOCABULARY, 4)
    assert part.embedding.project.weight.shape == (8, 4)
    assert part.targets["mlm"].transform.weight.shape == (4, 8)
    assert part.tied() == [("embedding.word.weight", "targets.mlm.head.weight")]


def test_words_are_scaled_beside_sinusoids():
    part = model(GPT | {"embedding": {"word": {}, "sinusoidal": {}, "norm": "none"}})
    torch.nn.init.ones_(part.embedding.word.weight)
    hidden, _ = part.embedding(fields())
    # position 0: sin 0 = 0 in the first half, cos 0 = 1 in the second; 8 entries of 1 become sqrt(8)
    torch.testing.assert_close(hidden[0, 0], torch.tensor([8**0.5] * 4 + [8**0.5 + 1] * 4))
    one = [math.sin(1), math.sin(0.1), math.sin(0.01), math.sin(0.001)]
    torch.testing.assert_close(hidden[0, 1, :4] - 8**0.5, torch.tensor(one))


def test_sinusoids_as_fairseq_and_interleaved():
    embedding = {"sinusoidal": {"reached": True, "start": 2, "counted": True}, "word": {}, "norm": "none"}
    part = model(GPT | {"embedding": embedding})
    torch.nn.init.zeros_(part.embedding.word.weight)
    left = torch.tensor([[False, True, True]])
    hidden, _ = part.embedding({"ids": torch.zeros(1, 3, dtype=torch.long), "mask": left})
    assert not hidden[0, 0].any()
    wanted = [f(2 * 10000 ** (-i / 3)) for f in (math.sin, math.cos) for i in range(4)]
    torch.testing.assert_close(hidden[0, 1], torch.tensor(wanted))
    part = model(GPT | {"embedding": {"word": {}, "sinusoidal": {"interleaved": True}, "norm": "none"}})
    torch.nn.init.zeros_(part.embedding.word.weight)
    row = part.embedding(fields())[0][0, 1]
    torch.testing.assert_close(row[:4], torch.tensor([math.sin(1), math.cos(1), math.sin(0.1), math.cos(0.1)]))


def test_positions_counted_over_real_tokens():
    part = model(BERT | {"embedding": {"word": {}, "position": {"length": 6, "start": 2, "counted": True}}})
    position = part.embedding.position
    table = position.weight.detach()
    mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    rows = Rows.of((2, 4), mask=mask)
    assert torch.equal(position({}, rows), table[torch.tensor([[1, 2, 3, 1], [2, 3, 4, 5]])])
    packed = Rows.of((1, 4), positions=torch.tensor([[0, 1, 0, 0]]), documents=torch.tensor([[0, 0, 1, 2]]))
    assert torch.equal(position({}, packed), table[torch.tensor([[2, 3, 2, 2]])])


def test_a_position_beyond_the_table_is_refused():
    part = model(GPT)
    with pytest.raises(
        ValueError, match="position 16 needs row 16 of a table of 16; cut the rows to 16 tokens, or give"
    ):
        part(**fields(real=(17, 4, 5), length=17))
    packed = {"positions": torch.arange(17).expand(3, 17) % 9, "documents": torch.arange(17).expand(3, 17) // 9}
    assert part(**fields(real=(17, 4, 5), length=17), **packed)[0].isfinite()


def test_packed_rows_equal_rows_apart():
    part, batch = model(GPT), fields(real=(3, 2, 2), length=3)
    mask = batch["mask"]
    packed = {
        "ids": batch["ids"][mask][None],
        "labels_lm": batch["labels_lm"][mask][None],
        "positions": torch.tensor([[0, 1, 2, 0, 1, 0, 1]]),
        "documents": torch.tensor([[0, 0, 0, 1, 1, 2, 2]]),
    }
    apart, together = part(**batch)[0], part(**packed)[0]
    torch.testing.assert_close(together, apart)
    ours, theirs = (torch.autograd.grad(loss, list(part.parameters())) for loss in (together, apart))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_tied_tables_share_storage():
    part = model(T5)
    names = ["target_embedding.word.weight", "targets.lm.head.weight"]
    assert part.tied() == [("embedding.word.weight", name) for name in names]
    assert part.targets["lm"].head.weight is part.embedding.word.weight
    assert model(T5 | {"tie": False, "share": False}).tied() == []


def test_initial_weights():
    part = model(T5 | {"width": 64, "std": 0.1})
    for name, parameter in part.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.1, rel=0.1), name
    assert not any("bias" in name for name, _ in part.named_parameters())
    for name, parameter in model(BERT).named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all(), name
        if name.endswith("bias"):
            assert not parameter.any(), name
    assert torch.equal(model(BERT).state_dict()["embedding.word.weight"], model(BERT).embedding.word.weight)


def test_a_model_built_on_no_device_is_the_same():
    with torch.device("meta"):
        empty = assemble(T5)
    torch.manual_seed(0)
    built = empty.to_empty(device="cpu")
    built.initialise()
    assert len(built.tied()) == 2
    again = assemble(T5)
    torch.manual_seed(0)
    again.initialise()
    assert all(torch.equal(built.state_dict()[key], value) for key, value in again.state_dict().items())


def test_facts_reach_every_part_unless_it_says_otherwise():
    part = model(BERT | {"eps": 1e-3, "target": {"mlm": {"eps": 1e-5}}})
    assert part.embedding.norm.eps == part.encoder.layers[0].attention_norm.eps == 1e-3
    assert part.targets["mlm"].norm.eps == 1e-5


def test_predict():
    part, batch = model(BERT).eval(), fields()
    assert part.predict("mlm", **batch).shape == (B, T, VOCABULARY)
    assert part.predict("sp", **batch).shape == (B, 2)
    hidden, rows = part.encode(**batch)
    assert hidden.shape == (B, T, 8) and rows.positions.shape == (B, T)
    with pytest.raises(LookupError, match="'mml'; closest: mlm"):
        part.predict("mml", **batch)


def test_bfloat16_loss_is_near():
    for recipe in RECIPES.values():
        part, batch = model(recipe), fields()
        exact = part(**batch)[0]
        with torch.autocast("cpu", torch.bfloat16):
            near = part(**batch)[0]
        near.backward()
        assert near.dtype == torch.float32
        torch.testing.assert_close(near, exact, rtol=1e-2, atol=0)


WRONG_NAMES = [
    ({"embedding": {"wrod": {}}}, "embedding has no 'wrod'; closest: word"),
    ({"embedding": {"word": {"vocabluary": 9}}}, "embedding.word has no 'vocabluary'; closest: vocabulary"),
    ({"encoder": {"transfromer": {}}}, "components.encoder has no 'transfromer'; closest: transformer"),
    ({"encoder": {"transformer": STACK | {"head": 2}}}, "encoder.transformer has no 'head'; closest: heads"),
    ({"target": {"mml": {}}}, "components.target has no 'mml'; closest: mlm"),
    ({"dropuot": 0.1}, "a recipe has no 'dropuot'; closest: dropout"),
    ({"targets": {"mlm": {}}}, "a recipe has no 'targets'; closest: target"),
]


@pytest.mark.parametrize(("change", "named"), WRONG_NAMES)
def test_unknown_names_are_refused_with_the_closest(change, named):
    with pytest.raises(LookupError, match=named):
        model(BERT | change)


CAUSAL = {"transformer": STACK | {"mask": "causal"}}
ILLEGAL = [
    ({"target": None}, "the recipe has no target"),
    ({"width": None}, "needs a width"),
    ({"width": "8"}, "width is the text '8'"),
    ({"eps": "1e-12"}, "eps is the text '1e-12'; write it as YAML reads a number, such as 1.0e-12"),
    ({"encoder": {"transformer": STACK | {"eps": "1e-5"}}}, "encoder.transformer.eps is the text '1e-5'"),
    ({"encoder": {"transformer": STACK, "gru": {}}}, "encoder is one part, not 2: transformer, gru"),
    ({"encoder": {"transformer": STACK | {"heads": 3}}}, "encoder.transformer: heads 3 does not divide width 8"),
    ({"embedding": ["word"]}, "embedding needs a mapping from part names to settings"),
    ({"embedding": {"norm": "none"}}, "embedding has no part"),
    ({"embedding": {"word": 5}}, "embedding.word needs a mapping"),
    ({"vocabulary": None}, "embedding.word: vocabulary must be"),
    ({"tie": "yes"}, "tie is true or false"),
    ({"target": {"bilm": {}}}, "bilm reads one half of states from each side"),
    ({"target": {"clr": {}}}, "clr compares two streams"),
    ({"target": {"lm": {}}}, "lm names the next token, which this transformer encoder has seen"),
    ({"target": {"lm": {}}, "encoder": {"bilstm": {}}}, "which this bilstm encoder has seen"),
    ({"decoder": CAUSAL}, "the recipe has no target_embedding"),
    ({"target_embedding": {"word": {}}}, "the recipe has no decoder"),
    ({"encoder": {"dual": {}}}, "a dual embedding and a dual encoder go together"),
    ({"target": {"sp": {}}}, "tie makes the head of mlm or lm the word table"),
    ({"share": True}, "both embeddings need a word part"),
    ({"target": {"mlm": {"vocabulary": 9}}}, r"tie: the head of mlm is \(9, 8\), but the word table \(20, 8\)"),
]


@pytest.mark.parametrize(("change", "named"), ILLEGAL)
def test_illegal_combinations_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        model(BERT | change)


def test_a_recipe_without_vocabulary_names_what_is_missing():
    recipe = {key: value for key, value in BERT.items() if key != "vocabulary"}
    with pytest.raises(ValueError, match="embedding.word needs vocabulary: give it there or at the top of the recipe"):
        model(recipe)


def test_rows_of_a_batch():
    with pytest.raises(ValueError, match="neither ids nor mask, only: labels_lm"):
        Rows.read({"labels_lm": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"target_mask is \(1, 2\), but target_ids is \(1, 3\)"):
        Rows.read({"target_ids": torch.zeros(1, 3), "target_mask": torch.ones(1, 2)}, "target_")
    rows = Rows.read({"ids": torch.zeros(2, 3), "mask": torch.tensor([[1, 1, 0], [1, 0, 0]])})
    assert rows.mask.dtype == torch.bool and not rows.full and rows.tail
    assert rows.places.tolist() == [[0, 1, 2]] and rows.positions.shape == (2, 3)
    assert Rows.read({"ids": torch.zeros(2, 3)}).full
    assert not Rows.of((1, 2), mask=torch.tensor([[False, True]])).tail
