"""Recipes: what merges, what replaces, what is refused, and one hash for one description."""

import pytest
import yaml

from tasks import recipes
from tasks.recipes import RecipeError, parse_overrides, read_recipe, recipe_names, size_names


def test_all_families_have_a_recipe():
    families = """bert roberta xlm_roberta albert gpt2 megatron_bert megatron_gpt2 llama llama2 llama3 bloom t5
        t5_v1_1 bart pegasus transformer_nmt elmo lstm gru gated_cnn sbert siamese_lstm vit beit vilt clip dalle
        talk2face s2t"""
    assert set(families.split()) <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_where_it_is_from(name):
    text = (recipes.FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ") and ("\n# Source: " in text or "arXiv:" in text.splitlines()[0])
    assert "nano" in size_names(name)
    assert max(map(len, text.splitlines())) <= 120


def test_a_size_is_merged_over_the_model():
    recipe = read_recipe("bert", "tiny")
    assert recipe.model["width"] == 128 and recipe.model["vocabulary"] == 30522
    assert recipe.model["encoder"] == {"transformer": {"layers": 2, "heads": 2, "inner": 512}}
    assert list(recipe.model["embedding"]) == ["word", "position", "segment"]
    assert recipe.processor == {"bert": {}} and recipe.transformers == "bert"


def test_overrides_are_merged_over_the_size():
    nested = read_recipe("bert", "tiny", {"encoder": {"transformer": {"layers": 3}}, "dropout": 0.0})
    dotted = read_recipe("bert", "tiny", {"encoder.transformer.layers": 3, "dropout": 0.0})
    words = read_recipe("bert", "tiny", ["encoder.transformer.layers=3", "--dropout", "0.0"])
    assert nested == dotted == words
    assert nested.model["encoder"]["transformer"] == {"layers": 3, "heads": 2, "inner": 512}


def test_another_encoder_replaces_the_first():
    assert read_recipe("gpt2", None, {"encoder": {"lstm": {}}}).model["encoder"] == {"lstm": {}}
    assert read_recipe("gpt2", None, ["encoder.lstm.layers=3"]).model["encoder"] == {"lstm": {"layers": 3}}
    assert read_recipe("gpt2", None, ["encoder.lstm={}"]).model["encoder"] == {"lstm": {}}
    assert read_recipe("bert", None, {"processor": {"albert": {}}}).processor == {"albert": {}}


def test_another_encoder_replaces_that_of_a_stream():
    dual = read_recipe("clip", "nano", {"encoder": {"dual": {"first": {"gru": {}}}}}).model["encoder"]["dual"]
    assert dual["first"] == {"gru": {}} and set(dual["second"]) == {"transformer"}


def test_a_fact_may_be_one_of_a_stream():
    assert read_recipe("clip", "nano", ["norm=rms"]).model["norm"] == "rms"
    with pytest.raises(RecipeError, match="no encoder 'transformr'; closest: transformer"):
        read_recipe("clip", "nano", {"encoder": {"dual": {"first": {"transformr": {}}}}})


def test_parts_of_a_sum_stand_beside_each_other_and_null_takes_one_out():
    changed = read_recipe("bert", None, {"embedding": {"segment": None, "sinusoidal": {}}, "target": {"sp": None}})
    assert list(changed.model["embedding"]) == ["word", "position", "sinusoidal"]
    assert changed.model["target"] == {"mlm": {}}


def test_processor_settings_are_not_the_models():
    recipe = read_recipe("bert", "tiny", ["processor.bert.short=0.2", "--dropout=0.3"])
    assert recipe.processor == {"bert": {"short": 0.2}}
    assert recipe.model["dropout"] == 0.3 and "processor" not in recipe.model


def test_the_tokenizer_sets_the_vocabulary_where_words_are_read():
    assert read_recipe("bert", "nano", vocabulary=77).model["vocabulary"] == 77
    assert "vocabulary" not in read_recipe("vit", "nano", vocabulary=77).model


def test_codes_of_images_stand_behind_the_words():
    assert read_recipe("dalle", "nano", vocabulary=77).model["vocabulary"] == 77 + 1024
    assert read_recipe("dalle", "nano", {"processor.dalle.codes": 16}, vocabulary=77).model["vocabulary"] == 77 + 16
    assert read_recipe("sbert", "nano", vocabulary=77).model["vocabulary"] == 77


def test_a_size_may_change_the_processor():
    assert read_recipe("vilt").processor == {"vilt": {"patch": 32, "size": 384}}
    small = read_recipe("vilt", "nano")
    assert small.processor == {"vilt": {"patch": 8, "size": 32}} and "processor" not in small.model


def test_one_reading_leaves_nothing_to_the_next():
    first = read_recipe("bert")
    first.model["encoder"]["transformer"]["layers"] = 99
    assert read_recipe("bert").model["encoder"]["transformer"]["layers"] == 12


def test_a_digest_is_of_the_description_alone():
    base = read_recipe("bert", "base")
    assert base.digest == read_recipe("bert").digest == read_recipe("bert", None, {"dropout": 0.1}).digest
    assert len(base.digest) == 64
    others = [read_recipe("bert", "tiny"), read_recipe("bert", None, {"dropout": 0.2}), read_recipe("megatron_bert")]
    others += [read_recipe("bert", None, {"processor": {"bert": {"short": 0.2}}}), read_recipe("bert", vocabulary=7)]
    assert len({base.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_a_digest_does_not_depend_on_the_order_of_keys(tmp_path, monkeypatch):
    file = yaml.safe_load((recipes.FOLDER / "bert.yaml").read_text())
    (tmp_path / "bert.yaml").write_text(yaml.safe_dump(file, sort_keys=True))
    known = read_recipe("bert").digest
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    assert read_recipe("bert").digest == known


@pytest.mark.parametrize("words", [["--dropout", "0.5"], ["--dropout=0.5"], ["dropout=0.5"]])
def test_all_forms_of_a_flag_mean_the_same(words):
    assert parse_overrides(words) == {"dropout": 0.5}


def test_values_are_what_yaml_says_and_1e_6_is_a_number():
    given = parse_overrides(
        ["a=true", "b=null", "c=[1, 2]", "d=text", "e=1e-6", "f=3", "g=", "h.i={j: 1}", "--k", "-1"]
    )
    assert given == {
        "a": True, "b": None, "c": [1, 2], "d": "text", "e": 1e-6, "f": 3, "g": None, "h": {"i": {"j": 1}}, "k": -1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dropout"], "--dropout has no value"),
        (["--dropout", "--eps=1"], "--dropout has no value"),
        (["large"], "'large' has no key"),
        (["=3"], "no key before"),
        (["dropout=1", "--dropout", "2"], "given twice"),
        (["encoder=1", "encoder.lstm={}"], "encoder"),
    ],
)
def test_words_that_say_nothing_are_refused(words, message):
    with pytest.raises(RecipeError, match=message):
        parse_overrides(words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("brt",), "no recipe 'brt'; closest: bert"),
        (("../bert",), "no recipe"),
        (("bert", "tinny"), "no size 'tinny'; closest: tiny"),
        (("bert", None, {"droput": 0}), "no key 'droput'; closest: dropout"),
        (("bert", None, {"encodr": {"lstm": {}}}), "no key 'encodr'; closest: encoder"),
        (("bert", None, {"encoder": {"lsmt": {}}}), "no encoder 'lsmt'; closest: lstm"),
        (("bert", None, {"encoder.transformer.layrs": 3}), "no setting 'layrs'; closest: layers"),
        (("bert", None, {"encoder": "lstm"}), "encoder is a part with its settings"),
        (("bert", None, {"eps": "1e-12"}), "eps is the text '1e-12'"),
        (("bert", None, {"target.mlm.eps": "1e-5"}), "target.mlm.eps"),
    ],
)
def test_what_is_unknown_is_refused_with_the_closest_name(arguments, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(*arguments)


def test_an_unknown_key_of_a_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("modle: {}\n")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    with pytest.raises(RecipeError, match="no key 'modle'; closest: model"):
        read_recipe("mine")


def test_the_command_prints_the_recipe_and_its_size(capsys):
    recipes.main("bert", "tiny", "--dropout=0.0", "encoder.transformer.layers=1")
    printed = capsys.readouterr().out
    shown = yaml.safe_load("\n".join(printed.splitlines()[:-1]))
    assert shown["model"]["encoder"]["transformer"]["layers"] == 1
    # 4433468 less one of two layers: 12 d^2 + 13 d at d = 128
    assert printed.splitlines()[-1].startswith(f"bert tiny: {4433468 - 12 * 128**2 - 13 * 128} parameters, digest ")
