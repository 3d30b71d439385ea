"""In-context navigation: answers found are listed in the prompt, and the next ones begin with other tokens.

    repeat for r = 1..R:
        order = argsort_desc(W h(prompt + listed answers + open slot))      the query is pushed away from what is listed
        take the B first tokens whose text was not tried
        each goes on greedily under the prompt alone, and its answer is listed

Nothing is trained. The list chooses a first token and nothing more: continuing under it is `clean=False`. Without the
list (`listed=False`) R rounds are the R B most likely first tokens.

A list grows at its end, so the model reads each of its tokens once; all continuations of a round share the prompt's
keys and values. Where the list outgrows the model's places, its oldest answers are left out, and counted (ours).

Source: Peng, An and Shang, 2024, arXiv:2410.02284, and its code (`zerogen`, `gsm8k`) for the order of steps.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from models.language._answers import Answer, Form, Found, Task, Tokens
from models.language._keys import Clusters, check_identity, spurious
from models.language._reader import Draws, Reader, Reading, TooLong, decode, greedily
from models.language._voting import Final, Reasoned, concluded

__all__ = ["ICN", "Answer", "Form", "Found", "Task", "Tokens", "reason", "sampled", "spurious_report"]


class ICN:
    """Rounds of first tokens chosen under the list, continued under the prompt.

    Args:
        rounds: R; fewer when a budget is spent.
        branch: B, new answers of a round.
        tokens: of an answer, at most, besides its first one.
        candidates: first tokens are of the so many most likely ones; None for all. The paper's reasoning has 100.
        listed: False never lists what was found: the most likely first tokens, for comparison.
        clean: False goes on under the list as well.
        by: "text" tries no token text twice, as the paper does; "id" no token.
        apart: no two first tokens of a round from one cluster (ours; off, as in the paper).

    Raises:
        ValueError: one of them is out of range, or there are fewer candidates than answers.
    """

    def __init__(
        self, rounds: int = 10, branch: int = 10, tokens: int = 64, candidates: int | None = None, listed: bool = True,
        clean: bool = True, by: str = "text", apart: bool = False,
    ):  # fmt: skip
        if rounds < 1 or branch < 1 or tokens < 1:
            raise ValueError(f"ICN needs rounds, branch and tokens of at least 1; got {rounds}, {branch} and {tokens}")
        if candidates is not None and rounds * branch > candidates:
            raise ValueError(f"{rounds} rounds of {branch} answers need {rounds * branch} candidates; got {candidates}")
        if by not in ("text", "id"):
            raise ValueError(f"first tokens are told apart by text or by id; got {by!r}")
        self.rounds, self.branch, self.tokens, self.candidates = rounds, branch, tokens, candidates
        self.listed, self.clean, self.by, self.apart = listed, clean, by, apart

    def __call__(
        self, reader: Reader, task: Task, clusters: Clusters | None = None, budget: int | None = None, batch: int = 64
    ) -> Found:
        """Find R B answers.

        Args:
            clusters: of the keys; needed with `apart`, else only noted.
            budget: begin no round once so many tokens were written.
            batch: continuations at once.

        Raises:
            TooLong: the prompt and one answer do not fit the model.
            ValueError: candidates run out, or `apart` without clusters.
        """
        if self.apart and clusters is None:
            raise ValueError("apart: first tokens of different clusters need the clusters of the model's keys")
        _refuse_longer(reader, len(task.prompt) + 1 + self.tokens)
        prompt = reader.read([task.prompt])
        ends, begins, padding = (mark.to(reader.device) for mark in task.marks(prompt.logits.shape[1]))
        found, tried, under = Found(), set(), prompt
        for number in range(1, self.rounds + 1):
            if number > 1 and self.listed:
                under = self._list(reader, task, found, under)
            firsts = self._firsts(under.logits[0], begins, task.tokens, tried, clusters, number)
            start = prompt if self.clean else under
            tokens = [token for token, _, _ in firsts]
            texts = decode(start, [0] * len(firsts), tokens, ends, self.tokens, greedily, padding, batch)
            for (token, rank, logit), written in zip(firsts, texts, strict=True):
                text, ids = task.answer(written)
                cluster = -1 if clusters is None else int(clusters.labels[token])
                found.answers.append(Answer(token, task.tokens.texts[token], text, ids, number, rank, logit,
                                            written.ended, len(written.ids), cluster))  # fmt: skip
            if budget is not None and found.generated >= budget:
                break
        return found

    def _firsts(self, logits_V: Tensor, begins_V: Tensor, tokens: Tokens, tried: set, clusters, number: int):
        """(token, rank, logit) of the next B tokens that were not tried; `tried` grows."""
        order = logits_V.masked_fill(~begins_V, -torch.inf).sort(descending=True, stable=True)
        count = int(begins_V.sum())
        count = count if self.candidates is None else min(count, self.candidates)
        taken, used = [], set()
        ids, logits = order.indices[:count].tolist(), order.values[:count].tolist()
        for rank, (token, logit) in enumerate(zip(ids, logits, strict=True), start=1):
            key = tokens.texts[token] if self.by == "text" else token
            if key in tried or (self.apart and int(clusters.labels[token]) in used):
                continue
            tried.add(key)
            if clusters is not None:
                used.add(int(clusters.labels[token]))
            taken.append((token, rank, logit))
            if len(taken) == self.branch:
                return taken
        raise ValueError(f"round {number} found {len(taken)} first tokens that were not tried, of {count} candidates, "
                         f"but branch is {self.branch}: ask for fewer rounds, or raise candidates")  # fmt: skip

    def _list(self, reader: Reader, task: Task, found: Found, under: Reading) -> Reading:
        """What was read, gone on with the answers that are new; read anew where the oldest had to go."""
        answers = [answer.ids for answer in found]
        room = None if reader.room is None else reader.room - (0 if self.clean else 1 + self.tokens)
        gone = 0
        ids = task.listed(answers)
        while room is not None and len(ids) > room and gone < len(answers):
            gone += 1
            ids = task.listed(answers, gone)
        found.left_out += gone
        known = under.rows[0]
        if len(known) < len(ids) and ids[: len(known)] == known:
            longer = under.pick([0])
            longer.extend([ids[len(known) :]])
            return longer
        return reader.read([ids])


def sampled(
    reader: Reader, task: Task, seeds: Sequence[int], tokens: int = 64, temperature: float = 1.0, top_p: float = 1.0,
    budget: int | None = None, batch: int = 64,
) -> Found:  # fmt: skip
    """What ICN is compared with: an answer drawn for each seed; temperature 0 has the most likely tokens.

    Args:
        tokens: of an answer, at most, besides its first one.
        budget: begin no batch once so many tokens were written.
    """
    _refuse_longer(reader, len(task.prompt) + 1 + tokens)
    prompt = reader.read([task.prompt])
    ends, _, padding = (mark.to(reader.device) for mark in task.marks(prompt.logits.shape[1]))
    found = Found()
    for start in range(0, len(seeds), batch):
        own = seeds[start : start + batch]
        choose = Draws(own, temperature, top_p) if temperature else greedily
        for text in decode(prompt, [0] * len(own), None, ends, tokens + 1, choose, padding, batch):
            said, ids = task.answer(text)
            first = text.ids[0]
            name = task.tokens.texts[first]
            logit = prompt.logits[0, first]
            found.answers.append(Answer(first, name, said, ids, start // batch + 1,
                                        int((prompt.logits[0] > logit).sum()) + 1, float(logit), text.ended,
                                        len(text.ids)))  # fmt: skip
        if budget is not None and found.generated >= budget:
            break
    return found


def spurious_report(
    reader: Reader, tasks: Mapping[str, Task], judge: Callable[[str, str], bool], clusters: Clusters, top: int = 100,
    main: int = 10, tokens: int = 64, batch: int = 64,
) -> tuple[dict[str, float], dict[str, Found]]:  # fmt: skip
    """Are the first ranks' neighbours in key space worse answers than the rest? See `spurious`.

    Args:
        tasks: by name; each has a known set of right answers.
        judge: (name, answer) -> whether it is right.
        top: ranks whose answers are asked for, by the prompt alone.

    Returns:
        the numbers of `spurious`, and each task's answers by rank.

    Raises:
        BrokenIdentity: before anything is asked, see `check_identity`.
    """
    check_identity(reader, [task.prompt for task in tasks.values()])
    ranked = ICN(rounds=1, branch=top, tokens=tokens, by="id")
    found = {name: ranked(reader, task, clusters, batch=batch) for name, task in tasks.items()}
    correct = torch.tensor([[judge(name, answer.text) for answer in each] for name, each in found.items()])
    cluster = torch.tensor([[answer.cluster for answer in each] for each in found.values()])
    return spurious(correct, cluster, main), found


def reason(reader: Reader, task: Task, final: Final, how: ICN | None = None, batch: int = 64) -> Reasoned:
    """Different ways to one answer, and a vote over them.

    Args:
        task: its form is of ways, such as '\\n\\n### Way {number}:\\n* **Step 1:**' up to '#'.
        how: by default the paper's: 4 paths one by one, of the 100 most likely first tokens, up to 256 tokens.
    """
    how = how or ICN(rounds=4, branch=1, tokens=256, candidates=100)
    return concluded(reader, task, final, how(reader, task, batch=batch), batch)


def _refuse_longer(reader: Reader, length: int) -> None:
    if reader.room is not None and length > reader.room:
        raise TooLong(f"the prompt with an answer takes {length} tokens, and the model has places for {reader.room}; "
                      f"lower tokens, or shorten the prompt")  # fmt: skip
