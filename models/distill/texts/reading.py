"""Basic Reading Distillation: the teacher reads plain sentences, and the student learns its reading as language.

For each sentence of a general corpus a large language model names its entities, raises a question about it and answers
it. Sentence and behaviours, in a fixed frame, are documents of ordinary language modelling, mixed with the corpus.
Source: 2025, arXiv:2507.19741. The frame, one request for all behaviours, the filter, and equal parts of framed and
plain text are ours.
"""

from collections.abc import Mapping

from models.distill.texts._frames import frame, plain, read_answer, read_frame

__all__ = ["Reading"]


class Reading:
    """Sentences to prompts, answers to documents.

    Attributes:
        phases: names of the corpora it makes, in the order in which they are learned.
        unit: "sentence": what is read at a time.
        version: of the prompt's wording.

    Args:
        plain: characters of the corpus itself for each character of framed text.
        shortest: letters of a sentence that is worth reading.
    """

    phases = ("reading",)
    unit = "sentence"
    version = "reading-1"
    labels = ("Entities", "Question", "Answer")

    def __init__(self, plain: float = 1.0, shortest: int = 20):
        if plain < 0 or shortest < 1:
            raise ValueError(f"plain must be >= 0 and shortest >= 1, got {plain} and {shortest}")
        self.plain, self.shortest = plain, shortest

    def prompt(self, text: str) -> str:
        """What the teacher is asked."""
        return (
            "Read the sentence. Answer in exactly three lines, in its language, and use nothing but what it says.\n"
            "Entities: its named entities as they are written there, set apart by semicolons, or none\n"
            "Question: one question about it\n"
            "Answer: the answer\n\n"
            f"Sentence: {plain(text)}"
        )

    def parse(self, answer: str) -> dict | None:
        """Entities (a tuple), Question and Answer, or None where the answer has another form."""
        return read_answer(answer, self.labels)

    def fault(self, text: str, values: Mapping | None, questions: set[str]) -> str | None:
        """Why an answer is not used, or None; a question that is new is added to `questions`."""
        if values is None:
            return "another form"
        if any(entity not in plain(text) for entity in values["Entities"]):
            return "an entity is not in the text"
        if not values["Question"] or not values["Answer"]:
            return "no question" if not values["Question"] else "no answer"
        if values["Question"].lower() in questions:
            return "a question twice"
        questions.add(values["Question"].lower())
        return None

    def documents(self, text: str, values: Mapping) -> dict[str, list[str]]:
        """Phase -> the lines of its document."""
        return {self.phases[0]: frame(text, values)}

    def read(self, lines: list[str]) -> tuple[str, dict]:
        """The text and the behaviours of a document."""
        return read_frame(lines, self.labels)
