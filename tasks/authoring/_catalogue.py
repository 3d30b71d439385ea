"""Products of a catalogue, from labelled examples or from a log of events, with what can be asked about them.

    examples   text is the title, second has a fact a line ("brand: Albora"), label the path of categories with " > "
    events     MerRec's columns: name, c0_name .. c2_name, brand_name, item_condition_name, color, size_name, price

What customers of a log want next is an aggregate: a category counts only when so many different users went on to it.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tasks.authoring.grounding import Lexicon
from tasks.datasets._text import language_of

__all__ = ["FACTS", "JOIN", "CatalogueUnreadable", "Product", "lexicon_of", "place", "queries", "read_catalogue"]

FACTS = ("brand", "condition", "size", "colour", "material", "price", "use")
JOIN = " > "  # between the categories of a path
USERS = 5  # who must have gone from one category to another before it is told
NEXT = 3  # categories that a product's buyers look at next, at most
WANTED = ("item_like", "buy_comp")  # events that say what a user wants
QUERIES = (  # facts that make a query, the leaf category always among them
    ("brand", "leaf"), ("leaf", "use"), ("colour", "leaf"), ("leaf", "top"), ("material", "leaf"), ("size", "leaf"),
    ("brand", "leaf", "use"), ("colour", "material", "leaf"), ("brand", "colour", "leaf"), ("leaf", "condition"),
)  # fmt: skip


class CatalogueUnreadable(ValueError):
    """A data set has no titles with attributes."""


@dataclass(frozen=True)
class Product:
    """What is sold."""

    id: str
    title: str
    language: str
    category: tuple[str, ...]  # from the top
    facts: Mapping[str, str] = field(default_factory=dict)  # of FACTS; price as digits
    related: tuple[str, ...] = ()  # paths of categories that its customers want next

    @property
    def path(self) -> str:
        """The category, as it is asked for."""
        return JOIN.join(self.category)


def read_catalogue(folder: str | Path, most: int | None = None) -> list[Product]:
    """Products of an ingested data set, in the order of their ids; titles and categories are never empty.

    Args:
        folder: rows/ of examples, or events/ of a log.
        most: so many products, chosen by a hash of their id; None for all.

    Raises:
        CatalogueUnreadable: neither, or nothing in it is a product; says what was found.
    """
    folder = Path(folder)
    if (folder / "rows" / "train.parquet").is_file():
        found = _from_examples(folder / "rows")
    elif (folder / "events").is_dir():
        found = _from_events(folder / "events", most)
    else:
        raise CatalogueUnreadable(f"{folder} has neither rows/train.parquet nor events/; ingest a data set with titles "
                                  f"and attributes, such as listings with answer: catalogue")  # fmt: skip
    found = sorted((one for one in found if one.title and one.category), key=lambda one: one.id)
    if not found:
        raise CatalogueUnreadable(f"{folder} has no row with a title, a category and facts such as `brand: ...`; of "
                                  f"the made-up listings, those with answer: catalogue have them")  # fmt: skip
    if most is not None and len(found) > most:
        kept = {one.id for one in sorted(found, key=lambda one: place(1 << 60, "product", one.id))[:most]}
        found = [one for one in found if one.id in kept]
    return found


def lexicon_of(products: Iterable[Product]) -> Lexicon:
    """What a text about these products may get wrong."""
    products = list(products)
    kinds = ("brand", "condition", "size", "colour", "material")
    return Lexicon.of({kind: [one.facts.get(kind) for one in products] for kind in kinds})


def queries(product: Product) -> list[str]:
    """What customers may search it by, best first: words of its category and facts; a surrogate where no log tells."""
    known = dict(product.facts) | {"leaf": product.category[-1].lower()}
    if len(product.category) > 1:
        known["top"] = product.category[0].lower()
    parts = [[known[name] for name in names] for names in QUERIES if all(known.get(name) for name in names)]
    return list(dict.fromkeys(" ".join(words) for words in parts))


def place(count: int, *what) -> int:
    """A number in 0..count - 1 that follows from `what`."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, what)).encode()).digest()[:8]) % count


def _from_examples(rows: Path) -> list[Product]:
    frame = pl.concat([pl.read_parquet(file, columns=["text", "second", "label"]) for file in sorted(rows.glob("*"))])
    found = {}
    for title, told, label in frame.iter_rows():
        facts = dict(re.findall(r"^\s*(\w+)\s*[:：]\s*(\S.*?)\s*$", told or "", re.MULTILINE))
        if not facts or not title or not label:
            continue
        language = facts.pop("language", None) or language_of(title)
        known = {name: facts[name] for name in FACTS if name in facts}
        path = tuple(part.strip() for part in label.split(JOIN.strip()) if part.strip())
        # The title and all facts together: two sellers may use one title.
        key = hashlib.sha256("\x1f".join([title, label, *map(str, sorted(facts.items()))]).encode()).hexdigest()[:16]
        found[key] = Product(key, title.strip(), language, path, known)
    return list(found.values())


def _from_events(events: Path, most: int | None) -> list[Product]:
    log = pl.scan_parquet(events / "**/*.parquet", hive_partitioning=False)
    there = log.collect_schema().names()
    names = {"name": "title", "brand_name": "brand", "item_condition_name": "condition", "size_name": "size",
             "color": "colour", "price": "price"}  # fmt: skip
    levels = [name for name in ("c0_name", "c1_name", "c2_name") if name in there]
    if "name" not in there or not levels:
        return []
    if most is not None:  # a log has more items than memory: choose before their columns are read
        ids = log.select(pl.col("item_id").unique()).collect(engine="streaming")
        chosen = ids.sort(pl.col("item_id").hash(seed=7), "item_id").head(most).lazy()
        named = log.join(chosen, on="item_id", how="semi")
    else:
        named = log
    taken = [pl.col(old).alias(new) for old, new in names.items() if old in there]
    items = named.select("item_id", *taken, *levels).group_by("item_id").agg(pl.all().drop_nulls().first()).collect()
    related = _wanted_next(log, levels)
    found = []
    for row in items.iter_rows(named=True):
        path = tuple(row[name] for name in levels if row[name])
        facts = {name: str(row[name]) for name in ("brand", "condition", "size", "colour") if row.get(name)}
        if row.get("price") is not None:
            facts["price"] = f"{row['price']:g}"
        title = (row["title"] or "").strip()
        product = Product(f"{row['item_id']}", title, language_of(title), path, facts)
        found.append(Product(**vars(product) | {"related": related.get(product.path, ())}))
    return found


def _wanted_next(log: pl.LazyFrame, levels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Path of a category -> those that enough users liked or bought next."""
    path = pl.concat_str([pl.col(name) for name in levels], separator=JOIN, ignore_nulls=True).alias("path")
    wanted = log.filter(pl.col("event_id").is_in(WANTED)).select("user_id", "stime", path).filter(pl.col("path") != "")
    pairs = (
        wanted.sort("user_id", "stime", "path")
        .with_columns(next=pl.col("path").shift(-1).over("user_id"))
        .filter(pl.col("next").is_not_null() & (pl.col("next") != pl.col("path")))
        .group_by("path", "next")
        .agg(users=pl.col("user_id").n_unique())
        .filter(pl.col("users") >= USERS)
        .sort("path", "users", "next", descending=[False, True, False])
        .collect()
    )
    found: dict[str, tuple[str, ...]] = {}
    for one, other, _ in pairs.iter_rows():
        if len(found.setdefault(one, ())) < NEXT:
            found[one] += (other,)
    return found
