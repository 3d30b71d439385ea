"""Comprehend, then answer: the student first learns what a document says, then to answer questions about it.

    phase 1, comprehend:  document, its entities, its summary        phase 2, answer:  document, question, answer

Source: Sun and Jian, 2023, arXiv:2307.08931, of which the abstract was at hand: the targets of the first phase are
ours, as is the frame, which is that of basic reading distillation (arXiv:2507.19741).
"""

from collections.abc import Mapping

from models.distill.texts._frames import frame, plain, read_answer, read_frame

__all__ = ["Comprehension"]


class Comprehension:
    """Documents to prompts, answers to the documents of two phases; attributes as those of Reading.

    Args:
        plain: characters of the corpus itself for each character of framed text, in the first phase.
        shortest: letters of a document that is worth reading.
        longest: letters of a document that are shown to the teacher, and kept.
    """

    phases = ("comprehend", "answer")
    unit = "document"
    version = "comprehension-1"
    labels = ("Entities", "Summary", "Question", "Answer")

    def __init__(self, plain: float = 1.0, shortest: int = 80, longest: int = 4000):
        if plain < 0 or not 1 <= shortest <= longest:
            raise ValueError(f"plain must be >= 0 and 1 <= shortest <= longest; got {plain}, {shortest}, {longest}")
        self.plain, self.shortest, self.longest = plain, shortest, longest

    def prompt(self, text: str) -> str:
        """What the teacher is asked."""
        return (
            "Read the document. Answer in exactly four lines, in its language, and use nothing but what it says.\n"
            "Entities: its named entities as they are written there, set apart by semicolons, or none\n"
            "Summary: what it says, in one or two sentences\n"
            "Question: one question that it answers\n"
            "Answer: the answer\n\n"
            f"Document: {self.shown(text)}"
        )

    def shown(self, text: str) -> str:
        """The part of a document that is read."""
        return plain(text)[: self.longest].rstrip()

    def parse(self, answer: str) -> dict | None:
        """Entities (a tuple), Summary, Question and Answer, or None where the answer has another form."""
        return read_answer(answer, self.labels)

    def fault(self, text: str, values: Mapping | None, questions: set[str]) -> str | None:
        """Why an answer is not used, or None; a question that is new is added to `questions`."""
        if values is None:
            return "another form"
        if any(entity not in self.shown(text) for entity in values["Entities"]):
            return "an entity is not in the text"
        for label in self.labels[1:]:
            if not values[label]:
                return f"no {label.lower()}"
        if values["Question"].lower() in questions:
            return "a question twice"
        questions.add(values["Question"].lower())
        return None

    def documents(self, text: str, values: Mapping) -> dict[str, list[str]]:
        """Phase -> the lines of its document."""
        part = lambda *labels: frame(self.shown(text), {label: values[label] for label in labels})
        return {"comprehend": part("Entities", "Summary"), "answer": part("Question", "Answer")}

    def read(self, lines: list[str]) -> tuple[str, dict]:
        """The text and the behaviours of a document of either phase."""
        labels = self.labels[:2] if lines[1:] and lines[1].startswith("Entities: ") else self.labels[2:]
        return read_frame(lines, labels)
