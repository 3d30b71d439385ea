"""Navigation: what is listed, in which order, against a scripted model and real families; the cache; votes."""

import math
from collections import Counter

import pytest
import torch
import transformers
from test_keys import made

from models import build
from models.language._keys import BrokenIdentity, Clusters, key_clusters
from models.language._reader import Draws, Reader, TooLong, Written, decode
from models.language._voting import Final, Reasoned, accuracies, concluded, digits, letter, vote
from models.language.icn import ICN, Form, Task, Tokens, reason, sampled, spurious_report

# ---------------------------------------------------------------- a tokenizer of signs

SIGNS = ["<e>", '"', ",", "1", "2", "3", "4", "5", "6", "7", "8", "9", "0", "?", "#", "\n"]
LETTERS = [chr(code) for code in range(ord("a"), ord("y") + 1)]
ALL = SIGNS + LETTERS
IDS = {sign: number for number, sign in enumerate(ALL)}
TOKENS = Tokens(ALL, frozenset({0}), frozenset({0}), lambda text: [IDS[sign] for sign in text],
                lambda ids: "".join(ALL[number] for number in ids))  # fmt: skip
LIST = Form('"\n{number},"', '"')


def task(text='?1,"', form=LIST) -> Task:
    return Task(TOKENS.encode(text), form, TOKENS)


class Scripted(torch.nn.Module):
    """Names begin with a letter; each has its own rank, and one that the list has already loses `push`.

    A name is its letter twice, then a quote. Behind a letter all is certain.
    """

    def __init__(self, names: str, push: float):
        super().__init__()
        self.names, self.push = names, push

    def forward(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, len(ALL))
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, -1] = self.next(ids)
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    def next(self, ids):
        text, logits = TOKENS.decode(ids), torch.full((len(ALL),), -50.0)
        open_slot = text.rsplit('"', 1)[1]
        if not open_slot:
            for place, name in enumerate(LETTERS):
                right = name in self.names
                # neighbours of the first name outrank the other right ones: the middle ranks are wrong
                logits[IDS[name]] = (5.0 if place < 12 else 2.0 if right else 1.0) - 0.01 * place
            for place, name in enumerate(LETTERS):
                if f'"{name}{name}"' in text:  # a crowd of neighbours sinks as one
                    logits[[IDS[other] for other in (LETTERS[:12] if place < 12 else [name])]] -= self.push
        elif len(open_slot) == 1:
            logits[IDS[open_slot]] = 5.0
        else:
            logits[IDS['"']] = 5.0
        return logits


# ---------------------------------------------------------------- navigation


def test_icn_names_the_whole_set_in_the_fewest_rounds_and_the_baseline_does_not():
    names, branch = "abcdnopq", 4  # e..l are wrong, but their keys lie with those of a..d: they rank before n..q
    rounds = math.ceil(len(names) / branch)
    reader = Reader(Scripted(names, push=10.0))
    found = build("language", "icn", rounds=rounds, branch=branch, tokens=4)(reader, task())
    assert [answer.text for answer in found] == [name * 2 for name in names]
    plain = ICN(rounds=rounds, branch=branch, tokens=4, listed=False)(reader, task())
    assert [answer.text for answer in plain] == [name * 2 for name in "abcdefgh"]


def test_order_length_and_texts_are_exact():
    reader = Reader(made("gpt2"))
    plan = ICN(rounds=3, branch=4, tokens=3)
    found, again = plan(reader, task()), plan(reader, task())
    assert len(found) == 12 and list(found) == list(again)
    assert [answer.round for answer in found] == [1] * 4 + [2] * 4 + [3] * 4
    assert max(Counter(answer.token_text for answer in found).values()) == 1
    for number in (1, 2, 3):
        ranks = [answer.rank for answer in found if answer.round == number]
        assert ranks == sorted(ranks)


