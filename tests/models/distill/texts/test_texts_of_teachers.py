"""What teachers write: frames that read back, filters, reasoning without verdicts, the alignment, remembering."""

import math

import pytest
import torch

from models import build, names
from models.components._model import assemble
from models.distill.texts import lifelong, relevance
from models.distill.texts._frames import read_answer
from models.distill.texts.lifelong import Lifelong, Remembering, pseudo
from models.distill.texts.relevance import Relevance, TwoPasses, alignment, without_verdict

SENTENCE = "Ada Lovelace wrote the first program,  in London."
ANSWER = "1. **Entities:** Ada Lovelace, London\nQuestion: Who wrote\nthe program?\n- answer : Ada Lovelace\n"


# ---------------------------------------------------------------- reading


def test_reading_by_hand():
    way = build("distill.texts", "reading")
    values = way.parse(ANSWER)
    assert values == {"Entities": ("Ada Lovelace", "London"), "Question": "Who wrote the program?",
                      "Answer": "Ada Lovelace"}  # fmt: skip
    (lines,) = way.documents(SENTENCE, values).values()
    assert lines == [
        "Ada Lovelace wrote the first program, in London.",
        "Entities: Ada Lovelace; London",
        "Question: Who wrote the program?",
        "Answer: Ada Lovelace",
    ]
    assert way.read(lines) == (lines[0], values)
    assert way.fault(SENTENCE, values, set()) is None


@pytest.mark.parametrize("entities", [(), ("Washington, D.C.",), ("a", "b; c".replace("; ", ", "))])
def test_whatever_is_framed_reads_back(entities):
    values = {"Entities": entities, "Question": "Entities: what?", "Answer": "none"}
    text = "Question: is a text like\nany other? Answer: yes"
    way = build("distill.texts", "reading")
    assert way.read(way.documents(text, values)["reading"]) == (" ".join(text.split()), values)


def test_what_is_no_document_is_refused():
    way = build("distill.texts", "reading")
    with pytest.raises(ValueError, match="a text and 3 lines, got 1"):
        way.read(["text", "Entities: none"])
    with pytest.raises(ValueError, match="must begin with 'Question'"):
        way.read(["text", "Entities: none", "Answer: x", "Question: y"])


def test_each_fault_has_its_name():
    way, seen = build("distill.texts", "reading"), set()
    good = {"Entities": ("London",), "Question": "Where?", "Answer": "there"}
    told = lambda **change: way.fault(SENTENCE, good | change, seen)
    assert way.fault(SENTENCE, None, seen) == "another form" and way.parse("no lines") is None
    assert told(Entities=("Paris",)) == "an entity is not in the text"
    assert told(Question="") == "no question" and told(Answer="") == "no answer"
    assert told() is None and told() == "a question twice" and told(Question="WHERE?") == "a question twice"


def test_an_answer_in_another_form():
    assert read_answer("Entities: none\nQuestion: x", ("Entities", "Question", "Answer")) is None
    assert read_answer("Entities: None.\nAnswer: y", ("Entities", "Answer")) == {"Entities": (), "Answer": "y"}


def test_comprehension_has_two_phases():
    way = build("distill.texts", "comprehension", shortest=5, longest=30)
    values = {"Entities": ("Ada",), "Summary": "She wrote.", "Question": "Who?", "Answer": "Ada"}
    text = "Ada wrote a program long ago, and it was never run."
    documents = way.documents(text, values)
    assert list(documents) == list(way.phases) == ["comprehend", "answer"]
    assert documents["comprehend"] == ["Ada wrote a program long ago,", "Entities: Ada", "Summary: She wrote."]
    assert documents["answer"] == ["Ada wrote a program long ago,", "Question: Who?", "Answer: Ada"]
    for phase, labels in (("comprehend", ("Entities", "Summary")), ("answer", ("Question", "Answer"))):
        assert way.read(documents[phase]) == (documents[phase][0], {label: values[label] for label in labels})
    assert way.fault(text, values | {"Summary": ""}, set()) == "no summary"
    assert way.fault(text, values | {"Entities": ("never",)}, set()) == "an entity is not in the text"  # beyond the cut


@pytest.mark.parametrize("name", ["reading", "comprehension"])
def test_a_prompt_holds_its_text_on_one_line_and_every_label(name):
    way = build("distill.texts", name)
    prompt = way.prompt("two\nlines")
    assert prompt.endswith(": two lines") and all(f"\n{label}: " in prompt for label in way.labels)
    with pytest.raises(ValueError, match="plain"):
        build("distill.texts", name, plain=-1)


def test_the_family():
    assert names("distill.texts") == ["comprehension", "lifelong", "reading", "relevance"]


# ---------------------------------------------------------------- relevance


