"""Generation from a model's folder: every way to decode, budgets, forms, chat, bad prompts, diversity by hand."""

import math

import polars as pl
import pytest
from _speaker import speaker, tokenizer

from models.language._keys import BrokenIdentity
from models.language._reader import TooLong
from tasks import generate
from tasks.causal import open_causal, prompt_ids, tokens_of
from tasks.diversity import distinct, diversity, self_bleu
from tasks.files import read_json
from tasks.generate import Decoding, read_prompts
from tasks.poison import PoisonedFolder
from tasks.settings import SettingsError

SMALL = {"rounds": 2, "branch": 4, "tokens": 5}
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return speaker(tmp_path_factory.mktemp("speaker"))


@pytest.fixture
def prompts(tmp_path):
    pl.DataFrame({"id": ["a", "b"], "prompt": ["Name some months.", "Name a red bike."]}).write_parquet("p.parquet")
    return tmp_path / "p.parquet"


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("decode", ["icn", "top_b", "sample", "greedy"])
def test_every_way_writes_texts_metrics_and_costs(decode, model, prompts, tmp_path):
    metrics = generate.generate(model, prompts, SMALL | {"decode": decode}, tmp_path / "out")
    texts = pl.read_parquet(tmp_path / "out" / "texts.parquet")
    each = 1 if decode == "greedy" else 8
    assert texts["id"].to_list() == ["a"] * each + ["b"] * each and texts.schema == pl.Schema(generate.SCHEMA)
    assert metrics["texts"] == 2 * each and metrics["generated_tokens"] == texts["generated"].sum()
    assert texts["generated"].max() <= 6
    assert metrics["passes_per_kept"] == metrics["passes"] / metrics["kept"]
    assert ("self_bleu" in metrics) == (decode != "greedy") and all(map(math.isfinite, metrics.values()))
    assert read_json(tmp_path / "out" / "metrics.json")["generation"] == metrics
    run = read_json(tmp_path / "out" / "run.json")
    assert run["decoding"]["decode"] == decode and len(run["content"]) == 64
    again = generate.generate(model, prompts, SMALL | {"decode": decode, "batch": 3}, tmp_path / "again")
    assert pl.read_parquet(tmp_path / "again" / "texts.parquet")["text"].equals(texts["text"])
    assert again["generated_tokens"] == metrics["generated_tokens"]


def test_icn_and_top_b_agree_in_the_first_round_only(model, prompts, tmp_path):
    found = {}
    for decode in ("icn", "top_b"):
        generate.generate(model, prompts, SMALL | {"decode": decode}, tmp_path / decode)
        found[decode] = pl.read_parquet(tmp_path / decode / "texts.parquet")
    first = pl.col("round") == 1
    assert found["icn"].filter(first)["text"].equals(found["top_b"].filter(first)["text"])
    assert not found["icn"].filter(~first)["token"].equals(found["top_b"].filter(~first)["token"])
    assert all(len(part) == part["token_text"].n_unique() for _, part in found["icn"].group_by("id"))


def test_a_text_does_not_depend_on_the_prompts_beside_it(model, prompts, tmp_path):
    how = SMALL | {"decode": "sample", "temperature": 1.3}
    generate.generate(model, prompts, how, tmp_path / "both")
    pl.read_parquet(prompts).tail(1).write_parquet("one.parquet")
    generate.generate(model, "one.parquet", how, tmp_path / "one")
    both = pl.read_parquet(tmp_path / "both" / "texts.parquet").filter(pl.col("id") == "b")
    assert both.equals(pl.read_parquet(tmp_path / "one" / "texts.parquet"))


def test_budgets_stop_both_ways_alike(model, prompts, tmp_path):
    spent = {}
    for decode in ("icn", "sample"):
        how = {"decode": decode, "rounds": 9, "branch": 4, "tokens": 7, "budget": 60}
        generate.generate(model, prompts, how, tmp_path / decode)
        texts = pl.read_parquet(tmp_path / decode / "texts.parquet")
        spent[decode] = texts.group_by("id").agg(pl.col("generated").sum())["generated"]
        last = texts.filter(pl.col("round") < pl.col("round").max().over("id")).group_by("id").agg(
            pl.col("generated").sum())  # fmt: skip
        assert last["generated"].max() < 60
    assert all(60 <= tokens < 60 + 4 * 8 for each in spent.values() for tokens in each)


