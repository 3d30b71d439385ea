"""LLaMA-E: rows, loss, mixture, prompt and chat template by hand; labels that nothing but a label can come out of."""

import math

import jinja2
import pytest
import torch

from models import build
from models.language._trie import Trie, search
from models.language.llama_e import FEATURES, PRESETS, LlamaE, answer_loss, missing, row, same_on_both_sides

END = 0
LABELS = {"shoes": [5], "shoes > boots": [5, 6, 7], "shoes > heels": [5, 6, 8], "bags": [9]}


def knowing(vocabulary: int, *wanted: tuple[int, ...]):
    """A step whose row r would say wanted[r], and prefers ids that are no label's before anything else of a label."""

    def step(rows, paths):
        logits = torch.zeros(len(rows), vocabulary)
        logits[:, -1] = 50.0  # never allowed
        for place, (number, path) in enumerate(zip(rows, paths, strict=True)):
            answer = (*wanted[number], END)
            if tuple(path) == answer[: len(path)] and len(path) < len(answer):
                logits[place, answer[len(path)]] = 10.0
        return logits

    return step


# ---------------------------------------------------------------- the method


def test_rows_learn_the_answer_and_its_end_alone():
    assert row([7, 8], [9, 4], 1, 2, 16) == {"ids": [1, 7, 8, 9, 4], "labels_lm": [-100, -100, 9, 4, 2]}
    assert row([7, 8], [9, 4], None, 2, 4) == {"ids": [7, 8, 9, 4], "labels_lm": [-100, 9, 4, 2]}
    assert row([7, 8], [9, 4], 1, 2, 4) is None and row([7], [], 1, 2, 16) is None  # an answer never loses its end


def test_loss_by_hand_on_rows_of_unequal_length():
    # Answers of one and of three tokens: ln 2 at the first, ln 4 at each of the others, over four tokens in all.
    logits = torch.zeros(2, 4, 4)
    logits[0, 1] = torch.tensor([math.log(3.0), 0.0, 0.0, 0.0])  # 3 / 6
    label = torch.tensor([[-100, 0, -100, -100], [-100, 3, 1, 2]])
    wanted = (math.log(2) + 3 * math.log(4)) / 4
    assert answer_loss(logits, label).item() == pytest.approx(wanted)
    other = logits.clone()
    other[:, 0] = torch.randn(2, 4)  # what a prompt's place says, and what its token is, counts for nothing
    assert answer_loss(other, label).item() == pytest.approx(wanted)
    logits.requires_grad_()
    answer_loss(logits, label).backward()
    assert logits.grad[label == -100].abs().max() == 0 and (logits.grad[label != -100].abs().sum(-1) > 0).all()


def test_presets_and_sizes():
    plain, strong = (LlamaE(**PRESETS[name]) for name in ("llama_e", "ecellm"))
    assert (plain.rank, plain.alpha, plain.dropout, plain.layers, plain.head) == (8, 16, 0.05, "attention", False)
    assert (strong.rank, strong.alpha, strong.dropout, strong.layers, strong.head) == (16, 16, 0.1, "all", True)
    assert plain.trained([(4096, 4096)] * 128) == 8_388_608
    assert plain.trained([(32, 16)]) == 8 * 48  # keys of a model with fewer heads for them
    assert isinstance(build("language", "llama_e", rank=4), LlamaE)
    for wrong in ({"rank": 0}, {"dropout": 1.0}, {"tau": 2}, {"layers": "some"}):
        with pytest.raises(ValueError, match="got"):
            LlamaE(**wrong)


def test_tasks_are_drawn_by_the_root_of_their_rows():
    assert LlamaE().shares({"ads": 400, "qa": 100}) == pytest.approx({"ads": 2 / 3, "qa": 1 / 3})
    assert LlamaE(tau=0).shares({"ads": 400, "qa": 100}) == {"ads": 0.5, "qa": 0.5}
    assert LlamaE(tau=1).shares({"ads": 300, "qa": 100}) == {"ads": 0.75, "qa": 0.25}


