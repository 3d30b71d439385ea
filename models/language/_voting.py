"""Final answers of reasoning paths, and the vote over them: self-consistency, with paths of any origin.

Source: Wang et al., 2022, arXiv:2203.11171, for the vote; Peng, An and Shang, 2024, arXiv:2410.02284, for the question
that each path is asked at its end and for what is kept of the reply.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.language._answers import Form, Found, Task
from models.language._reader import Reader, decode, greedily

__all__ = ["Final", "Reasoned", "accuracies", "concluded", "digits", "letter", "vote"]


@dataclass(frozen=True)
class Final:
    """How a path's final answer is asked for and read.

    Args:
        ask: goes behind a path, such as '**Final Answer (Only Number):** "'.
        stop: ends it, wherever a token has it.
        read: of the text, such as `digits` or `letter`.
        tokens: at most.
    """

    ask: str
    stop: str
    read: Callable[[str], str]
    tokens: int = 8


@dataclass(frozen=True)
class Reasoned:
    """Paths, the answer that each came to ("" for none), and the most common one."""

    paths: Found
    answers: list[str]
    voted: str


def concluded(reader: Reader, task: Task, final: Final, paths: Found, batch: int = 64) -> Reasoned:
    """Ask each path for its final answer, and vote."""
    asks = Task((), Form(task.form.between, final.stop), task.tokens)
    rows = [[*task.prompt, *path.ids, *task.tokens.encode(final.ask)] for path in paths]
    answers = []
    for start in range(0, len(rows), batch):
        reading = reader.read(rows[start : start + batch])
        ends, _, padding = (mark.to(reader.device) for mark in asks.marks(reading.logits.shape[1]))
        written = decode(reading, range(len(reading)), None, ends, final.tokens, greedily, padding, batch)
        answers += [final.read(asks.answer(text)[0]) for text in written]
    return Reasoned(paths, answers, vote(answers))


def vote(answers: Sequence[str]) -> str:
    """The most common answer, of equals the one first seen; empty ones do not vote.

    >>> vote(["8", "", "9", "9", "8", ""])
    '8'
    """
    counted = Counter(answer for answer in answers if answer)
    return counted.most_common(1)[0][0] if counted else ""


def accuracies(answers: Sequence[Sequence[str]], right: Sequence[str]) -> dict[str, float]:
    """Share of questions whose vote is right, and of all paths that are; an empty answer is a wrong path.

    >>> accuracies([["3", "4", "4"], ["7", "", "6"]], ["4", "7"])
    {'voted': 1.0, 'path': 0.5}
    """
    if len(answers) != len(right) or not right:
        raise ValueError(f"{len(answers)} questions were answered, and {len(right)} have a right answer")
    voted = [vote(each) == gold for each, gold in zip(answers, right, strict=True)]
    paths = [path == gold for each, gold in zip(answers, right, strict=True) for path in each]
    return {"voted": sum(voted) / len(voted), "path": sum(paths) / len(paths) if paths else 0.0}


def digits(text: str) -> str:
    """The digits of a text, as the paper reads GSM8K's and SVAMP's answers; read the right answer by it as well.

    >>> digits("$1,200 in all")
    '1200'
    """
    return "".join(letter for letter in text if letter in "0123456789")


def letter(text: str) -> str:
    """The first letter from A to E, as the paper reads AQuA's answers.

    >>> letter("(C) 12")
    'C'
    """
    return next((sign for sign in text if sign in "ABCDE"), "")
