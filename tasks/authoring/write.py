"""Instructions and a tuned model -> texts, each with the facts that it invented: what may not be shown as it is.

    python -m tasks.authoring.write MODEL AUTHORED REQUESTS.jsonl OUT.jsonl

A request is a line of JSON with instruction, input (may be absent) and, for a category, `"requires": "category"`, which
is answered by the taxonomy and by nothing else. An answer is the request with text, invented (kind, text and start of
each fact without a source) and fit: whether it says something and invents nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.authoring._author import Author
from tasks.authoring.grounding import Lexicon, invented
from tasks.command import run
from tasks.files import read_json, write_text
from tasks.slots import slot

__all__ = ["RequestUnreadable", "author_texts", "read_requests"]


class RequestUnreadable(ValueError):
    """A line is no request."""


def author_texts(author: Author, requests: Sequence[Mapping], manifest: Mapping, beams: int = 4) -> list[dict]:
    """The answers to requests, in their order.

    Args:
        requests: each with instruction, and input or none.
        manifest: of the authored records, whose lexicon and taxonomy are the catalogue's.
        beams: of the search for a category.
    """
    lexicon = Lexicon.of(manifest["lexicon"])
    prompts = [author.prompt(one["instruction"], one.get("input") or "") for one in requests]
    asked = [number for number, one in enumerate(requests) if one.get("requires") == "category"]
    free = [number for number in range(len(requests)) if number not in set(asked)]
    texts = dict(zip(free, author.write([prompts[number] for number in free]), strict=True))
    if asked:
        said = author.classify([prompts[number] for number in asked], author.trie(manifest["taxonomy"]), beams)
        texts |= dict(zip(asked, said, strict=True))
    answers = []
    for number, one in enumerate(requests):
        text, source = texts[number], f"{one['instruction']}\n{one.get('input') or ''}"
        wrong = [] if number in set(asked) else [vars(each) for each in invented(text, source, lexicon)]
        answers.append({**one, "text": text, "invented": wrong, "fit": bool(text) and not wrong})
    return answers


def read_requests(file: str | Path) -> list[dict]:
    """The requests of a file.

    Raises:
        RequestUnreadable: a line is no object with an instruction; names it.
    """
    found = []
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
        try:
            one = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestUnreadable(f"{file}, line {number}: no JSON ({error.msg})") from None
        if not isinstance(one, dict) or not str(one.get("instruction") or "").strip():
            raise RequestUnreadable(f"{file}, line {number}: a request is an object with an instruction")
        found.append(one)
    return found


def main(model: str, data: str, requests: str, out: str) -> None:
    """python -m tasks.authoring.write MODEL AUTHORED REQUESTS.jsonl OUT.jsonl"""
    asked = read_requests(requests)
    with slot() as device:
        answers = author_texts(Author(model, device=device), asked, read_json(Path(data) / "manifest.json"))
    write_text(Path(out), "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answers))
    fit = sum(one["fit"] for one in answers)
    print(f"{len(answers)} texts, {fit} fit, {len(answers) - fit} empty or with invented facts")


if __name__ == "__main__":
    run(main)
