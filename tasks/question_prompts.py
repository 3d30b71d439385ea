"""How a multiple-choice question is put to a language model that only continues texts, in the language of the question.

    letter   the options stand in the prompt with their letters; a letter is to follow
    text     only the question stands there; each option's own text is tried

English as Hendrycks et al., 2021, arXiv:2009.03300, put it; Chinese after Li et al., 2023 (CMMLU), arXiv:2306.09212;
Japanese and the form without letters are ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["LETTERS", "Prompt", "Question", "prompts"]

LETTERS = "ABCDEFGHIJ"
WORDS = {  # opening, question, answer, what stands before an answer
    "en": ("The following are multiple choice questions (with answers) about {subject}.", "{text}", "Answer:", " "),
    "zh": ("以下是关于{subject}的单项选择题，请直接给出正确答案的选项。", "题目：{text}", "答案是：", ""),
    "ja": ("以下は{subject}に関する選択問題です。", "問題：{text}", "答えは：", ""),
}


@dataclass(frozen=True)
class Question:
    """A question with the examples that may be shown before it."""

    text: str
    context: str | None
    options: Sequence[str]
    right: int  # the place of the right one
    subject: str
    language: str  # en, zh, ja; others are put in English
    examples: Sequence["Question"] = ()


@dataclass(frozen=True)
class Prompt:
    """What is given, and what may follow."""

    before: str
    options: list[str]
    shots: int


def prompts(question: Question, form: str, shots: int) -> Iterator[Prompt]:
    """The question with `shots` examples, or as many as there are, then with one less, down to none.

    >>> asked = Question("Which?", None, ["this", "that"], 1, "things", "en")
    >>> print(next(prompts(asked, "letter", 0)).before)
    The following are multiple choice questions (with answers) about things.
    <BLANKLINE>
    Which?
    A. this
    B. that
    Answer:
    """
    opening, _, _, space = WORDS.get(question.language, WORDS["en"])
    shown = list(question.examples)[:shots]
    options = LETTERS[: len(question.options)] if form == "letter" else question.options
    follow = [space + option for option in options]
    for count in range(len(shown), -1, -1):
        parts = [opening.format(subject=question.subject.replace("_", " "))]
        for one in shown[:count]:
            answer = LETTERS[one.right] if form == "letter" else one.options[one.right]
            parts.append(_asked(one, form) + space + answer)
        yield Prompt("\n\n".join([*parts, _asked(question, form)]), follow, count)


def _asked(question: Question, form: str) -> str:
    _, asked, answer, _ = WORDS.get(question.language, WORDS["en"])
    lines = [question.context] if question.context else []
    lines.append(asked.format(text=question.text))
    if form == "letter":
        lines += [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)]
    return "\n".join([*lines, answer])