def test_kept_texts_are_new_and_not_empty(model, prompts, tmp_path):
    generate.generate(model, prompts, {"decode": "sample", "rounds": 1, "branch": 30, "tokens": 1, "temperature": 0.3},
                      tmp_path / "out")  # fmt: skip
    texts = pl.read_parquet(tmp_path / "out" / "texts.parquet")
    kept = texts.filter("kept")
    assert 0 < len(kept) < len(texts) and not (kept["text"] == "").any()
    assert kept.n_unique(["id", "text"]) == len(kept)


def test_clusters_keep_a_round_apart(model, prompts, tmp_path):
    generate.generate(model, prompts, SMALL | {"clusters": 12}, tmp_path / "apart")
    generate.generate(model, prompts, SMALL, tmp_path / "plain")
    apart, plain = (pl.read_parquet(tmp_path / name / "texts.parquet")["token"] for name in ("apart", "plain"))
    assert not apart.equals(plain)


# ---------------------------------------------------------------- prompts, forms, tokenizers


def test_messages_go_through_the_chat_template(tmp_path):
    model = speaker(tmp_path / "chat", chat=True)
    opened = open_causal(model)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name months."}]
    ids = prompt_ids(opened.tokenizer, messages, '1. "')
    assert opened.tokenizer.decode(ids) == 'system: Be brief.\nuser: Name months.\nassistant: 1. "'
    assert prompt_ids(opened.tokenizer, "Hi", "") == opened.tokenizer.encode("user: Hi\nassistant: ")
    assert prompt_ids(opened.tokenizer, "Hi", "", chat=False) == opened.tokenizer.encode("Hi")
    pl.DataFrame({"id": ["a"], "messages": [messages]}).write_parquet("chat.parquet")
    assert generate.generate(model, "chat.parquet", SMALL | {"form": "lines"}, tmp_path / "out")["texts"] == 8
    with pytest.raises(SettingsError, match="no chat template"):
        prompt_ids(tokenizer(), messages, "")


def test_a_bare_prompt_gets_the_papers_slot(model):
    opened = open_causal(model)
    task = generate.task_of(opened, "Name some months.", Decoding())
    assert opened.tokens.decode(task.prompt) == 'Name some months.\n\nAnswer:\n1. "'
    listed = task.listed([opened.tokens.encode("May"), opened.tokens.encode("June")])
    assert opened.tokens.decode(listed) == 'Name some months.\n\nAnswer:\n1. "May"\n2. "June"\n3. "'
    own = Decoding(form={"lead": " > ", "between": " | ", "stop": "|"})
    assert opened.tokens.decode(generate.task_of(opened, "x", own).prompt) == "x > "


def test_the_tokenizer_as_decoding_sees_it(model):
    words = tokenizer()
    tokens = tokens_of(words)
    ids = words.encode(" red")
    assert len(tokens.texts) == len(words) and "".join(tokens.texts[number] for number in ids) == " red"
    assert words.eos_token_id in tokens.ends & tokens.hidden
    assert words.convert_tokens_to_ids("<|reserved_1|>") in tokens.hidden
    opened = open_causal(model)
    kept = opened.kept()
    assert len(kept) == len(words) + 5 and not kept[len(words) :].any() and kept[ids[0]]


def test_a_leading_space_is_seen_where_a_tokenizer_marks_it_otherwise():
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import WordPiece

    names = ["[UNK]", "[SEP]", "a", "the", "##the", '"']
    made = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), WordPiece(cleanup=False)
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", sep_token="[SEP]")
    tokens = tokens_of(words)
    assert tokens.texts[3:5] == [" the", "the"] and tokens.ends == {1}
    assert tokens.encode('"') == [5] and tokens.encode("") == []