def test_without_a_list_it_is_the_most_likely_first_tokens():
    model = made("gpt2")
    reader, question = Reader(model), task()
    ids = torch.tensor([question.prompt])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1].clone()
    logits[[0, IDS['"']]] = -torch.inf  # what cannot begin an answer
    wanted = logits.argsort(descending=True, stable=True)[:6].tolist()
    once = ICN(rounds=1, branch=6, tokens=5, listed=False)(reader, question)
    assert [answer.token for answer in once] == wanted
    twice = ICN(rounds=3, branch=2, tokens=5, listed=False)(reader, question)
    assert [answer.ids for answer in twice] == [answer.ids for answer in once]
    first = ICN(rounds=2, branch=6, tokens=5)(reader, question)
    assert [answer.ids for answer in first][:6] == [answer.ids for answer in once]  # an empty list is no list
    assert [answer.token for answer in first][6:] != [
        answer.token for answer in ICN(rounds=2, branch=6, tokens=5, listed=False)(reader, question)
    ][6:]


def test_the_list_chooses_the_first_token_and_no_other():
    model = made("gpt2")
    question = task()
    found = ICN(rounds=2, branch=3, tokens=4)(Reader(model), question)
    under = ICN(rounds=2, branch=3, tokens=4, clean=False)(Reader(model), question)
    assert found[:3] == under[:3] and [a.token for a in found] == [a.token for a in under]
    listed = question.listed([answer.ids for answer in found[:3]])
    for answers, prompt in ((found, question.prompt), (under, listed)):
        for answer in answers[3:]:
            ids = torch.tensor([[*prompt, answer.token]])
            wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False,
                                    eos_token_id=[0, IDS['"']], pad_token_id=0)[0, len(prompt) :].tolist()  # fmt: skip
            assert wanted[: len(answer.ids)] == answer.ids and len(wanted) == answer.generated


def test_the_list_is_written_in_ids():
    question = task()
    ids = question.listed([TOKENS.encode("aa"), TOKENS.encode("b")])
    assert TOKENS.decode(ids) == '?1,"aa"\n2,"b"\n3,"'
    assert question.listed([]) == list(question.prompt)


def test_answers_stop_within_a_token():
    tokens = Tokens(["<e>", "a", 'b"', '"c', "n "], frozenset({0}), frozenset({0}), lambda text: [1] * len(text),
                    lambda ids: "".join(["", "a", 'b"', '"c', "n "][number] for number in ids))  # fmt: skip
    asked = Task([1], LIST, tokens)
    assert asked.answer(Written([1, 2], True)) == ("ab", [1, 1])  # b" ends the answer, its b is a part
    assert asked.answer(Written([1, 3], True)) == ("a", [1])
    assert asked.answer(Written([1, 0], True)) == ("a", [1])
    assert asked.answer(Written([1, 4], False)) == ("an", [1, 4])
    ends, begins, padding = asked.marks(7)
    assert ends.tolist() == [True, False, True, True, False, False, False]
    assert begins.tolist() == [False, True, True, False, True, False, False]  # '"c' would be empty
    assert padding.tolist() == [False] * 5 + [True] * 2


def test_equal_texts_are_one_by_text_and_two_by_id():
    twin = Tokens([*ALL[:-1], "a"], TOKENS.ends, TOKENS.hidden, TOKENS.encode, TOKENS.decode)
    asked, reader = Task(TOKENS.encode('?1,"'), LIST, twin), Reader(made("gpt2"))
    count = len(ALL) - 2
    assert len(ICN(rounds=1, branch=count - 1, tokens=1)(reader, asked)) == count - 1
    with pytest.raises(ValueError, match="found 38 first tokens"):
        ICN(rounds=1, branch=count, tokens=1)(reader, asked)
    assert len(ICN(rounds=1, branch=count, tokens=1, by="id")(reader, asked)) == count


def test_a_round_apart_takes_each_cluster_once():
    reader = Reader(made("gpt2"))
    clusters = Clusters(torch.arange(41) % 8, torch.zeros(8, 16), [])
    found = ICN(rounds=2, branch=8, tokens=1, apart=True)(reader, task(), clusters)
    for number in (1, 2):
        assert sorted(answer.cluster for answer in found if answer.round == number) == list(range(8))
    with pytest.raises(ValueError, match="need the clusters"):
        ICN(apart=True)(reader, task())


def test_a_budget_ends_the_rounds():
    found = ICN(rounds=5, branch=3, tokens=2)(Reader(made("gpt2")), task(), budget=9)
    assert found[-1].round < 5
    assert sum(a.generated for a in found if a.round < found[-1].round) < 9 <= found.generated


