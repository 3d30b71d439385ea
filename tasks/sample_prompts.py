"""What every version of a model is asked for its page of samples: beginnings of held-out texts.

    python -m tasks.sample_prompts params.yaml:language.evaluations.NAME artifacts/ingest OUT.parquet

The same for every version, as long as the data are the same: of each language the first by a hash.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from tasks.command import run
from tasks.evaluate_language import held_out
from tasks.settings import SettingsError, read

__all__ = ["sample_prompts"]

EACH = 4  # prompts of a language
BEGINNING = 3  # a text's first third is the prompt
LEAST, MOST = 8, 200  # characters of a beginning


def sample_prompts(settings: Mapping, ingested: str | Path, out: str | Path) -> pl.DataFrame:
    """Write id and prompt: beginnings of held-out texts of each language that is evaluated.

    Args:
        settings: of tasks/evaluate_language.py.
        ingested: folder of ingested data sets.
        out: Parquet, whole or not at all.

    Raises:
        SettingsError: no text is evaluated, or none is long enough.
    """
    rows = []
    for language, chosen in (settings.get("texts") or {}).items():
        texts = dict.fromkeys(held_out(language, chosen, Path(ingested)))
        long = [text for text in texts if len(text) >= BEGINNING * LEAST]
        for number, text in enumerate(sorted(long, key=_place)[:EACH]):
            size = min(len(text) // BEGINNING, MOST)
            # A prompt ends with a whole word; languages without spaces have such words too, as names of brands.
            whole = re.sub(r"[0-9A-Za-z]+$", "", text[:size]) if re.match("[0-9A-Za-z]", text[size]) else text[:size]
            rows.append({"id": f"{language}/{number}", "prompt": whole.rstrip() or text[:size]})
    if not rows:
        raise SettingsError("no held-out text to begin from; give the evaluation `texts`, of 24 characters or more")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    found, fresh = pl.DataFrame(rows), out.with_name(f".{out.name}.new")
    try:
        found.write_parquet(fresh)
        fresh.replace(out)
    finally:
        fresh.unlink(missing_ok=True)
    return found


def _place(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main(address: str, ingested: str, out: str) -> None:
    """python -m tasks.sample_prompts params.yaml:language.evaluations.NAME INGESTED OUT.parquet"""
    print(f"{out}: {len(sample_prompts(read(address), ingested, out))} prompts")


if __name__ == "__main__":
    run(main)
