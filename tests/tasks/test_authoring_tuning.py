"""Tuning a model to author, by adapters and whole, and what its texts are worth."""

import csv
import json
import shutil

import _authored
import polars as pl
import pytest
import torch

from models.language._causal import Causal
from models.language.llama_e import LlamaE, answer_loss, row
from tasks.authoring._adapter import adapted, check_noop, sizes, targets
from tasks.authoring._author import Author
from tasks.authoring._page import page
from tasks.authoring._score import Known, score
from tasks.authoring.evaluate import Evaluation, evaluate
from tasks.authoring.evaluate import main as evaluate_command
from tasks.authoring.grounding import Lexicon
from tasks.authoring.instruct import frames, instruct, method_of
from tasks.authoring.measures import BM25
from tasks.authoring.records import author_records
from tasks.authoring.write import RequestUnreadable, author_texts, main, read_requests
from tasks.base import base, load_causal, load_tokenizer, model_of
from tasks.causal import prompt_ids
from tasks.files import digest, read_json, write_json
from tasks.generate import read_prompts
from tasks.poison import PoisonedFolder
from tasks.remeasure import remeasure
from tasks.settings import SettingsError

TRAINING = {"batch": 8, "lr": 1.0e-2, "evaluate_rows": 16}
LORA = {
    "x": {
        "from": "continued/zh",
        "length": 192,
        "preamble": "",
        "peft": {"lora": {"dropout": 0.0}},
        "training": TRAINING | {"steps": 6},
    }
}
FULL = {"x": {"length": 192, "preamble": "", "peft": {"full": {}}, "training": TRAINING | {"steps": 24}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records, a base, and it tuned by adapters and whole."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("tasks.slots.FOLDER", folder / "slots")
        authored = _authored.write_records(
            folder, 260, zero={"task": "qa", "categories": 1}, split={"dev": 12, "test": 30}
        )
        base = _authored.write_llama(folder / "base", _authored.texts_of(authored))
        instruct(LORA, "x", base, authored, folder / "lora", folder / "checkpoints")
        instruct(FULL, "x", base, authored, folder / "full", folder / "checkpoints")
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


@torch.no_grad()
def logits(model, ids):
    return model.eval()(input_ids=ids, use_cache=False).logits


IDS = torch.arange(3, 27).view(2, 12)


# ---------------------------------------------------------------- adapters


def test_fresh_adapters_change_nothing_and_are_all_that_learns(made):
    model, method = load_causal(made / "base"), LlamaE(dropout=0.5)
    before = logits(model, IDS)
    tuned = adapted(model, method, "base")
    assert (logits(tuned, IDS) - before).abs().max() == 0
    check_noop(before, tuned, IDS)
    # Two layers; query and output 32 -> 32, key and value 32 -> 16, for two heads share one: grouped, as in LLaMA 3.
    wanted = 2 * 8 * (2 * (32 + 32) + 2 * (32 + 16))
    assert method.trained(sizes(model, targets(load_causal(made / "base"), method))) == wanted == 3584
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == wanted
    loss, _ = Causal(tuned.train())(ids=IDS, labels_lm=IDS)
    loss.backward()
    touched = {name for name, parameter in tuned.named_parameters() if parameter.grad is not None}
    assert touched and all("lora_" in name for name in touched) and len(touched) == 2 * 4 * 2
    with torch.no_grad():
        next(p for name, p in tuned.named_parameters() if "lora_B" in name).fill_(0.1)
    with pytest.raises(SettingsError, match="fresh adapters change the logits by"):
        check_noop(before, tuned, IDS)


def test_merging_computes_the_same_and_can_be_taken_back(made):
    model = load_causal(made / "base")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = adapted(model, LlamaE(), "base")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    apart = logits(tuned, IDS)
    tuned.merge_adapter()
    assert (logits(tuned, IDS) - apart).abs().max() < 1e-5
    tuned.unmerge_adapter()
    for name, value in tuned.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert (value - kept[name.replace(".base_layer", "")]).abs().max() <= 1e-6
    # y = W x + (alpha / rank) B A x, by hand
    layer = tuned.get_base_model().model.layers[0].self_attn.k_proj
    x = torch.randn(3, 32)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), x @ layer.base_layer.weight.T + 16 / 8 * (x @ down.T) @ up.T)