def test_alignment_by_hand():
    # Two rows at right angles, tau = 1: -log(e / (e + 1)).
    eye = torch.eye(2)
    told = alignment(eye, eye, torch.tensor([0, 1]), torch.tensor([0, 1]), 1.0)
    assert told.tolist() == pytest.approx([math.log(1 + math.exp(-1))] * 2)
    sharp = alignment(torch.eye(4), torch.eye(4), torch.arange(4), torch.arange(4), 0.01)
    assert sharp.max().item() == pytest.approx(0, abs=1e-6)


def test_the_same_query_and_label_is_no_negative():
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    rows[1] = rows[0]
    query, label = torch.tensor([5, 5, 6]), torch.tensor([1, 1, 0])
    told = alignment(rows, rows, label, query, 0.5)
    pair = alignment(rows[[0, 2]], rows[[0, 2]], torch.tensor([1, 0]), torch.tensor([5, 6]), 0.5)
    assert told[0].item() == pytest.approx(pair[0].item())
    assert alignment(rows, rows, torch.tensor([1, 0, 0]), query, 0.5)[0] > told[0]  # another label is one


def test_nothing_flows_through_the_pass_with_reasons():
    plain, rich = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    logits = torch.zeros(3, 2)
    sums = Relevance()(plain, rich, logits, logits, torch.tensor([0, 1, 0]), torch.arange(3))
    sums["alignment"].backward()
    assert rich.grad is None and plain.grad.abs().sum() > 0
    assert sums["plain"].item() == sums["rich"].item() == pytest.approx(3 * math.log(2))


def test_verdicts_leave_the_reasoning():
    reason = "Both are desk lamps. The shade is smaller! So they match.\nTherefore: irrelevant. Label 1."
    assert without_verdict(reason, ["match", "irrelevant"]) == "Both are desk lamps. The shade is smaller!"
    assert without_verdict("It is a match.", ["match"]) == ""
    assert without_verdict("The matchbox is red.", ["match"]) == "The matchbox is red."  # whole words only
    assert without_verdict("两者都是台灯。所以相关。", ["相关"]).startswith("两者都是台灯")


def two_passes(seed=0, **settings):
    recipe = {"width": 8, "vocabulary": 20, "dropout": 0.0, "embedding": {"word": {}, "norm": "none"},
              "encoder": {"transformer": {"layers": 1, "heads": 2, "inner": 16}},
              "target": {"cls": {"labels": 2, "dropout": 0.0}}}  # fmt: skip
    torch.manual_seed(seed)
    return TwoPasses(assemble(recipe), Relevance(**settings))


def pairs(rows=4, told=2):
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 20, (rows, 5), generator=random)
    rich = torch.cat([ids[:told], torch.randint(1, 20, (told, 3), generator=random)], 1)
    more = {"rich_ids": rich, "rich_mask": torch.ones_like(rich, dtype=torch.bool)} if told else {}
    return {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool), "labels_cls": torch.arange(rows) % 2,
            "query": torch.arange(rows)} | more  # fmt: skip


def test_rows_without_a_reason_learn_their_label_alone():
    model = two_passes()
    loss, terms = model(**pairs(told=0))
    assert terms["rich"] == terms["alignment"] == 0 and loss == terms["plain"]
    both, parts = model(**pairs())
    assert parts["rich"] > 0 and both.item() == pytest.approx(sum(value.item() for value in parts.values()))
    assert parts["plain"].item() == pytest.approx(terms["plain"].item())
    without, _ = two_passes(weight=0.0)(**pairs())
    assert without.item() == pytest.approx((parts["plain"] + parts["rich"]).item())


def test_counts_of_the_whole_step():
    model, given = two_passes(weight=0.0), pairs(4, 2)
    counts = model.counts(**given)
    assert counts == {"rows": 4.0, "told": 2.0}
    first = {name: value[:2] for name, value in given.items()}
    rest = {name: value[2:] for name, value in given.items() if not name.startswith("rich_")}
    parts = model(counts=counts, **first)[0] + model(counts=counts, **rest)[0]
    torch.testing.assert_close(parts, model(**given)[0])


# ---------------------------------------------------------------- lifelong


def test_lifelong_by_hand():
    # Old (3/4, 1/4), student uniform: KL = 3/4 ln 3/2 + 1/4 ln 1/2, twice with w = 2.
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    old, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2, requires_grad=True)
    loss = Lifelong(weight=2.0)(student, old)
    assert loss.item() == pytest.approx(2 * expected)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, 2 * torch.tensor([[-0.25, 0.25]]))
    with pytest.raises(ValueError, match="level is one of text, words"):
        Lifelong(level="word")


