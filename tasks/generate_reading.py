"""A corpus and a teacher that writes -> documents of its reading, as tasks/tokens.py cuts them.

    python -m tasks.generate_reading params.yaml:distill.readings.NAME CORPUS OUT WRITTEN

For each phase of the method (`reading`; or `comprehend` and `answer`) OUT/<phase> is like an ingested corpus: framed
documents, and in the first phase plain ones beside them. What the filter drops is counted in OUT/report.json.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from models import build, method
from models.components._closest import refuse_unknown
from tasks.command import run
from tasks.files import new_folder, write_json
from tasks.ingest_text import HELDOUT, TextRejected, batches, ingest_text
from tasks.settings import SettingsError, read
from tasks.writers._writer import Prompt, filtered, open_writer, write_all

__all__ = ["generate_reading"]

KEYS = ("method", "data", "writer", "texts", "heldout")
METHODS = ("reading", "comprehension")
TEXTS = 1000  # that are read


def generate_reading(chosen: Mapping, corpus: str | Path, out: str | Path, written: str | Path) -> dict:
    """Ask, filter, frame and mix; write the folder `out` whole or not at all.

    Args:
        chosen: {method: {reading or comprehension: settings}, writer: {name of tasks/writers: settings}, texts (1000):
            the first so many of the corpus, whose order is that of hashes, heldout: share of the documents, data: the
            corpus' name, for the graph}.
        corpus: an ingested folder of documents; its train split is read.
        out: takes <phase>/ for each phase, records.parquet (text, behaviours, teacher, version, licence) and
            report.json.
        written: JSON lines of what the teacher wrote, from which a stopped run continues.

    Returns:
        The report: {"asked", "kept", "dropped": {reason: rows}, "passed_over": {reason: texts}, "teacher", "version",
        "licence", "phases": {phase: {"framed", "plain"}}}.

    Raises:
        SettingsError, LookupError: a setting that cannot be.
        TextRejected: nothing is left after the filter.
        ConnectionError, WriterRefused: of the teacher.
    """
    way, writer, limit = _checked(chosen)
    rows, passed_over = _texts(way, corpus, limit)
    prompts = [Prompt(row["key"], way.prompt(row["text"]), {"text": row["text"]}) for row in rows]
    records = write_all(writer, prompts, way.version, written)
    questions: set[str] = set()
    values = [way.parse(text) for text in records["text"]]
    faults = [way.fault(row["text"], value, questions) for row, value in zip(rows, values, strict=True)]
    report = filtered(faults) | {"passed_over": passed_over, "teacher": writer.teacher, "version": way.version,
                                 "licence": writer.licence, "phases": {}}  # fmt: skip
    kept = [(row, value) for row, value, fault in zip(rows, values, faults, strict=True) if fault is None]
    if not kept:
        raise TextRejected(f"of {len(rows)} texts none is left: {report['dropped']}; see what {writer.teacher} writes "
                           f"in {written}, and mend the prompt or the writer")  # fmt: skip
    with new_folder(out) as folder:
        for phase in way.phases:
            framed = [_document(way.documents(row["text"], value)[phase], row, writer, way) for row, value in kept]
            plain = _plain(corpus, way.plain * _size(framed)) if phase == way.phases[0] else []
            _ingest(framed + plain, folder / phase, chosen.get("heldout", HELDOUT))
            report["phases"][phase] = {"framed": len(framed), "plain": len(plain)}
        told = [{"key": row["key"], "text": row["text"], "origin": row["origin"], **_named(value)}
                | {"teacher": writer.teacher, "version": way.version, "licence": writer.licence}
                for row, value in kept]  # fmt: skip
        pl.DataFrame(told, infer_schema_length=None).write_parquet(folder / "records.parquet")
        write_json(folder / "report.json", report)
    print(
        f"{writer.teacher} read {report['asked']} texts, {report['kept']} kept; dropped: {report['dropped'] or 'none'}"
    )
    return report


def _checked(chosen: Mapping):
    for key in chosen:
        refuse_unknown("distill.readings", key, KEYS)
    told = chosen.get("method")
    told = {told: {}} if isinstance(told, str) else told
    if not isinstance(told, Mapping) or len(told) != 1 or not set(told) <= set(METHODS):
        raise SettingsError(f"method is one of {', '.join(METHODS)} with its settings; got {chosen.get('method')!r}")
    ((name, settings),) = told.items()
    limit = chosen.get("texts", TEXTS)
    if not isinstance(limit, int) or limit < 1:
        raise SettingsError(f"texts is how many are read, a whole number >= 1; got {limit!r}")
    method("distill.texts", name)
    return build("distill.texts", name, **(settings or {})), open_writer(chosen.get("writer")), limit


def _texts(way, corpus: str | Path, limit: int) -> tuple[list[dict], dict[str, int]]:
    """The first texts that are long enough, each once, and how many were passed over."""
    found: dict[str, dict] = {}
    passed_over = {"too short": 0, "a text twice": 0}
    for text, row in _units(corpus, way.unit):
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        if len(text) < way.shortest:
            passed_over["too short"] += 1
        elif key in found:
            passed_over["a text twice"] += 1
        else:
            found[key] = {"key": key, "text": text, "origin": row.get("source"), "language": row.get("language"),
                          "of": row.get("licence")}  # fmt: skip
        if len(found) == limit:
            break
    if not found:
        raise TextRejected(f"{corpus} has no text of {way.shortest} letters or more; lower `shortest`, or bring others")
    return list(found.values()), passed_over


def _units(corpus: str | Path, unit: str) -> Iterator[tuple[str, dict]]:
    for row in _documents(corpus):
        texts = [" ".join(text.split()) for text in row["sentences"]]
        for text in texts if unit == "sentence" else [" ".join(texts)]:
            yield text, row


def _documents(corpus: str | Path) -> Iterator[dict]:
    for frame in batches(corpus, "train"):
        if "sentences" not in frame.columns:
            raise TextRejected(f"{corpus} has the columns {', '.join(frame.columns)}; a corpus of documents is needed")
        yield from frame.to_dicts()


def _document(lines: list[str], row: Mapping, writer, way) -> dict:
    """A framed document. It is of two licences: that of the text, and that of what the teacher wrote about it."""
    licences = [each for each in dict.fromkeys((row["of"], writer.licence)) if each]
    return {"sentences": lines, "language": row["language"], "licence": " AND ".join(licences),
            "source": f"{writer.teacher} {way.version}"}  # fmt: skip


def _plain(corpus: str | Path, letters: float) -> list[dict]:
    """Documents as they are, until they have so many letters."""
    taken, size = [], 0
    for row in _documents(corpus):
        if size >= letters:
            break
        taken.append({name: row.get(name) for name in ("sentences", "language", "licence", "source")})
        size += sum(map(len, row["sentences"]))
    return taken


def _size(documents: list[dict]) -> int:
    return sum(len(line) for document in documents for line in document["sentences"])


def _ingest(documents: list[dict], out: Path, heldout: float) -> None:
    schema = {"sentences": pl.List(pl.String), **dict.fromkeys(("language", "licence", "source"), pl.String)}
    with TemporaryDirectory() as place:
        file = Path(place) / "documents.parquet"
        pl.DataFrame(documents, schema=schema).write_parquet(file)
        ingest_text("documents", pl.scan_parquet(file), file.stat().st_size, out, heldout)


def _named(values: Mapping) -> dict:
    return {label.lower(): list(value) if isinstance(value, tuple) else value for label, value in values.items()}


def main(address: str, corpus: str, out: str, written: str) -> None:
    """python -m tasks.generate_reading params.yaml:distill.readings.NAME CORPUS OUT WRITTEN"""
    generate_reading(read(address), corpus, out, written)


if __name__ == "__main__":
    run(main)