def test_the_adapter_loads_with_peft_and_the_model_without(made):
    from peft import PeftModel

    folder = made / "lora"
    config = read_json(folder / "adapter" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"], config["bias"]) == (8, 16, "none")
    assert config["base_model_name_or_path"] == "continued/zh"  # not a path of this machine
    from safetensors.torch import load_file

    names = set(load_file(folder / "adapter" / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names and len(names) == 16
    again = PeftModel.from_pretrained(load_causal(made / "base"), folder / "adapter")
    whole = load_causal(folder)
    assert (logits(again, IDS) - logits(whole, IDS)).abs().max() < 1e-5
    assert (logits(whole, IDS) - logits(load_causal(made / "base"), IDS)).abs().max() > 1e-3  # it did learn
    told, measured = read_json(folder / "run.json"), read_json(folder / "metrics.json")
    assert told["trained_parameters"] == 3584 and measured["export"]["equal"] and told["steps"] == 6
    assert told["provenance"] == read_json(made / "authored" / "manifest.json")["provenance"]
    assert set(measured["dev"]) >= {"loss", "loss_ads", "loss_title", "loss_classification", "loss_intent"}


def test_the_head_gets_an_adapter_where_it_is_its_own(made, tmp_path):
    method = method_of({"preset": "ecellm"})
    model = load_causal(made / "base")
    assert len(targets(model, method)) == 2 * 7 + 1 and "lm_head" in targets(model, method)
    tuned = adapted(model, method, "base")
    assert method.trained([(32, len(model.get_input_embeddings().weight))]) > 0
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    causal = Causal(tuned)
    loss, _ = causal(ids=IDS, labels_lm=IDS)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for name, p in tuned.named_parameters() if "lora_" in name)
    tied = load_causal(_authored.write_llama(tmp_path / "tied", ["a b c"], tied=True))
    with pytest.raises(SettingsError, match="shares its weight with the embeddings.*set head: false"):
        targets(tied, method)


def test_layers_of_other_families(tmp_path):
    from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2))
    names = targets(gpt2, LlamaE())
    assert names == [f"transformer.h.{n}.attn.{part}" for n in range(2) for part in ("c_attn", "c_proj")]
    assert sizes(gpt2, names[:2]) == [(16, 48), (16, 16)]
    tuned = adapted(gpt2, LlamaE(), "gpt2")
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == 2 * 8 * (16 + 48 + 16 + 16)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2))
    assert targets(bloom, LlamaE()) == [f"transformer.h.0.self_attention.{p}" for p in ("query_key_value", "dense")]
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2))
    for part in gpt2.transformer.h:
        part.attn.c_attn = torch.nn.Identity()
    with pytest.raises(SettingsError, match="no attention layers of a known name.*set layers: all"):
        targets(gpt2, LlamaE())


# ---------------------------------------------------------------- rows


def test_the_tokenizer_writes_the_prompts_it_was_tuned_on(made):
    tokenizer = load_tokenizer(made / "lora" / "model")
    assert digest(made / "base" / "tokenizer.json") == digest(made / "lora" / "model" / "tokenizer.json")
    method = method_of(LORA["x"])
    turns = [{"role": "user", "content": method.asked("Sell it.", "a lamp")}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<s>" + method.prompt("Sell it.", "a lamp")
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "Buy!"}], tokenize=True)
    ids = whole["input_ids"] if not isinstance(whole, list) else whole
    assert tokenizer.eos_token_id in ids and ids[0] == tokenizer.bos_token_id


def test_loss_is_of_answers_alone_and_that_of_the_method(made):
    author = Author(made / "lora", new_tokens=8)
    prompts = [author.prompt("Sell it.", "a red lamp"), author.prompt("Name the brand.", "")]
    outputs = ["Treat yourself to a red lamp today.", "Albora"]
    rows = [row(prompt, author.ids(text), None, author.end, 512) for prompt, text in zip(prompts, outputs, strict=True)]
    longest = max(len(one["ids"]) for one in rows)
    fill = lambda name, value: torch.tensor([one[name] + [value] * (longest - len(one[name])) for one in rows])
    ids, labels = fill("ids", 0), fill("labels_lm", -100)
    mask = torch.arange(longest) < torch.tensor([[len(one["ids"])] for one in rows])
    loss, terms = Causal(author.model)(ids=ids, mask=mask, labels_lm=labels)
    with torch.no_grad():
        wanted = answer_loss(author.model(input_ids=ids, attention_mask=mask.long()).logits, labels)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert author.loss(prompts, outputs) == pytest.approx(wanted.item(), rel=1e-5)
    answers = [len(author.ids(text)) + 1 for text in outputs]
    assert answers[0] != answers[1] and int((labels != -100).sum()) == sum(answers)


