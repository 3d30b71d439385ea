"""Every module and every recipe: it builds, takes a step, learns; sizes are those that were published."""

import pytest
import torch
import transformers
from torch import nn

from models import names
from models.components._model import assemble
from tasks import processors
from tasks.recipes import read_recipe, recipe_names, size_names

ROWS, TOKENS, TARGETS, FRAMES = 4, 12, 9, 37
IGNORED = -100
PLAIN = {"width": 16, "dropout": 0.0}
SMALL = PLAIN | {"vocabulary": 23}
LAYERS = {"layers": 1, "heads": 2, "inner": 32}
CAUSAL = {"transformer": LAYERS | {"mask": "causal"}}
STREAM = {"first": {"word": {}}, "second": {"word": {}}}
STREAMS = {"first": {"transformer": LAYERS}, "second": {"lstm": {}}}
DUAL = {"embedding": {"dual": STREAM}, "encoder": {"dual": STREAMS}}
PIXELS = {"size": 4, "image": 8}

EMBEDDINGS = {  # one that needs company or settings of its own
    "position": {"word": {}, "position": {"length": TOKENS}},
    "segment": {"word": {}, "segment": {}},
    "sinusoidal": {"word": {}, "sinusoidal": {}},
    "patch": {"patch": PIXELS},
    "masked_patch": {"masked_patch": PIXELS},
    "word_patch": {"word_patch": PIXELS},
    "speech": {"speech": {"channels": 8}},
}
TARGET_SETTINGS = {"tagging": {"classes": 3}}


def model_with(family: str, name: str) -> dict:
    """A small recipe around one module."""
    if name == "dual":
        return SMALL | DUAL | {"target": {"contrast": {}}}
    if family == "embedding":
        embedding = EMBEDDINGS.get(name, {name: {}})
        return (SMALL if {"word", "word_patch"} & set(embedding) else PLAIN) | {
            "embedding": embedding,
            "encoder": {"transformer": LAYERS},
            "target": {"cls": {}},
        }
    if family == "encoder":
        return SMALL | {
            "embedding": {"word": {}},
            "encoder": {name: LAYERS if name == "transformer" else {"layers": 2}},
            "target": {"mlm": {}},
        }
    if family == "decoder":
        return SMALL | {
            "embedding": {"word": {}},
            "encoder": {"transformer": LAYERS},
            "target_embedding": {"word": {}},
            "decoder": {name: LAYERS},
            "target": {"lm": {}},
        }
    if name == "clr":
        return SMALL | DUAL | {"target": {"clr": {"features": 8}}}
    encoder = {"bilm": {"bilstm": {}}, "lm": CAUSAL}.get(name, {"transformer": LAYERS})
    return SMALL | {
        "embedding": {"word": {}},
        "encoder": encoder,
        "target": {name: TARGET_SETTINGS.get(name, {})},
    }


