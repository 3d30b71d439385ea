"""How records come about: jobs take products in turn, truths are looked up, texts are asked for, filters decide.

Everything is a function of the seeds, the teacher and the seed number: products, wordings, queries and slots are drawn
by hashes, and a job asks for more, in rounds, until its quota is met or its patience ends.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tasks.authoring._catalogue import Product, lexicon_of, place, queries
from tasks.authoring._phrases import attributes, fields, given, says
from tasks.authoring._seeds import SLOTS, Seeds, Wording
from tasks.authoring._teacher import OurTemplates, text_prompt
from tasks.authoring.filters import Draft, Judge, applied, fault
from tasks.authoring.grounding import invented
from tasks.authoring.measures import terms_found
from tasks.writers._writer import Prompt, prompt_hash

__all__ = ["Builder", "Job", "Short", "draft_of", "jobs_of", "quotas"]

Ask = Callable[[Sequence[Prompt]], list[str]]
OURS = {"category", "brand", "attributes", "query"}  # features that the catalogue knows: no teacher is asked
FROM_OTHERS = ("ad", "intent")  # features that other records wrote


class Short(ValueError):
    """A quota cannot be met."""


@dataclass(frozen=True)
class Job:
    """Records of one form: the same task, language, features shown and feature asked for."""

    task: str
    language: str
    presents: tuple[str, ...]
    requires: str
    wordings: tuple[Wording, ...]

    @property
    def name(self) -> str:
        return f"{self.task}/{self.language}/{'+'.join(self.presents) or 'nothing'}>{self.requires}"

    @property
    def later(self) -> bool:
        """It shows what other records wrote."""
        return any(feature in FROM_OTHERS for feature in self.presents)


def jobs_of(wordings: Sequence[Wording]) -> list[Job]:
    """The jobs of wordings, in their order."""
    found: dict[tuple, list[Wording]] = defaultdict(list)
    for one in wordings:
        found[one.task, one.language, tuple(sorted(one.presents)), one.requires].append(one)
    return [Job(task, language, presents, requires, tuple(some))
            for (task, language, presents, requires), some in found.items()]  # fmt: skip


def quotas(total: int, weights: Mapping) -> dict:
    """`total` shared by weight, as whole numbers: the largest remainders get what is left.

    >>> quotas(10, {"a": 2, "b": 1})
    {'a': 7, 'b': 3}
    """
    whole = sum(weights.values())
    exact = {key: total * weight / whole for key, weight in weights.items()}
    found = {key: int(value) for key, value in exact.items()}
    for key in sorted(exact, key=lambda key: found[key] - exact[key])[: total - sum(found.values())]:
        found[key] += 1
    return found


class Builder:
    """Makes the records of one set.

    Args:
        seeds: our words.
        products: of the catalogue.
        splits: product -> split.
        ask: the teacher's answers to prompts.
        teacher: (kind, name) of who answers.
        catalogue: name of where truths come from.
        rounds: texts asked for, in quotas, before a job gives up.
        seed: of all draws.
    """

    def __init__(
        self,
        seeds: Seeds,
        products: Sequence[Product],
        splits: Mapping[str, str],
        ask: Ask,
        teacher: tuple[str, str],
        catalogue: str,
        rounds: int,
        seed: int,
    ):
        self.seeds, self.products, self.splits, self.ask, self.teacher = seeds, products, splits, ask, teacher
        self.catalogue, self.rounds, self.seed = catalogue, rounds, seed
        self.templates = OurTemplates(seeds)  # what they would write stands beside every text, as a baseline
        self.judge = Judge(lexicon_of(products), {product.path for product in products})
        self.written: dict[tuple[str, str, str], list[str]] = {}  # (product, language, feature) -> texts
        self.dropped: dict[str, Counter] = defaultdict(Counter)  # job -> filter -> records
        self.asked: Counter = Counter()
        self._seen: set[str] = set()

    def fill(self, job: Job, quota: int, only: str | None = None) -> list[dict]:
        """So many records of a job, or fewer: after `rounds` times as many drafts its patience ends.

        Args:
            only: the split whose products may be taken; None for all.
        """
        order = list(self._questions(job) if job.task == "qa" else self._products(job, only))
        kept: list[dict] = []
        most = self.asked[job.name] + self.rounds * quota + 8
        while len(kept) < quota and order and self.asked[job.name] < most:
            first = self.asked[job.name]
            number = range(first, min(most, first + (quota - len(kept)) * 5 // 4 + 2))
            self.asked[job.name] = number.stop
            # once all products had their turn, each meets another wording
            turn = lambda n: job.wordings[(n + n // len(order)) % len(job.wordings)]
            drafts = [self._draft(job, order[n % len(order)], turn(n), n) for n in number]
            kept += self._judged(job, self._answered(job, drafts), quota - len(kept))
        return kept

    def short(self, jobs: Sequence[Job], lacking: int) -> Short:
        """The error of jobs that together lack so many records: what was dropped for what."""
        why = sum((self.dropped[job.name] for job in jobs), Counter())
        told = ", ".join(f"{count} {name}" for name, count in why.most_common()) or "none"
        drafts = sum(self.asked[job.name] for job in jobs)
        return Short(f"{jobs[0].task} in {jobs[0].language}: {lacking} records are lacking after {drafts} drafts of "
                     f"{len(jobs)} jobs from {len(self.products)} products; dropped: {told}. Ask for fewer, take a "
                     f"larger catalogue, or another teacher")  # fmt: skip

    def possible(self, job: Job, only: str | None = None) -> bool:
        """Whether any product can be asked about; what other records write is taken to be there."""
        return job.task == "qa" or any(self._fits(job, product, only, True) for product in self.products)

    # ---------------------------------------------------------------- what is asked about

    def _products(self, job: Job, only: str | None) -> Iterator[tuple[Product, str]]:
        found = [product for product in self.products if self._fits(job, product, only, False)]
        found.sort(key=lambda product: (place(1 << 60, self.seed, job.name, product.id), product.id))
        yield from ((product, "") for product in found)

    def _questions(self, job: Job) -> Iterator[tuple[Mapping, str]]:
        pairs = [(entry, question) for entry in self.seeds.words["glossary"] if job.language in entry
                 for question in entry[job.language]["questions"]]  # fmt: skip
        yield from sorted(pairs, key=lambda pair: place(1 << 60, self.seed, job.name, pair[1]))

    def _fits(self, job: Job, product: Product, only: str | None, soon: bool) -> bool:
        if product.language != job.language or only and self.splits[product.id] != only:
            return False
        facts = product.facts
        if not soon and any(feature in FROM_OTHERS and not self.written.get((product.id, job.language, feature))
                            for feature in job.presents):  # fmt: skip
            return False
        if "brand" in (*job.presents, job.requires) and not facts.get("brand"):
            return False
        if job.requires == "brand" and not says(product.title, facts["brand"]):
            return False  # nobody could tell it from the title
        if job.requires == "attributes" and not attributes(product, self.seeds, product.title, job.language):
            return False
        if "attributes" in job.presents and not attributes(product, self.seeds, language=job.language):
            return False
        if job.requires == "title" and "query" in job.presents and not self._wanting(product):
            return False
        return "query" not in (*job.presents, job.requires) or len(queries(product)) > 1

    def _wanting(self, product: Product) -> list[str]:
        """Queries that the title does not answer yet."""
        return [query for query in queries(product) if terms_found(query, product.title) < 1]

    # ---------------------------------------------------------------- an exchange

    def _draft(self, job: Job, subject: tuple, wording: Wording, number: int) -> dict:
        draw = lambda count, what: place(count, self.seed, job.name, number, what)
        slots = {name: (some := self.seeds.words[f"{name}s"][job.language])[draw(len(some), name)]
                 for name in SLOTS if name in wording.slots}  # fmt: skip
        base = {"number": number, "wording": wording, "slots": slots, "key": f"{job.name}/{number}"}
        if job.task == "qa":
            entry, question = subject
            return base | {"product": None, "entry": entry, "question": question, "query": "", "other": "",
                           "presented": {"question": question} if "question" in wording.presents else {}}  # fmt: skip
        product = subject[0]
        asked = queries(product) or [""]
        first = (self._wanting(product) if job.requires == "title" and "query" in job.presents else asked) or asked
        query = first[draw(len(first), "query")]
        others = [one for one in asked if one != query] or [query]
        other = others[draw(len(others), "other")]
        return base | {"product": product, "query": query, "other": other,
                       "presented": {feature: self._shown(job, product, feature, query, draw)
                                     for feature in wording.presents}}  # fmt: skip

    def _shown(self, job: Job, product: Product, feature: str, query: str, draw: Callable) -> str:
        if feature in FROM_OTHERS:
            some = self.written[product.id, job.language, feature]
            return some[draw(len(some), feature)]
        return {
            "title": product.title, "query": query, "category": product.path, "brand": product.facts.get("brand", ""),
            "attributes": attributes(product, self.seeds, language=job.language),
        }[feature]  # fmt: skip

    def _answered(self, job: Job, drafts: Sequence[dict]) -> list[dict]:
        """Drafts with their output and where it comes from; the teacher is asked for those without a truth."""
        open_, prompts = [], []
        for one in drafts:
            one["instruction"] = one["wording"].text.format(**one["slots"], question=one.get("question", ""))
            one["input"] = given(one["presented"], self.seeds, job.language)
            truth = self._truth(job, one)
            if truth is not None:
                kind = "glossary" if job.task == "qa" else "catalogue"
                one |= {"output": truth, "kind": kind, "name": kind if job.task == "qa" else self.catalogue}
                continue
            product = one["product"]
            value = self.seeds.words["values"][job.language]
            known = fields(product, one["wording"], self.seeds, one["slots"], one["query"])
            known["value"] = value[place(len(value), self.seed, one["key"], "value")]
            hint = f"Its customers go on to look at: {', '.join(product.related)}.\n" if (
                job.requires == "intent" and product.related) else ""  # fmt: skip
            prompts.append(
                text_prompt(one["key"], one["instruction"], one["input"], job.language, job.requires, hint, known)
            )
            open_.append(one)
        for one, text in zip(open_, self.ask(prompts) if prompts else [], strict=True):
            one |= {"output": _plain(text), "kind": self.teacher[0], "name": self.teacher[1]}
        for one, text in zip(open_, self.templates.write(prompts), strict=True):
            one["template"] = text
        return list(drafts)

    def _truth(self, job: Job, one: Mapping) -> str | None:
        if job.task == "qa":
            return one["entry"][job.language]["answer"]
        product = one["product"]
        if job.requires == "title" and "query" not in job.presents:
            return product.title
        if job.requires not in OURS:
            return None
        shown = "\n".join(one["presented"].values())
        if job.requires == "query":
            return self._told(product, shown, one["key"])
        return {"category": product.path, "brand": product.facts.get("brand", ""),
                "attributes": attributes(product, self.seeds, shown, job.language)}[job.requires]  # fmt: skip

    def _told(self, product: Product, shown: str, key: str) -> str:
        """A query of the product with no fact that was not shown; "" where there is none."""
        found = [query for query in queries(product) if not invented(query, shown, self.judge.lexicon)]
        return found[place(len(found), self.seed, key, "told")] if found else ""

    def _judged(self, job: Job, drafts: Sequence[dict], most: int) -> Iterator[dict]:
        """The records that drafts become, so many at most; the others are dropped and counted, or never looked at."""
        for one in drafts:
            if not most:
                return
            product = one["product"]
            draft = Draft(
                job.task, job.requires, job.language, one["instruction"], one["input"], one["output"], one["presented"],
                product.title if product else "", product.facts.get("brand", "") if product else "",
                one["query"] if "query" in job.presents and job.requires == "title" else "",
                one["slots"].get("occasion", "") if job.requires == "ad" else "",
                one["kind"] not in ("catalogue", "glossary"),
            )  # fmt: skip
            found = "empty" if not draft.output.strip() else fault(draft, self.judge)
            mark = prompt_hash("\x1f".join([draft.instruction, draft.input, draft.output]))
            if found is None and mark in self._seen:
                found = "twice"
            if found is not None:
                self.dropped[job.name][found] += 1
                continue
            self._seen.add(mark)
            if product and job.requires in FROM_OTHERS:
                self.written.setdefault((product.id, job.language, job.requires), []).append(draft.output)
            most -= 1
            yield self._record(job, one, draft)

    def _record(self, job: Job, one: Mapping, draft: Draft) -> dict:
        product, wording = one["product"], one["wording"]
        return {
            "task": job.task, "instruction": draft.instruction, "input": draft.input, "output": draft.output,
            "language": job.language, "job": job.name, "requires": job.requires,
            "presented": json.dumps(dict(one["presented"]), ensure_ascii=False),
            "product": product.id if product else None, "title": draft.title or None, "brand": draft.brand or None,
            "category": product.path if product else None, "related": list(product.related) if product else [],
            "query": draft.query or None, "heldout_query": one["other"] or None, "occasion": draft.occasion or None,
            "question": one.get("question"), "key_facts": one["entry"][job.language]["facts"] if not product else [],
            "written": draft.written,
            "template": one.get("template") or None,
            "provenance": {
                "teacher_kind": one["kind"], "teacher_name": one["name"], "teacher_sha": _sha(one["name"]),
                "seed_ids": list(wording.seeds), "template_id": wording.id, "wording_kind": wording.kind,
                "filters_passed": applied(draft),
            },
        }  # fmt: skip


def draft_of(record: Mapping) -> Draft:
    """The draft that a record was, for its filters to be asked again."""
    return Draft(
        record["task"], record["requires"], record["language"], record["instruction"], record["input"],
        record["output"], json.loads(record["presented"]), record["title"] or "", record["brand"] or "",
        record["query"] or "", record["occasion"] or "", record["written"],
    )  # fmt: skip


def _plain(text: str) -> str:
    """A reply without quotes around it; what is said is not changed."""
    text = text.strip()
    pairs = {'"': '"', "“": "”", "「": "」", "'": "'"}
    while len(text) > 1 and pairs.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text


def _sha(name: str) -> str:
    """What identifies a teacher: the hash in its name, or one of it."""
    found = name.rpartition("@")[2]
    return found if name != found else prompt_hash(name)[:12]