@pytest.mark.parametrize("preamble", ["", "It's a task:\n\n"])
@pytest.mark.parametrize("given", ["", "a 'lamp'\nof brass {{ 7 }}"])
def test_the_chat_template_writes_the_prompt(preamble, given):
    method = LlamaE(preamble=preamble)
    template = jinja2.Environment(keep_trailing_newline=True).from_string(method.chat_template("<s>", "</s>"))
    asked = [{"role": "user", "content": method.asked("Sell it.", given)}]
    begun = template.render(messages=asked, add_generation_prompt=True)
    assert begun == "<s>" + method.prompt("Sell it.", given)
    whole = template.render(messages=[*asked, {"role": "assistant", "content": "Buy!"}])
    assert whole.startswith(begun) and whole[len(begun) :].strip() == "Buy!</s>"


def test_interleaving():
    rows = [
        ("ads", ["title", "attributes", "brand"], "ad"),
        ("title", ["ad", "query"], "title"),
        ("title", ["intent"], "query"),
        ("classification", ["title"], "category"),
        ("intent", ["category"], "intent"),
        ("classification", ["title"], "brand"),
        ("classification", ["ad"], "attributes"),
    ]
    assert missing(rows) == {"presented": [], "required": []}
    assert missing(rows[:2]) == {
        "presented": ["category", "intent"], "required": ["query", "category", "brand", "attributes", "intent"],
    }  # fmt: skip
    assert missing([("qa", list(FEATURES), "answer")])["presented"] == list(FEATURES)  # they are excepted
    assert same_on_both_sides({"title": "a "}, "title", "a") and not same_on_both_sides({"title": "a"}, "title", "b a")
    assert not same_on_both_sides({"query": "a"}, "title", "a")


# ---------------------------------------------------------------- labels


def test_a_label_that_begins_another_is_a_label_of_its_own():
    trie = Trie(LABELS, END)
    assert trie.allowed([]) == [5, 9] and trie.allowed([5]) == [END, 6] and trie.allowed([5, 6]) == [7, 8]
    assert trie.allowed([9, END]) == [] and trie.label([5, END]) == "shoes" and trie.label([5, 6, END]) is None
    said = search(trie, knowing(12, (5,), (5, 6, 8), (9,)), 3)
    assert [label for label, _ in said] == ["shoes", "shoes > heels", "bags"]


def test_only_labels_come_out_whatever_the_model_says():
    trie = Trie(LABELS, END)
    torch.manual_seed(0)
    for _ in range(20):
        logits = torch.randn(4, 12) * 5
        step = lambda rows, paths, logits=logits: logits[[len(path) % 4 for path in paths]]
        assert all(label in LABELS for label, _ in search(trie, step, 5, beams=2))


def test_a_model_that_knows_nothing_gives_the_first_label_always():
    uniform = lambda rows, paths: torch.full((len(rows), 12), 3.0)
    said = search(Trie(LABELS, END), uniform, 2, beams=4)
    assert [label for label, _ in said] == ["bags", "bags"]
    assert said[0][1] == pytest.approx(-math.log(12))  # every token of every label costs the same


def test_scores_by_hand_and_every_label_with_enough_beams():
    # "b" begins better, but "a x" is likelier per token: one beam loses it, two find it.
    table = {(): [0.0, 0.4, 0.6, 0.0], (1,): [0.0, 0.0, 0.0, 1.0], (2,): [0.1, 0.0, 0.0, 0.9], (1, 3): [1.0, 0, 0, 0],
             (2, 3): [0.1, 0, 0, 0.9]}  # fmt: skip
    step = lambda rows, paths: torch.tensor([table[tuple(path)] for path in paths]).clamp(min=1e-30).log()
    trie = Trie({"a x": [1, 3], "b x": [2, 3], "b": [2]}, END)
    ((label, value),) = search(trie, step, 1, beams=2)
    assert label == "a x" and value == pytest.approx(math.log(0.4) / 3)
    assert search(trie, step, 1, beams=1)[0][0] == "b x"
    assert search(trie, step, 1, beams=1)[0][1] == pytest.approx(math.log(0.6 * 0.9 * 0.1) / 3)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, "no label"),
        ({"a": []}, "'a' has no tokens"),
        ({"a": [3, END]}, "'a' has its end inside"),
        ({"a": [3], "b": [3]}, "'a' and 'b' have the same tokens"),
    ],
)
def test_labels_that_cannot_be_told_apart(labels, words):
    with pytest.raises(ValueError, match=words):
        Trie(labels, END)


def test_a_search_needs_a_beam():
    with pytest.raises(ValueError, match="beams is 0"):
        search(Trie(LABELS, END), knowing(12, (5,)), 1, beams=0)