def write_rows(folder, rows: list[dict], like) -> None:
    """Records of a split, the missing columns as in another one."""
    frame = pl.read_parquet(like)
    whole = [frame.row(0, named=True) | one for one in rows]
    for split in ("train", "dev"):
        pl.DataFrame(whole, schema=frame.schema).write_parquet(folder / "rows" / f"{split}.parquet")


def test_a_long_input_is_cut_and_never_the_answer(made, tmp_path):
    (tmp_path / "rows").mkdir()
    shutil.copy(made / "authored" / "manifest.json", tmp_path / "manifest.json")
    long = "boots " * 200
    base = {"task": "ads", "instruction": "Sell it.", "input": "boots", "output": "Lovely boots for you."}
    rows = [
        base,
        base | {"input": f"lovely {long}"},  # cut
        base | {"input": f"{long}Albora", "output": "Lovely Albora boots for you."},  # its fact would be cut away
        base | {"output": "Lovely boots. " * 200},  # the answer alone is too long
        base | {"instruction": f"Sell {long}", "input": "boots"},
    ]
    write_rows(tmp_path, rows, made / "authored" / "rows" / "train.parquet")
    tokenizer, method = load_tokenizer(made / "lora" / "model"), LlamaE(preamble="")
    parts, counts = frames(tmp_path, tokenizer, method, 64, None)
    assert counts == {"read": 10, "shortened": 2, "dropped": 6}
    kept = parts["train"]["ads"]
    assert kept["output"].to_list() == ["Lovely boots for you."] * 2 and kept["input"].to_list() == ["", ""]
    cut = kept["instruction"][1].split("### Input:\n")[1]
    assert cut.startswith("lovely boots b") and len(cut) < 200
    for one in kept.iter_rows(named=True):
        text = f"{method.preamble}### Instruction:\n{one['instruction']}\n\n### Response:\n"
        assert len(tokenizer(text)["input_ids"]) + len(tokenizer(one["output"])["input_ids"]) + 2 <= 64
    with pytest.raises(SettingsError, match="no record that fits 8 tokens"):
        frames(tmp_path, tokenizer, method, 8, None)


def test_a_task_without_dev_rows_keeps_some_of_its_own(made):
    parts, _ = frames(made / "authored", load_tokenizer(made / "base"), LlamaE(preamble=""), 192, ["ads", "intent"])
    assert set(parts["train"]) == set(parts["dev"]) == {"ads", "intent"}
    rows = pl.read_parquet(made / "authored" / "rows" / "dev.parquet")
    assert (rows["task"] == "ads").any() and parts["dev"]["intent"].height >= 1
    assert not set(parts["train"]["intent"].rows()) & set(parts["dev"]["intent"].rows())


# ---------------------------------------------------------------- whole tuning and settings


def test_whole_tuning_learns_and_leaves_no_adapter(made):
    told = read_json(made / "full" / "run.json")
    assert told["trained_parameters"] == told["parameters"] and not list((made / "full" / "adapter").iterdir())
    curve = pl.read_csv(made / "full" / "curve.csv")
    assert curve["heldout_loss"][-1] < 0.95 * curve["heldout_loss"][0]
    assert (made / "full" / "curve.png").read_bytes()[:4] == b"\x89PNG" and not (made / "checkpoints").exists()
    counts = {task: report["rows"] for task, report in told["sources"].items()}
    assert told["shares"] == pytest.approx(LlamaE().shares(counts)) and "qa" not in counts  # held out


def test_the_same_run_gives_the_same_weights(made, tmp_path):
    instruct(LORA, "x", made / "base", made / "authored", tmp_path / "again", tmp_path / "checkpoints")
    for part in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert digest(tmp_path / "again" / part) == digest(made / "lora" / part)