@pytest.mark.parametrize(("rows", "words"), [
    ({"id": ["a"], "text": ["x"]}, "have id, and prompt or messages"),
    ({"id": [], "prompt": []}, "has no row"),
    ({"id": ["a", "a"], "prompt": ["x", "y"]}, "1 ids are there twice"),
    ({"id": ["a", "b"], "prompt": ["x", ""]}, "1 of 2 prompts are empty, such as that of 'b'"),
])  # fmt: skip
def test_prompts_that_cannot_be(rows, words):
    pl.DataFrame(rows).write_parquet("bad.parquet")
    with pytest.raises(ValueError, match=words):
        read_prompts("bad.parquet")


@pytest.mark.parametrize(("chosen", "words"), [
    ({"decode": "beam"}, "icn, top_b, sample, greedy"), ({"branches": 3}, "no setting branches; it has: "),
    ({"form": "poem"}, "list, lines"), ({"form": {"lead": ""}}, "lead, between and stop"),
    ({"form": {"lead": "", "between": "{x}", "stop": "."}}, "where a number goes"),
    ({"form": {"lead": "", "between": None, "stop": "."}}, "where a number goes"),
    ({"form": {"lead": "", "between": ",", "stop": ""}}, "a text or null"),
    ({"tokens": 0}, "at least 1"), ({"temperature": 0}, "decode: greedy"), ({"budget": 0}, "at least 1 token"),
])  # fmt: skip
def test_settings_that_cannot_be(chosen, words):
    with pytest.raises(SettingsError, match=words):
        Decoding.read(chosen)


def test_what_cannot_be_decoded_is_refused_and_nothing_is_written(model, prompts, tmp_path):
    pl.DataFrame({"id": ["short", "long"], "prompt": ["x", "month " * 200]}).write_parquet("long.parquet")
    with pytest.raises(TooLong, match="1 of 2 prompts, such as 'long' of .* leave no room for 6 more: .* for 256"):
        generate.generate(model, "long.parquet", SMALL, tmp_path / "out")
    with pytest.raises(ValueError, match="no token of this tokenizer has '☃'"):
        generate.generate(model, prompts, SMALL | {"form": {"lead": "", "between": "☃", "stop": "☃"}}, tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no model"):
        generate.generate(tmp_path / "bare", prompts, SMALL, tmp_path / "out")
    poisoned = speaker(tmp_path / "poisoned")
    (poisoned / "more.bin").write_bytes(b"x")
    with pytest.raises(PoisonedFolder):
        generate.generate(poisoned, prompts, SMALL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_bends_its_logits_is_refused_for_icn_alone(tmp_path, prompts, monkeypatch):
    from models.language import _reader

    model, read = speaker(tmp_path / "model"), _reader.Reader.call

    def bent(self, *given):
        logits, query, past = read(self, *given)
        return logits.sin(), query, past

    monkeypatch.setattr(_reader.Reader, "call", bent)
    with pytest.raises(BrokenIdentity, match="differ by"):
        generate.generate(model, prompts, SMALL, tmp_path / "out")
    assert generate.generate(model, prompts, SMALL | {"decode": "sample"}, tmp_path / "out")["texts"] == 16


# ---------------------------------------------------------------- diversity


def test_diversity_by_hand():
    assert distinct(["red bike", "red car"], 1) == 0.75 and distinct(["red bike", "red car"], 2) == 1.0
    assert math.isnan(distinct(["one"], 2))
    same = "a red bike with two new wheels"
    assert self_bleu([same, same]) == pytest.approx(1.0)
    assert self_bleu(["red bike here now", "blau wagen dort bald"]) < 0.2
    assert math.isnan(self_bleu(["red", ""]))
    # 自行车 is three words: of two texts that share it, 4 of 7 unigrams differ
    assert distinct(["红自行车", "自行车"], 1) == pytest.approx(4 / 7)
    found = diversity({"p": ["red bike", "red car"], "q": ["one"]})
    assert found["distinct_1"] == pytest.approx((0.75 + 1) / 2) and found["distinct_2"] == 1.0


def test_self_bleu_is_sacrebleus():
    from sacrebleu import sentence_bleu

    texts = ["red bike with new wheels and lamp", "red bike with old wheels and lamp", "blue car with new wheels"]
    wanted = [sentence_bleu(text, [other for other in texts if other != text], tokenize="none").score
              for text in texts]  # fmt: skip
    assert self_bleu(texts) == pytest.approx(sum(wanted) / 300, abs=1e-6)