def test_a_list_that_outgrows_the_model_loses_its_oldest():
    found = ICN(rounds=6, branch=3, tokens=8)(Reader(made("gpt2")), task())  # 64 places
    assert len(found) == 18 and found.left_out > 0
    with pytest.raises(TooLong, match="takes 69 tokens, and the model has places for 64"):
        ICN(tokens=64)(Reader(made("gpt2")), task())


@pytest.mark.parametrize(("settings", "words"), [
    ({"rounds": 0}, "at least 1"), ({"candidates": 99}, "need 100 candidates"), ({"by": "word"}, "by text or by id"),
])  # fmt: skip
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        ICN(**settings)


def test_without_a_stop_only_the_end_of_sequence_ends():
    ends, begins, _ = task(form=Form("\n", None)).marks(41)
    assert ends.nonzero()[:, 0].tolist() == [0] and begins[IDS['"']] and not begins[0]
    assert task(form=Form("\n", None)).answer(Written(TOKENS.encode('a"b') + [0], True))[0] == 'a"b'


def test_forms_that_a_tokenizer_cannot_write():
    with pytest.raises(ValueError, match="no token of this tokenizer has '!'"):
        task(form=Form("{number}", "!")).marks(41)
    deaf = Tokens(ALL, TOKENS.ends, TOKENS.hidden, lambda text: [], TOKENS.decode)
    with pytest.raises(ValueError, match="as no token"):
        Task([1], LIST, deaf).marks(41)


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize("kind", ["gpt2", "Llama", "Bloom", "Mistral", "Mamba"])
def test_cache_and_batch_change_no_answer(kind):
    settings = {"Mistral": {"sliding_window": 6}, "Bloom": {"n_layer": 2, "n_head": 2}}.get(kind, {})
    model = made(kind, **settings)
    plan = ICN(rounds=3, branch=5, tokens=6)
    answers = []
    for cached in (True, False):
        for batch in (1, 3, 64):
            reader = Reader(model, cached=cached)
            answers.append([(a.token, a.ids, a.rank) for a in plan(reader, task(), batch=batch)])
    assert all(each == answers[0] for each in answers)


def test_the_cache_reads_each_token_once():
    costs = {}
    for cached in (True, False):
        reader = Reader(made("Llama"), cached=cached)
        found = ICN(rounds=2, branch=5, tokens=6)(reader, task())
        costs[cached] = reader.tokens
        if cached:
            listed = len(task().listed([answer.ids for answer in found[:5]]))
            read = sum(answer.generated - 1 for answer in found)  # the last token of a text is read by nobody
            assert reader.tokens == listed + read
    assert costs[False] > 3 * costs[True]