def test_weights_that_are_frozen_in_sixteen_bits_stay_as_they_were(made, tmp_path):
    lora = {"dropout": 0.0, "frozen": "bfloat16"}
    settings = {"x": LORA["x"] | {"peft": {"lora": lora}}}
    instruct(settings, "x", made / "base", made / "authored", tmp_path / "out", tmp_path / "checkpoints")
    base, tuned = load_causal(made / "base").state_dict(), load_causal(tmp_path / "out").state_dict()
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert moved == {f"model.layers.{n}.self_attn.{part}_proj.weight" for n in range(2) for part in "qkvo"}


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"preset": "alpaca"}, "preset is one of llama_e, ecellm"),
        ({"peft": {"ia3": {}}}, "peft is"),
        ({"peft": {"lora": {"r": 8}}}, "closest"),
        ({"peft": {"lora": {"frozen": "int8"}}}, "frozen is float32 or bfloat16"),
        ({"peft": {"full": {"rank": 8}}}, "full has no settings"),
        ({"peft": {"lora": {"rank": 0}}}, "rank is at least 1"),
        ({"lenght": 3}, "closest: length"),
        ({"training": {"epochs": 2, "steps": 3}}, "both epochs and steps"),
        ({"training": {"epochs": 0}}, "epochs must be a whole number"),
    ],
)
def test_settings_that_cannot_be(made, tmp_path, chosen, words):
    with pytest.raises((SettingsError, ValueError), match=words):
        instruct({"x": {"length": 192} | chosen}, "x", made / "base", made / "authored", tmp_path / "o", tmp_path / "c")
    assert not (tmp_path / "o").exists()
    with pytest.raises(SettingsError, match="has no 'y'; it has: x"):
        instruct({"x": {}}, "y", made / "base", made / "authored", tmp_path / "o", tmp_path / "c")


# ---------------------------------------------------------------- at work


def test_batches_change_no_text_and_a_long_prompt_gives_none(made):
    texts = []
    rows = pl.read_parquet(made / "authored" / "rows" / "test.parquet").head(5).to_dicts()
    for size in (1, 3):
        author = Author(made / "full", batch=size, new_tokens=12)
        prompts = [author.prompt(one["instruction"], one["input"]) for one in rows]
        texts.append(author.write([*prompts, [5] * 505]))
    assert texts[0] == texts[1] and texts[0][-1] == "" and any(texts[0])
    assert not author.fits([5] * 505)
    labels = read_json(made / "authored" / "manifest.json")["taxonomy"]
    said = [Author(made / "full", batch=size).classify([*prompts, [5] * 600], author.trie(labels)) for size in (1, 4)]
    assert said[0] == said[1] and set(said[0]) <= set(labels)


def test_requests_are_answered_with_what_they_invent(made, tmp_path):
    requests = [
        {"instruction": "Sell it.", "input": "red boots", "id": 7},
        {"instruction": "Where?", "requires": "category"},
    ]
    manifest = read_json(made / "authored" / "manifest.json")
    author = Author(made / "full", new_tokens=12)
    found = author_texts(author, requests, manifest)
    assert [one["id"] for one in found[:1]] == [7] and found[1]["text"] in manifest["taxonomy"] and found[1]["fit"]
    author.write = lambda prompts: ["Lovely blue boots for $9."] * len(prompts)
    (wrong,) = author_texts(author, requests[:1], manifest)
    assert not wrong["fit"] and [one["kind"] for one in wrong["invented"]] == ["colour", "price"]
    author.write = lambda prompts: [""]
    assert not author_texts(author, requests[:1], manifest)[0]["fit"]
    (tmp_path / "in.jsonl").write_text(json.dumps(requests[1]) + "\n")
    main(str(made / "full"), str(made / "authored"), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == found[1]["text"]
    for line, words in (("{", "line 1: no JSON"), ("{}", "an object with an instruction"), ("3", "an object with")):
        (tmp_path / "in.jsonl").write_text(line)
        with pytest.raises(RequestUnreadable, match=words):
            read_requests(tmp_path / "in.jsonl")


def test_other_ways_to_decode_get_the_same_prompts(made):
    prompts = read_prompts(made / "authored" / "prompts.parquet")
    rows = pl.read_parquet(made / "authored" / "rows" / "test.parquet").filter(
        pl.col("requires").is_in(["ad", "title"])
    )
    assert len(prompts) == len(rows) > 0
    author, one = Author(made / "lora"), rows.row(0, named=True)
    assert prompt_ids(author.tokenizer, prompts["prompt"][0], "") == author.prompt(one["instruction"], one["input"])


def test_a_model_from_outside_is_read_in_place(made, tmp_path):
    base(made / "base", tmp_path / "noted")
    assert model_of(tmp_path / "noted") == model_of(made / "base") == made / "base"
    assert model_of(made / "lora") == made / "lora" / "model"
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PoisonedFolder, match="nothing was read"):
        instruct(LORA, "x", tmp_path / "pickled", made / "authored", tmp_path / "out", tmp_path / "checkpoints")


def test_labels_that_the_tokenizer_cannot_tell_apart(made):
    with pytest.raises(ValueError, match="no tokens; the tokenizer cannot write it"):
        Author(made / "full").trie(["boots", ""])


