"""A catalogue, seed instructions and a teacher -> instructions with answers, split by product; every record says whose.

    python -m tasks.authoring.records params.yaml:language.authored.NAME CATALOGUE OUT WRITTEN

1. The teacher words the seeds anew (Self-Instruct, arXiv:2212.10560), and what is alike is left out.
2. Each job, a form of one of the five tasks, meets its quota: the catalogue gives the answers that it knows, the
   teacher writes the others, and filters count what they drop.
3. Records follow their product into its split; a task and whole categories may be held out.

Source: Shi et al., 2023, arXiv:2308.04913, whose teacher, seeds and counts are not public; all of these are ours.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from models.components._closest import refuse_unknown
from models.language.llama_e import TASKS, LlamaE, missing
from tasks.authoring._build import Builder, Job, Short, jobs_of, quotas
from tasks.authoring._catalogue import Product, place, read_catalogue
from tasks.authoring._seeds import SLOTS, Seeds, Wording, read_seeds
from tasks.authoring._splits import ROWS, split_of, split_products
from tasks.authoring._teacher import SHOWN, kind_of, open_teacher, read_list, wording_prompt
from tasks.authoring.filters import kept_wordings, wording_fault
from tasks.command import run
from tasks.files import digest, new_folder, write_json
from tasks.settings import SettingsError, read
from tasks.writers._writer import Writer, write_all

__all__ = ["SCHEMA", "VERSION", "author_records"]

KEYS = ("catalogue", "writer", "records", "shares", "products", "expand", "seeds", "languages", "split", "similar",
        "zero", "rounds", "seed", "licence")  # fmt: skip
NUMBERS = {"records": 2000, "expand": 12, "rounds": 5, "seed": 7}
SHARES = {"ads": 3, "title": 3, "classification": 2, "intent": 2, "qa": 0.5}
VERSION = "authoring-1"
PROVENANCE = {"teacher_kind": pl.String, "teacher_name": pl.String, "teacher_sha": pl.String,
              "seed_ids": pl.List(pl.String), "template_id": pl.String, "wording_kind": pl.String,
              "filters_passed": pl.List(pl.String)}  # fmt: skip
TEXT = ("task", "instruction", "input", "output", "language", "job", "requires", "presented", "product", "title",
        "brand", "category", "query", "heldout_query", "occasion", "question", "template")  # fmt: skip
SCHEMA = {
    **dict.fromkeys(TEXT, pl.String), "related": pl.List(pl.String), "key_facts": pl.List(pl.String),
    "written": pl.Boolean, "provenance": pl.Struct(PROVENANCE), "licence": pl.String, "origin": pl.String,
}  # fmt: skip


def author_records(chosen: Mapping, catalogue: str | Path, out: str | Path, written: str | Path) -> dict:
    """Build the set, and write the folder `out` whole or not at all.

    Args:
        chosen: {writer: {name of tasks/writers: settings}, records (2000), shares: {task: weight}, products: of the
            catalogue at most, expand (12): times that the teacher is asked for wordings of each job and language,
            seeds: further files of seeds, languages: some of those that have both seeds and products, split: {dev,
            test: percent of the clusters, 10 each}, similar (0.8): likeness of titles in one cluster, zero: {task: a
            task, or task/feature, that is never trained; categories: number of top categories that are not}, rounds
            (5): drafts of a job, in quotas, seed, licence: of the catalogue's texts, catalogue: a name, for the graph}.
        catalogue: ingested folder of examples with facts, or of events.
        out: takes rows/{train,dev,test,zero_task,zero_category}.parquet (columns: SCHEMA), prompts.parquet (what other
            ways to decode are asked), manifest.json, titles.json, wordings.json and report.json.
        written: folder for what the teacher wrote, JSON lines; a stopped run goes on with it.

    Returns:
        The report.

    Raises:
        SettingsError, CatalogueUnreadable: what cannot work.
        Short: a quota cannot be met; names the job and what was dropped for what.
        ConnectionError, WriterRefused: of the teacher; what it wrote is kept.
    """
    told = _checked(chosen)
    seeds, products = read_seeds(told["seeds"]), read_catalogue(catalogue, told["products"])
    languages = _languages(told["languages"], seeds, products)
    products = [product for product in products if product.language in languages]
    teacher, kind = open_teacher(told["writer"], seeds), kind_of(told["writer"])
    splits, cluster = split_products(products, told["similar"], told["split"], told["zero"]["categories"], told["seed"])
    wordings, asked = _wordings(seeds, languages, teacher, kind, told, Path(written) / "wordings.jsonl")
    name = f"{Path(catalogue).name}@{digest(catalogue)[:12]}"
    ask = lambda prompts: write_all(teacher, prompts, VERSION, Path(written) / "texts.jsonl")["text"].to_list()
    builder = Builder(seeds, products, splits, ask, (kind, teacher.teacher), name, told["rounds"], told["seed"])
    records = _records(builder, wordings, languages, told)
    licence = told["licence"] or _licence(Path(catalogue))
    parts: dict[str, list[dict]] = {split: [] for split in ROWS}
    for record in records:
        record["licence"] = teacher.licence if record["written"] else licence
        record["origin"] = record["provenance"]["teacher_name"]
        parts[_split(record, splits, told)].append(record)
    report = _report(records, parts, builder, told, teacher, kind)
    report |= {"wordings": asked, "products": len(products), "clusters": len(set(cluster.values())),
               "products_in": dict(sorted(Counter(splits.values()).items()))}  # fmt: skip
    with new_folder(out) as folder:
        (folder / "rows").mkdir()
        for split, rows in parts.items():
            pl.DataFrame(rows, schema=SCHEMA).write_parquet(folder / "rows" / f"{split}.parquet")
        write_json(folder / "wordings.json", {one.id: vars(one) | {"presents": list(one.presents)} for one in wordings})
        _prompts(parts["test"]).write_parquet(folder / "prompts.parquet")
        write_json(folder / "titles.json", {"titles": [one.title for one in products]})
        write_json(folder / "report.json", report)
        write_json(folder / "manifest.json", {
            "kind": "instructions", "catalogue": name, "seeds": seeds.digest, "teacher": teacher.teacher,
            "teacher_kind": kind, "teacher_content": _content(teacher),
            "provenance": report["provenance"], "digest": digest(folder / "rows"),
            "rows": report["rows"], "languages": languages, "taxonomy": sorted({one.path for one in products}),
            "lexicon": {key: sorted({one.facts[key] for one in products if one.facts.get(key)})
                        for key in ("brand", "condition", "size", "colour", "material")},
        })  # fmt: skip
    shares = ", ".join(f"{share:.0%} {one}" for one, share in report["provenance"].items())
    dropped = ", ".join(f"{count} {one}" for one, count in report["dropped"].items()) or "none"
    rows = ", ".join(f"{split} {count}" for split, count in report["rows"].items())
    print(f"{len(records)} records of {len(products)} products ({shares}); dropped: {dropped}; {len(wordings)} "
          f"wordings; {rows}")  # fmt: skip
    if lacking := {side: names for side, names in report["missing"].items() if names}:
        told = "; ".join(f"{', '.join(names)} never {side}" for side, names in lacking.items())
        print(f"not interleaved: {told}; the catalogue or the shares leave no record of that kind")
    return report


def _checked(chosen: Mapping) -> dict:
    """Settings with their defaults; all faults at once."""
    for key in chosen:
        refuse_unknown("language.authored", key, KEYS)
    told = {"writer": {"templates": {}}, "products": None, "seeds": [], "languages": None, "similar": 0.8,
            "licence": None, **NUMBERS, **chosen}  # fmt: skip
    told["shares"] = dict(chosen.get("shares") or SHARES)
    told["split"] = {"dev": 10, "test": 10} | dict(chosen.get("split") or {})
    told["zero"] = {"task": None, "categories": 0} | dict(chosen.get("zero") or {})
    least = dict.fromkeys(("records", "rounds"), 1) | {"expand": 0, "seed": 0}
    wrong = [f"{key} must be a whole number >= {low}, got {told[key]!r}" for key, low in least.items()
             if not isinstance(told[key], int) or told[key] < low]  # fmt: skip
    for task, share in told["shares"].items():
        refuse_unknown("language.authored.shares", task, TASKS)
        wrong += [f"the share of {task} must be >= 0, got {share!r}"] * (
            not isinstance(share, (int, float)) or share < 0
        )
    if not 0 < told["similar"] <= 1:
        wrong.append(f"similar must be in (0, 1], got {told['similar']!r}")
    if set(told["split"]) != {"dev", "test"} or sum(told["split"].values()) >= 100:
        wrong.append(f"split has the percents of dev and test, together below 100; got {told['split']}")
    if set(told["zero"]) != {"task", "categories"}:
        wrong.append(f"zero has task and categories, got {', '.join(told['zero'])}")
    elif told["zero"]["task"] and told["zero"]["task"].split("/")[0] not in TASKS:
        wrong.append(f"zero: the task is one of {', '.join(TASKS)}, or task/feature; got {told['zero']['task']!r}")
    if wrong:
        raise SettingsError("language.authored: " + "; ".join(wrong))
    return told


def _languages(wanted: Sequence[str] | None, seeds: Seeds, products: Sequence[Product]) -> list[str]:
    there = sorted({product.language for product in products} & set(seeds.languages))
    if lacking := sorted(set(wanted or ()) - set(there)):
        raise SettingsError(f"there are not both seeds and products in {', '.join(lacking)}; there are in "
                            f"{', '.join(there) or 'no language'}")  # fmt: skip
    if not there:
        raise SettingsError(f"the seeds are in {', '.join(seeds.languages)}, and no product of the catalogue is; give "
                            f"`seeds` in its language")  # fmt: skip
    return list(wanted or there)


def _wordings(
    seeds: Seeds, languages: Sequence[str], teacher: Writer, kind: str, told: Mapping, file: Path
) -> tuple[list[Wording], dict]:
    """The experts' wordings, and those of the teacher that are instructions and unlike all others of their task."""
    kept = [one for one in seeds.wordings if one.language in languages]
    groups: dict[tuple, list[Wording]] = defaultdict(list)
    for one in kept:
        if one.task != "qa":  # there the question itself is what varies
            groups[one.task, one.language, one.job].append(one)
    prompts, shown = [], []
    for (_, language, _), some in groups.items():
        for number in range(told["expand"]):
            order = sorted(some, key=lambda one: place(1 << 60, told["seed"], number, one.id))
            shown.append(order[:SHOWN])
            prompts.append(wording_prompt(order[:SHOWN], number, language, seeds))
    texts = write_all(teacher, prompts, VERSION, file)["text"].to_list() if prompts else []
    dropped, asked = Counter(), 0
    for some, reply in zip(shown, texts, strict=True):
        like = some[0]
        for text in read_list(reply):
            asked += 1
            allowed = SLOTS if like.requires == "ad" else ()
            fault = wording_fault(text, allowed, like.language)
            known = [one.text for one in kept if (one.task, one.language) == (like.task, like.language)]
            if fault is None and not kept_wordings(known, [text])[0]:
                fault = "alike"
            if fault is not None:
                dropped[fault] += 1
                continue
            number = f"{like.task}-{like.language}-{like.requires}-{kind}-{asked}"
            kept.append(Wording(number, like.task, like.language, like.presents, like.requires, text,
                                tuple(one.id for one in some), kind))  # fmt: skip
    return kept, {"expert": sum(one.kind == "expert" for one in kept), "replies": len(texts), "asked": asked,
                  "kept": sum(one.kind != "expert" for one in kept),
                  "dropped": dict(sorted(dropped.items()))}  # fmt: skip


def _records(builder: Builder, wordings: Sequence[Wording], languages: Sequence[str], told: Mapping) -> list[dict]:
    """Quotas of tasks, of their languages, of their jobs; what others read is written first."""
    jobs = jobs_of(wordings)
    only = {job.name: "test" if _zero(job.task, job.requires, told) else None for job in jobs}
    jobs = [job for job in jobs if builder.possible(job, only[job.name])]
    wanted: dict[str, int] = {}
    for task, count in quotas(told["records"], {t: s for t, s in told["shares"].items() if s}).items():
        spoken = [language for language in languages if any((j.task, j.language) == (task, language) for j in jobs)]
        if not spoken:
            raise Short(f"no product of the catalogue can be asked about in the task {task}; leave it out of `shares`")
        for language, part in quotas(count, dict.fromkeys(spoken, 1)).items():
            own = [job for job in jobs if (job.task, job.language) == (task, language)]
            wanted |= quotas(part, {job.name: 1 for job in own})
    order: list[Job] = sorted(jobs, key=lambda job: (job.later, job.requires != "ad"))
    records, lacking, willing = [], Counter(), defaultdict(list)
    order = [job for job in order if job.name in wanted]
    for job in order:
        found = builder.fill(job, wanted[job.name], only[job.name]) if wanted[job.name] else []
        lacking[job.task, job.language] += wanted[job.name] - len(found)
        if len(found) == wanted[job.name]:
            willing[job.task, job.language].append(job)
        records += found
    for key, count in lacking.items():  # what a job could not give, others of its task and language do
        for job in willing[key]:
            found = builder.fill(job, count, only[job.name]) if count else []
            records, count = records + found, count - len(found)
        if count:
            raise builder.short([job for job in jobs if (job.task, job.language) == key], count)
    return records


def _zero(task: str, requires: str, told: Mapping) -> bool:
    return told["zero"]["task"] in (task, f"{task}/{requires}")


def _split(record: Mapping, splits: Mapping[str, str], told: Mapping) -> str:
    """Where a record goes: with its product, a question with its wording."""
    if _zero(record["task"], record["requires"], told):
        return "zero_task"
    if record["product"] is None:
        return split_of(f"question {record['question']}", told["split"], told["seed"])
    return splits[record["product"]]


def _prompts(test: Sequence[Mapping]) -> pl.DataFrame:
    """What tasks/generate.py and tasks/samples_page.py ask: advertisements and titles of test products."""
    asked = [one for one in test if one["requires"] in ("ad", "title")]
    said = [[{"role": "user", "content": LlamaE.asked(one["instruction"], one["input"])}] for one in asked]
    messages = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    ids = [f"{one['task']}/{number}" for number, one in enumerate(asked)]
    made = {"id": ids, "messages": said, "topic": [one["category"] for one in asked],
            "reference": [one["output"] for one in asked]}  # fmt: skip
    strings = dict.fromkeys(made, pl.String)
    return pl.DataFrame(made, schema=strings | {"messages": messages})


def _content(teacher: Writer) -> str | None:
    """Of a teacher that is a folder: the SHA-256 of its files, by which a judge is known to be another."""
    folder = getattr(teacher, "folder", None)
    return digest(folder) if folder else None


def _licence(catalogue: Path) -> str:
    """Of the catalogue's rows, where they say it."""
    file = catalogue / "rows" / "train.parquet"
    named = pl.scan_parquet(file).select("licence").unique().collect()["licence"] if file.is_file() else []
    return " AND ".join(sorted(name for name in named if name)) or "unknown"


def _report(
    records: Sequence[Mapping], parts: Mapping[str, Sequence[Mapping]], builder: Builder, told: Mapping,
    teacher: Writer, kind: str,
) -> dict:  # fmt: skip
    count = lambda key, some: dict(sorted(Counter(one[key] for one in some).items()))
    kinds = Counter(one["provenance"]["teacher_kind"] for one in records)
    triples = lambda some: [(one["task"], _features(one), one["requires"]) for one in some]
    dropped: Counter = sum(builder.dropped.values(), Counter())
    return {
        "rows": {split: len(rows) for split, rows in parts.items()},
        "tasks": count("task", records), "languages": count("language", records), "jobs": count("job", records),
        "shares": {task: number / len(records) for task, number in count("task", records).items()},
        "provenance": {one: number / len(records) for one, number in sorted(kinds.items())},
        "dropped": dict(sorted(dropped.items())),
        "dropped_by_job": {job: dict(sorted(found.items())) for job, found in sorted(builder.dropped.items())},
        "drafts": sum(builder.asked.values()),
        "missing": missing(triples(records)), "missing_in_train": missing(triples(parts["train"])),
        "teacher": teacher.teacher, "teacher_kind": kind, "licence": teacher.licence, "zero": told["zero"],
        "result": "template-expanded" if kind == "templates" else f"expanded by {teacher.teacher}",
    }  # fmt: skip


def _features(record: Mapping) -> list[str]:
    return list(json.loads(record["presented"]))


def main(address: str, catalogue: str, out: str, written: str) -> None:
    """python -m tasks.authoring.records params.yaml:language.authored.NAME CATALOGUE OUT WRITTEN"""
    author_records(read(address), catalogue, out, written)


if __name__ == "__main__":
    run(main)