def test_rows_of_any_length_go_on_as_alone():
    reader = Reader(made("Llama"))
    both = reader.read([[1, 2, 3], [4]])
    both.extend([[5], [6, 7, 8]])
    both.extend([[], [9]])  # a row that waits keeps its logits
    for row, ids in enumerate([[1, 2, 3, 5], [4, 6, 7, 8, 9]]):
        alone = reader.read([ids])
        torch.testing.assert_close(both.logits[row], alone.logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both.query[row], alone.query[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="at least one token"):
        reader.read([[]])
    with pytest.raises(TooLong, match="65 tokens does not fit a model with places for 64"):
        both.extend([[1] * 61, []])


def test_draws_do_not_depend_on_neighbours():
    reader, question = Reader(made("Llama")), task()
    many = sampled(reader, question, [3, 1, 4, 1], tokens=8, temperature=1.5, batch=4)
    alone = sampled(reader, question, [4], tokens=8, temperature=1.5)
    assert many[2].ids == alone[0].ids and many[1].ids == many[3].ids and many[0].ids != many[1].ids
    likely = sampled(reader, question, [0, 0], tokens=8, temperature=0)
    assert likely[0].ids == likely[1].ids and likely[0].rank == 1


def test_draws_by_hand():
    # p = 1/2, 1/4, 1/4: top_p 0.6 keeps the first two, which share 2 to 1
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log().expand(3000, 3)
    drawn = Draws(range(3000), top_p=0.6)(logits, range(3000))
    counts = torch.bincount(drawn, minlength=3).tolist()
    assert counts[2] == 0 and abs(counts[0] / 3000 - 2 / 3) < 0.03
    cold = Draws(range(300), temperature=0.05)(logits[:300], range(300))
    assert cold.tolist() == [0] * 300
    with pytest.raises(ValueError, match="temperature > 0"):
        Draws([1], temperature=0)


def test_padded_rows_are_never_written():
    model = made("gpt2", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[40] = 100 * model.lm_head.weight[40].abs()
        model.transformer.ln_f.bias += 5
    short = Tokens(ALL[:40], TOKENS.ends, TOKENS.hidden, TOKENS.encode, TOKENS.decode)
    reader = Reader(model)
    assert int(reader.read([[3, 4]]).logits.argmax()) == 40
    found = ICN(rounds=1, branch=4, tokens=4)(reader, Task(TOKENS.encode('?1,"'), LIST, short))
    assert all(40 not in answer.ids for answer in found)
    texts = decode(reader.read([[3]]), [0], None, torch.zeros(41, dtype=torch.bool), 3)
    assert texts[0].ids == [40, 40, 40] and not texts[0].ended  # without the mark it would be


# ---------------------------------------------------------------- the report


def test_the_report_checks_the_identity_first():
    model = made("gpt2")
    reader = Reader(model)
    clusters = key_clusters(model.lm_head.weight, 6)
    found, answers = spurious_report(reader, {"one": task(), "two": task('?2,"')}, lambda name, text: len(text) % 2 > 0,
                                     clusters, top=30, tokens=2)  # fmt: skip
    assert [answer.rank for answer in answers["one"]] == list(range(1, 31))
    assert found["share_main"] + found["share_other"] == pytest.approx(1) and 0 <= found["acc_first"] <= 1
    model.lm_head.register_forward_hook(lambda module, given, out: out.sin())
    with pytest.raises(BrokenIdentity):
        spurious_report(reader, {"one": task()}, lambda name, text: True, clusters, top=30)


# ---------------------------------------------------------------- reasoning


def test_votes_and_accuracies_by_hand():
    assert vote(["5", "3", "3"]) == "3"
    assert vote(["5", "3", "3", "5"]) == "5"  # as often: the one first seen
    assert vote(["", "", "7"]) == "7" and vote(["", ""]) == "" and vote([]) == ""
    table = [["1", "2", "2"], ["4", "", "5"], ["", "", ""]]
    found = accuracies(table, ["2", "5", "9"])
    assert found["voted"] == pytest.approx(1 / 3)  # the second vote is 4, the third none
    assert found["path"] == pytest.approx(3 / 9)
    with pytest.raises(ValueError, match="3 questions were answered, and 1"):
        accuracies(table, ["2"])
    assert digits('= $1,350."') == "1350" and letter("answer: D") == "D" and letter("none") == ""


def test_paths_are_asked_for_their_end():
    class Counting(torch.nn.Module):
        """A path is its letter up to '#'; its final answer is the letter's place, a digit."""

        def forward(self, input_ids, attention_mask):
            logits = torch.zeros(*input_ids.shape, len(ALL))
            for row, ids in enumerate(input_ids.tolist()):
                text = TOKENS.decode(ids)
                if text.endswith("0,"):  # asked for its end: a and c say 7, b says 8
                    logits[row, -1, IDS["8" if "b" in text.rsplit("1,", 1)[1] else "7"]] = 9
                elif text[-1] in LETTERS:
                    logits[row, -1, IDS["#"]] = 9
                elif text[-1] in "78":
                    logits[row, -1, IDS['"']] = 9
                else:
                    for place, name in enumerate(LETTERS):
                        logits[row, -1, IDS[name]] = 5 - place - 20 * (name in text)
            return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    ways = Task(TOKENS.encode("?1,"), Form("#\n{number},", "#"), TOKENS)
    final = Final("0,", '"', digits)
    how = ICN(rounds=3, branch=1, tokens=5, candidates=10)
    found = reason(Reader(Counting()), ways, final, how)
    assert isinstance(found, Reasoned) and [path.text for path in found.paths] == ["a", "b", "c"]
    assert found.answers == ["7", "8", "7"] and found.voted == "7"
    assert concluded(Reader(Counting()), ways, final, found.paths, batch=1) == found