def test_scores_by_hand():
    base = {"requires": "ad", "language": "en", "task": "ads", "instruction": "Sell it.", "input": "black Albora boots",
            "occasion": None, "query": None, "title": "black Albora boots", "brand": "Albora", "related": [],
            "key_facts": [], "heldout_query": None}  # fmt: skip
    title = base | {"requires": "title", "query": "winter boots", "heldout_query": "winter albora",
                    "input": "black Albora boots winter boots", "output": "winter black Albora boots"}  # fmt: skip
    rows = [
        base | {"output": "Lovely black boots for everybody."},
        base | {"output": "Lovely black boots for everybody.", "occasion": "Christmas"},
        base | {"output": "x"},
        title,
        base | {"requires": "category", "output": "shoes > boots"},
        base | {"requires": "intent", "output": "Somebody who walks.", "related": ["bags > Tote", "shoes > Heels"]},
        base | {"requires": "answer", "output": "a b", "key_facts": ["price", "seller"]},
    ]
    texts = ["Lovely black boots for everybody.", "Lovely red Nike boots for everybody.", ""]
    texts += ["winter black Albora boots", "boots", "Likes a tote.", "The price is fair."]
    known = Known(Lexicon(), frozenset({"shoes > boots"}), BM25(["black Albora boots", "winter albora hat"]),
                  {"black Albora boots": 0})  # fmt: skip
    found = score(rows, texts, known)
    assert found["invented"] == 0.2 and found["invented_brand"] == found["invented_colour"] == 0.2
    assert found["grounding"] == pytest.approx(0.6)  # of five: one invents, one says nothing
    assert found["ads_invented"] == pytest.approx(1 / 3) and found["ads_pass"] == pytest.approx(1 / 3)
    assert found["ads_about"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert score(rows[:1], ["Lovely things for everybody."], known)["ads_pass"] == 0  # true, and about nothing
    assert found["ads_occasion"] == 0 and found["empty"] == pytest.approx(1 / 7)
    assert found["title_query_recall"] == 1 and found["title_fact_retention"] == 1 and found["title_changed"] == 1
    assert (found["retrieval_before"], found["retrieval_after"], found["retrieval_gain"]) == (0.5, 0.5, 0.0)
    assert found["free_classification_illegal"] == 1 and found["free_classification_accuracy_1"] == 0
    assert found["intent_overlap"] == 0.5 and found["qa_key_facts"] == 0.5
    assert "title_query_recall" not in score(rows[:1], texts[:1], known) and score([], [], known) == {"empty": 0.0}
    assert score(rows, [None] * 7, known) == {"empty": 0.0}  # a system that has no texts


def test_evaluation(made, tmp_path):
    settings = {"rows": 12, "new_tokens": 20, "shots": 2, "beams": 40}
    found = evaluate(settings, made / "base", made / "full", made / "authored", tmp_path / "out")
    assert read_json(tmp_path / "out" / "metrics.json") == {"evaluation": found}
    assert remeasure(made / "full" / "model", tmp_path / "out").metrics == found  # as a gate asks of a champion
    assert all(isinstance(value, float) for value in found.values())
    wanted = {
        "grounding", "invented", "invented_price", "ads_pass", "ads_self_bleu", "title_query_recall", "retrieval_gain",
        "classification_accuracy_1", "classification_hierarchical_f1", "classification_illegal", "base_grounding",
        "free_classification_illegal", "intent_rouge_l", "shots_invented", "template_ads_pass", "ads_nats",
        "as_is_title_query_recall", "zero_category_grounding", "zero_task_qa_rouge_l", "share_templates",
    }  # fmt: skip
    assert wanted <= set(found)
    assert found["classification_illegal"] == found["zero_category_classification_illegal"] == 0
    assert found["template_invented"] == 0 and found["template_ads_rouge_l"] == pytest.approx(1)
    assert found["as_is_title_rouge_l"] == pytest.approx(1) and found["as_is_retrieval_gain"] == 0
    told = read_json(tmp_path / "out" / "samples.json")
    assert told["teacher_kind"] == "templates" and {one["split"] for one in told["samples"]} == {
        "test", "zero_task", "zero_category"}  # fmt: skip
    invented = [one for one in told["samples"] if one["split"] == "test" and "base" in one["invented"]]
    asked = [one for one in told["samples"] if one["split"] == "test" and one["task"] != "qa"]
    asked = [one for one in asked if not one["job"].endswith(">category")]
    assert found["base_invented"] == pytest.approx(len(invented) / len(asked), abs=1e-5)
    html = (tmp_path / "out" / "page.html").read_text()
    assert "templates, no language model" in html and "<td>ads_pass</td>" in html and "<h2>Texts</h2>" in html
    form = list(csv.DictReader((tmp_path / "out" / "rating.csv").open(encoding="utf-8")))
    assert set(read_json(tmp_path / "out" / "rating_key.json").values()) <= {"tuned", "base", "template"} and form
    assert not any(system in json.dumps(form) for system in ("tuned", "template"))


def test_the_evaluation_as_a_command(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("language: {evaluations: {shop: {rows: 2, new_tokens: 8, shots: 0}}}")
    folders = [str(made / name) for name in ("base", "full", "authored")]
    evaluate_command("params.yaml:language.evaluations.shop", *folders, "out")
    assert "full: " in capsys.readouterr().out and read_json("out/run.json")["what"] == "authoring"


def test_invented_facts_are_marked_on_the_page():
    fact = {"kind": "colour", "text": "Red", "start": 0}
    one = {"split": "test", "instruction": "Sell <it>.", "input": "boots", "reference": "Boots.",
           "texts": {"tuned": "Red boots & more"}, "invented": {"tuned": [fact]}}  # fmt: skip
    told = {"teacher": "t@1", "teacher_kind": "local", "samples": [one]}
    found = {"grounding": 0.5, "base_grounding": 0.25, "share_local": 1.0}
    html = page("x", found, told, ("", "base_"))
    assert "<mark title=colour>Red</mark> boots &amp; more" in html and "Sell &lt;it&gt;." in html
    assert "<td>grounding</td><td class=n>0.5</td><td class=n>0.25</td>" in html and "local 100%" in html


def test_the_judge_is_another(made, tmp_path):
    judge = _authored.write_llama(tmp_path / "judge", ["boots"], seed=5)
    own = {"rows": 4, "new_tokens": 20, "shots": 0}

    def call(judge, data=made / "authored"):
        settings = own | {"judge": str(judge)}
        return evaluate(settings, made / "base", made / "full", data, tmp_path / "out")

    found = call(judge)
    assert found["ads_perplexity"] > 1 and "shots_invented" not in found
    for wrong in (made / "base", made / "full"):
        with pytest.raises(SettingsError, match="the judge must be another one"):
            call(wrong)
    with pytest.raises(SettingsError, match="is no folder"):
        call("absent")
    shutil.copytree(made / "authored", tmp_path / "data")
    manifest = read_json(tmp_path / "data" / "manifest.json")
    write_json(tmp_path / "data" / "manifest.json", manifest | {"teacher_content": digest(judge)})
    with pytest.raises(SettingsError, match="or the teacher"):
        call(judge, tmp_path / "data")


def test_a_model_on_disk_teaches(made, tmp_path):
    writer = {"local": {"folder": str(made / "full"), "licence": "MIT", "new_tokens": 8}}
    chosen = {"writer": writer, "records": 8, "shares": {"classification": 1}, "expand": 1, "languages": ["en"]}
    author_records(chosen, made / "cat", tmp_path / "out", tmp_path / "w")
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["teacher_kind"] == "local" and manifest["teacher_content"] == digest(made / "full" / "model")
    asked = [json.loads(line) for line in (tmp_path / "w" / "wordings.jsonl").read_text().splitlines()]
    assert {one["licence"] for one in asked} == {"MIT"} and all(one["teacher"].startswith("full@") for one in asked)
    settings = {"judge": str(made / "full"), "rows": 2}
    with pytest.raises(SettingsError, match="is the model, its base or the teacher"):
        evaluate(settings, made / "base", made / "lora", tmp_path / "out", tmp_path / "ev")


def test_an_evaluation_without_rows_or_sense(made, tmp_path):
    for chosen, words in (({"row": 3}, "no setting row"), ({"rows": 0, "shots": -1}, "rows must be .*; shots must be")):
        with pytest.raises(SettingsError, match=words):
            Evaluation.read(chosen)
    shutil.copytree(made / "authored", tmp_path / "data")
    empty = pl.read_parquet(tmp_path / "data/rows/test.parquet").head(0)
    empty.write_parquet(tmp_path / "data/rows/test.parquet")
    with pytest.raises(SettingsError, match="has no test row"):
        evaluate({}, made / "base", made / "full", tmp_path / "data", tmp_path / "out")