def fields(section: dict, facts: dict, seed: int) -> dict[str, torch.Tensor]:
    """What an embedding reads: ragged rows, every kind of field that its parts know."""
    draw = torch.Generator().manual_seed(seed)
    batch = {}
    length = torch.tensor([TOKENS, 3, 7, TOKENS])[:, None]
    if {"word", "word_patch"} & set(section):
        batch["ids"] = torch.randint(facts["vocabulary"], (ROWS, TOKENS), generator=draw)
        batch["mask"] = torch.arange(TOKENS) < length
    if "segment" in section:
        batch["segments"] = (torch.arange(TOKENS) >= length // 2).long()
    for name in {"patch", "masked_patch", "word_patch"} & set(section):
        edge, size = section[name]["image"], section[name]["size"]
        batch["pixels"] = torch.randn(ROWS, 3, edge, edge, generator=draw)
        if name == "masked_patch":
            batch["masked_patches"] = torch.rand(ROWS, (edge // size) ** 2, generator=draw) < 0.5
    if "speech" in section:
        batch["frames"] = torch.randn(ROWS, FRAMES, 80, generator=draw)
        batch["frame_mask"] = torch.arange(FRAMES) < torch.tensor([FRAMES, 9, 20, FRAMES])[:, None]
    return batch


def toy_batch(recipe: dict) -> dict[str, torch.Tensor]:
    """A batch for a recipe, whatever its parts; its labels are drawn too, so they can only be learned by heart."""
    embedding = recipe["embedding"]
    if "dual" in embedding:
        dual = embedding["dual"]
        second = dual["first"] if dual.get("tied") else dual["second"]
        batch = {f"first_{name}": value for name, value in fields(dual["first"], recipe, 1).items()}
        return batch | {f"second_{name}": value for name, value in fields(second, recipe, 2).items()}
    batch = fields(embedding, recipe, 1)
    (settings,) = recipe["encoder"].values()
    if settings.get("mask") == "prefix":
        batch["prefix"] = torch.arange(TOKENS).expand(ROWS, -1) < 4
    mask = batch.get("mask")
    for name in {"patch", "masked_patch", "word_patch"} & set(embedding):
        places = (embedding[name]["image"] // embedding[name]["size"]) ** 2 + 1
        image = torch.ones(ROWS, places, dtype=torch.bool)
        mask = image if mask is None else torch.cat([mask, image], 1)
    if "decoder" in recipe:
        mask = batch["target_mask"] = torch.arange(TARGETS) < torch.tensor([TARGETS, 4, 6, 1])[:, None]
        batch["target_ids"] = fields({"word": {}}, recipe, 3)["ids"][:, :TARGETS]
    return batch | labels(recipe, mask)


def labels(recipe: dict, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """labels_<target> of every target of a recipe, for hidden states of that mask."""
    draw = torch.Generator().manual_seed(4)
    made = {}
    for name, settings in recipe["target"].items():
        classes = (settings or {}).get("vocabulary", recipe.get("vocabulary"))
        if name in ("mlm", "lm", "tagging"):
            shape, classes = mask.shape, (settings or {}).get("classes", classes)
        elif name == "bilm":
            shape = (*mask.shape, 2)
        elif name == "span":
            made["labels_span"] = torch.zeros(ROWS, 2, dtype=torch.long)
            continue
        elif name == "regression":
            made["labels_regression"] = torch.randn(ROWS, generator=draw)
            continue
        elif name == "choice":
            made |= {"labels_choice": torch.tensor([1, 0, 0, 1]), "questions": torch.tensor([0, 0, 1, 1])}
            continue
        elif name == "contrast":
            made["views"] = torch.tensor([0, 1, 0, 1])
            continue
        else:
            shape, classes = (ROWS,), (settings or {}).get("labels", 2)
        label = torch.randint(classes, shape, generator=draw)
        made[f"labels_{name}"] = (
            label if len(shape) == 1 else label.where(mask.view(mask.shape + (1,) * (len(shape) - 2)), IGNORED)
        )
    return made


def learn(recipe: dict, steps: int) -> list[float]:
    torch.manual_seed(0)
    model, batch = assemble(recipe), toy_batch(recipe)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss, terms = model(**batch)
        assert all(torch.isfinite(term) for term in terms.values()), terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


MODULES = [
    (family, name) for family in ("embedding", "encoder", "decoder", "target") for name in names(f"components.{family}")
]


@pytest.mark.parametrize(("family", "name"), MODULES)
def test_every_module_takes_a_step(family, name):
    recipe = model_with(family, name)
    torch.manual_seed(0)
    model, batch = assemble(recipe), toy_batch(recipe)
    loss, _ = model(**batch)
    loss.backward()
    still = {key for key, value in model.named_parameters() if value.grad is None}
    assert not still, f"no gradient reaches {still}"
    losses = learn(recipe, steps=8)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_learns_a_batch_by_heart(name):
    recipe = read_recipe(name, "nano", {"dropout": 0.0}).model
    losses = learn(recipe, steps=40)
    assert losses[-1] < 0.9 * losses[0], losses


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def size_of(name: str, size: str) -> int:
    with torch.device("meta"):
        return count(assemble(read_recipe(name, size).model))


PUBLISHED = {  # parameters, heads included; counted with transformers 5.23 where it has the model
    "bert": {"tiny": 4433468, "mini": 11267900, "small": 29058876, "medium": 41668412, "base": 110106428,
             "large": 336226108, "xlarge": 1072367420},
    "roberta": {"base": 124697433, "large": 355412057},
    "xlm_roberta": {"base": 278295186, "large": 560142482},
    "albert": {"base": 11813810, "large": 17847474, "xlarge": 59021490, "xxlarge": 223158450},
    "gpt2": {"distil": 81912576, "base": 124439808, "medium": 354823168, "large": 774030080, "xl": 1557611200},
    "megatron_bert": {"345m": 334723458, "1.3b": 1277591938, "3.9b": 3865326978},
    "megatron_gpt2": {"355m": 355788800, "2.5b": 2490408960, "8.3b": 8317040640},
    "llama": {"7b": 6738415616, "13b": 13015864320, "33b": 32528943616, "65b": 65285660672},
    "llama2": {"7b": 6738415616, "13b": 13015864320, "70b": 68976648192},
    "llama3": {"1b": 1235814400, "3b": 3212749824, "8b": 8030261248, "70b": 70553706496, "405b": 405853388800},
    "bloom": {"560m": 559214592, "1b1": 1065314304, "1b7": 1722408960, "3b": 3002557440, "7b1": 7069016064,
              "176b": 176247271424},
    "t5": {"small": 60506624, "base": 222903552, "large": 737668096, "3b": 2851598336, "11b": 11307321344},
    "t5_v1_1": {"small": 76961152, "base": 247577856, "large": 783150080, "xl": 2849757184, "xxl": 11135332352},
    "bart": {"base": 139420416, "large": 406291456},
    "pegasus": {"base": 272285952, "large": 568699904},  # transformers counts its fixed sinusoids as well
    "vit": {"b16": 86567656, "b32": 88224232, "l16": 304326632, "l32": 306535400, "h14": 632045800},
    "clip": {"b32": 151277313, "b16": 149620737, "l14": 427616513},
    "s2t": {"small": 29536256, "medium": 71207936, "large": 267834368},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    assert {size: size_of(name, size) for size in PUBLISHED[name]} == PUBLISHED[name]


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def layer(width: int, inner: int, attentions: int = 1) -> int:
    norms = 2 * width * (attentions + 1)
    return attentions * 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + norms


def gates(width: int, units: int, count: int = 4) -> int:
    return count * units * (width + units + 2)  # torch keeps two biases


BASE, LARGE = 12 * layer(768, 3072), 24 * layer(1024, 4096)
BY_HAND = {
    # patches, class, mask vector, positions, final norm; then a head over 8192 codes
    "beit": {"base": (769 + 2 + 197) * 768 + BASE + 1536 + linear(768, 768) + 1536 + linear(768, 8192),
             "large": (769 + 2 + 197) * 1024 + LARGE + 2048 + linear(1024, 1024) + 2048 + linear(1024, 8192)},
    "dalle": {"base": (22152 + 512 + 2) * 768 + 1536 + BASE},
    "talk2face": {"base": (22152 + 1024 + 2) * 768 + 1536 + BASE},
    "transformer_nmt": {"base": 37000 * 512 + 6 * (layer(512, 2048) + layer(512, 2048, 2)),
                        "big": 37000 * 1024 + 6 * (layer(1024, 4096) + layer(1024, 4096, 2))},
    # words, kinds, patches of 32 x 32, class, positions, final norm; the heads of words and of matching
    "vilt": {"base": (30522 + 2) * 768 + linear(3 * 32 * 32, 768) + (1 + 185) * 768 + BASE + 1536
                     + linear(768, 768) + 1536 + 30522 + linear(768, 768) + linear(768, 2)},
    "sbert": {"base": (30522 + 512 + 2) * 768 + 1536 + BASE, "large": (30522 + 512 + 2) * 1024 + 2048 + LARGE},
    "siamese_lstm": {"base": 21128 * 512 + 2 * gates(512, 512)},
    # projection of the words, two directions of two layers, one softmax over 768
    "elmo": {"base": 21128 * 512 + linear(512, 1536) + 2 * (gates(1536, 768) + gates(768, 768)) + linear(768, 21128)},
    "lstm": {"base": 21128 * 512 + 2 * gates(512, 512) + 512 * 21128},
    "gru": {"base": 21128 * 512 + 2 * gates(512, 512, 3) + 512 * 21128},
    "gated_cnn": {"gcnn9": 21128 * 128 + linear(128, 807) + 9 * linear(4 * 807, 2 * 807) + 807 * 21128,
                  "gcnn13": 21128 * 128 + linear(128, 1268) + 13 * linear(4 * 1268, 2 * 1268) + 1268 * 21128},
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_sizes_by_hand(name):
    assert {size: size_of(name, size) for size in BY_HAND[name]} == BY_HAND[name]


def test_every_size_is_counted():
    counted = PUBLISHED | BY_HAND
    assert {name: {*sizes, "nano"} for name, sizes in counted.items()} == {
        name: set(size_names(name)) for name in recipe_names()
    }


def test_what_transformers_has_is_named_as_its_folder_is():
    families = {name: read_recipe(name).transformers for name in recipe_names()}
    assert {family for family in families.values() if family} <= set(names("components.pretrained"))
    assert all(families[name] for name in PUBLISHED)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_names_a_processor_or_is_for_fine_tuning(name):
    for size in [None, *size_names(name)]:
        processor = read_recipe(name, size).processor
        assert len(processor) == (name not in ("sbert", "siamese_lstm"))
        for each, settings in processor.items():
            assert settings.items() <= processors.settings(each, settings).items()


LLAMA3 = {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
SIX = {f"{stack}_{name}": value for stack in ("encoder", "decoder")
       for name, value in {"layers": 6, "ffn_dim": 3072, "attention_heads": 12}.items()}  # fmt: skip
REFERENCES = {
    ("bert", "base"): lambda t: t.BertForPreTraining(t.BertConfig()),
    ("roberta", "base"): lambda t: t.RobertaForMaskedLM(t.RobertaConfig(**ROBERTA)),
    ("albert", "xxlarge"): lambda t: t.AlbertForPreTraining(t.AlbertConfig()),
    ("gpt2", "base"): lambda t: t.GPT2LMHeadModel(t.GPT2Config()),
    ("megatron_bert", "345m"): lambda t: t.MegatronBertForPreTraining(t.MegatronBertConfig()),
    ("llama", "7b"): lambda t: t.LlamaForCausalLM(t.LlamaConfig()),
    ("llama3", "8b"): lambda t: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA3)),
    ("bloom", "560m"): lambda t: t.BloomForCausalLM(t.BloomConfig(hidden_size=1024, n_layer=24, n_head=16)),
    ("t5", "small"): lambda t: t.T5ForConditionalGeneration(t.T5Config()),
    ("bart", "base"): lambda t: t.BartForConditionalGeneration(t.BartConfig(d_model=768, **SIX)),
    ("vit", "b16"): lambda t: t.ViTForImageClassification(t.ViTConfig(num_labels=1000)),
    ("clip", "b32"): lambda t: t.CLIPModel(t.CLIPConfig()),
    ("s2t", "small"): lambda t: t.Speech2TextForConditionalGeneration(t.Speech2TextConfig()),
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), REFERENCES)
def test_sizes_are_those_of_transformers(name, size):
    with torch.device("meta"):
        theirs = REFERENCES[name, size](transformers)
    assert count(theirs) == PUBLISHED[name][size]


def test_t5_v1_1_has_a_head_of_its_own():
    """transformers 5 ties what it builds anew, whatever the config says, and unties on loading."""
    sizes = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu"}
    with torch.device("meta"):
        theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    assert count(theirs) + 32128 * 768 == PUBLISHED["t5_v1_1"]["base"]


def test_pegasus_without_transformers_sinusoids():
    with torch.device("meta"):
        stacks = {f"{stack}_layers": 16 for stack in ("encoder", "decoder")}
        theirs = transformers.PegasusModel(transformers.PegasusConfig(vocab_size=96103, **stacks))
    assert count(theirs) - 2 * 1024 * 1024 == PUBLISHED["pegasus"]["large"]


@pytest.mark.parametrize("name", recipe_names())
def test_norms_are_one_and_biases_zero(name):
    torch.manual_seed(0)
    model = assemble(read_recipe(name, "nano").model)
    norms = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in [m.weight]}
    assert norms or name in ("elmo", "lstm", "gru", "gated_cnn", "siamese_lstm")
    for key, value in model.named_parameters():
        if "bias" in key:
            assert not value.any(), key
        elif id(value) in norms:
            assert (value == 1).all(), key
        elif value.numel() > 500:
            assert value.std().item() == pytest.approx(0.02, rel=0.15), key


TIED = {
    "bert": [("embedding.word.weight", "targets.mlm.head.weight")],
    "gpt2": [("embedding.word.weight", "targets.lm.head.weight")],
    "llama": [],
    "t5": [
        ("embedding.word.weight", "target_embedding.word.weight"),
        ("embedding.word.weight", "targets.lm.head.weight"),
    ],
    "t5_v1_1": [("embedding.word.weight", "target_embedding.word.weight")],
    "vilt": [("embedding.word_patch.weight", "targets.mlm.head.weight")],
}


@pytest.mark.parametrize("name", TIED)
def test_tied_parameters_share_storage(name):
    model = assemble(read_recipe(name, "nano").model)
    assert sorted(model.tied()) == sorted(TIED[name])
    for one, other in model.tied():
        assert model.get_parameter(one).data_ptr() == model.get_parameter(other).data_ptr()


def test_tied_streams_are_one_model():
    model = assemble(read_recipe("sbert", "nano").model)
    assert model.embedding.dual.first is model.embedding.dual.second
    assert model.encoder.first is model.encoder.second


ILLEGAL = {
    "bilm without two directions": ("elmo", {"encoder": {"lstm": {}}}, "bilm"),
    "bilm over a transformer": ("elmo", {"encoder": {"transformer": {"layers": 1, "heads": 2}}}, "bilm"),
    "clr without two streams": ("bert", {"target": {"clr": {}}}, "clr"),
    "decoder without target_embedding": ("t5", {"target_embedding": None}, "target_embedding"),
    "target_embedding without decoder": ("t5", {"decoder": None}, "decoder"),
    "heads that do not divide": ("bert", {"encoder": {"transformer": {"heads": 3}}}, "heads"),
    "key heads that do not divide": ("llama3", {"encoder": {"transformer": {"kv_heads": 3}}}, "kv_heads"),
    "an odd width for two directions": ("elmo", {"width": 63}, "odd"),
    "lm that sees the answer": ("bert", {"target": {"lm": {}, "mlm": None, "sp": None}}, "lm"),
    "lm over two directions": ("lstm", {"encoder": {"bilstm": {}}}, "lm"),
    "mlm over two streams": ("clip", {"target": {"mlm": {}}}, "mlm"),
    "patches that do not divide": ("vit", {"embedding": {"patch": {"size": 5}}}, "divide"),
    "an even kernel": ("s2t", {"embedding": {"speech": {"kernels": [4, 5]}}}, "odd kernels"),
    "tied streams with a second one": ("sbert", {"encoder": {"dual": {"second": {"lstm": {}}}}}, "tied"),
    "a stream that is missing": ("clip", {"encoder": {"dual": {"second": None}}}, "second"),
    "widths that cannot meet": ("clip", {"target": {"clr": {"features": None}}}, None),
    "an unknown pool": ("clip", {"target": {"clr": {"pools": ["last", "frist"]}}}, "frist"),
    "three widths": ("clip", {"widths": [64, 32, 16]}, "widths"),
}


@pytest.mark.parametrize("what", ILLEGAL)
def test_illegal_combinations_are_refused_when_built(what):
    name, overrides, named = ILLEGAL[what]
    recipe = read_recipe(name, "nano", overrides).model
    with pytest.raises(ValueError, match=named), torch.device("meta"):
        assemble(recipe)