def language_model(seed=0):
    recipe = {"width": 8, "vocabulary": 20, "dropout": 0.0, "embedding": {"word": {}, "norm": "none"},
              "encoder": {"transformer": {"layers": 1, "heads": 2, "inner": 16, "mask": "causal"}},
              "target": {"lm": {}}}  # fmt: skip
    torch.manual_seed(seed)
    return assemble(recipe)


def texts():
    random = torch.Generator().manual_seed(1)
    ids, labels = (torch.randint(1, 20, (4, 6), generator=random) for _ in range(2))
    labels[:, :2] = -100
    return {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool), "labels_lm": labels,
            "old": torch.tensor([False, True, False, True])}  # fmt: skip


def test_new_rows_learn_and_old_rows_remember():
    before, given = language_model(), texts()
    again = language_model()
    loss, terms = Remembering(again, before, Lifelong())(**given)
    plain = {name: value[[0, 2]] for name, value in given.items() if name != "old"}
    assert terms["kept"].item() == pytest.approx(0, abs=1e-6)  # nothing moved yet
    assert loss.item() == pytest.approx(again(**plain)[0].item(), rel=1e-5)
    other = language_model(5)
    _, words = Remembering(other, before, Lifelong(weight=3.0))(**given)
    asked = given["labels_lm"] != -100
    asked[[0, 2]] = False
    p, q = (
        model.predict("lm", ids=given["ids"], mask=given["mask"])[asked].log_softmax(-1) for model in (before, other)
    )
    assert words["kept"].item() == pytest.approx(3 * (p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    _, said = Remembering(other, None, Lifelong(level="text"))(**given)
    only = {name: value[[1, 3]] for name, value in given.items() if name != "old"}
    assert said["kept"].item() == pytest.approx(other(**only)[0].item(), rel=1e-5)


def test_the_old_model_is_neither_trained_nor_saved():
    before = language_model()
    model = Remembering(language_model(2), before, Lifelong())
    model(**texts())[0].backward()
    assert all(p.grad is None for p in before.parameters()) and not before.training
    assert all(name.startswith("student.") for name in model.state_dict())


def test_micro_batches_of_old_and_new_rows():
    model, given = Remembering(language_model(3), language_model(), Lifelong()), texts()
    counts = model.counts(**given)
    parts = sum(model(counts=counts, **{k: v[part] for k, v in given.items()})[0] for part in ([0, 1, 2], [3]))
    torch.testing.assert_close(parts, model(**given)[0])


def test_pseudo_input():
    assert pseudo("Der Hund, der bellt", {"der": "the", "hund": "dog"}) == ("the dog, the bellt", 0.75)
    assert pseudo("", {}) == ("", 0.0)


def forgetting(weight, steps=220):
    """(KL of the old head on held-out old inputs, on the new ones, loss of the new task) after learning a new task."""
    torch.manual_seed(0)
    old_x, new_x = torch.randn(300, 6), torch.randn(200, 6) + 0.5
    old_y, new_y = (old_x[:, :3].sum(-1) > 0).long(), (new_x[:, 2:5].sum(-1) > 0.5).long()
    body = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh())
    heads = torch.nn.ModuleDict({"old": torch.nn.Linear(16, 2), "new": torch.nn.Linear(16, 2)})
    optimizer = torch.optim.Adam([*body.parameters(), *heads.parameters()], 0.01)
    entropy = torch.nn.functional.cross_entropy
    for _ in range(150):
        optimizer.zero_grad()
        entropy(heads["old"](body(old_x[:200])), old_y[:200]).backward()
        optimizer.step()
    with torch.no_grad():  # recorded before the first step
        recorded, held = heads["old"](body(new_x)), heads["old"](body(old_x[200:]))
    method = Lifelong(weight)
    optimizer = torch.optim.Adam([*body.parameters(), *heads.parameters()], 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        hidden = body(new_x)
        loss = entropy(heads["new"](hidden), new_y)
        (loss + method(heads["old"](hidden), recorded) / len(new_x)).backward()
        optimizer.step()
    with torch.no_grad():
        one = Lifelong(1.0)
        moved = one(heads["old"](body(old_x[200:])), held).item() / 100
        near = one(heads["old"](body(new_x)), recorded).item() / 200
        return moved, near, entropy(heads["new"](body(new_x)), new_y).item()


def test_old_outputs_move_less_at_an_equal_new_loss():
    plain = forgetting(0.0, steps=60)
    kept = min((forgetting(1.0, steps) for steps in range(50, 111, 10)), key=lambda told: abs(told[2] - plain[2]))
    assert kept[2] == pytest.approx(plain[2], rel=0.1)
    assert kept[0] < 0.5 * plain[0]
    assert forgetting(1000.0)[1] < 1e-3 < plain[1]  # held fast on the inputs that it is told


def test_public_names():
    assert relevance.__all__[0] == "Relevance" and lifelong.__all__[0] == "Lifelong"
