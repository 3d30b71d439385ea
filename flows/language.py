"""Language models: data, tokenizer and token ids once; then recipes, what is fine-tuned from them, and what writes."""

from collections import Counter
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows._command import finish, start
from flows._runner import Runner
from tasks.command import run
from tasks.make import make
from tasks.notice import standings
from tasks.prune import prune
from tasks.repro import alone
from tasks.settings import SettingsError, read

__all__ = ["ModelsFailed", "finetune", "language", "pretrain", "writer"]

WRITERS = {
    "continued": "promote_continued",
    "instructed": "promote_instructed",
    "generated": "generated",
    "judged": "judged",
}
REGISTERED = ("pretrain", "finetune", "continued", "instructed")  # parts of params.yaml whose names are models


class ModelsFailed(ValueError):
    """Some models did not get through; the others did."""


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def pretrain(name: str) -> list[str]:
    """Pre-train, judge and promote one recipe: the stages that ran."""
    steps = ("parts", "pretrain", "gate_pretrain", "promote_pretrain")
    return [ran for step in steps for ran in make(f"{step}@{name}", single=True)]


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def finetune(name: str) -> list[str]:
    """Fine-tune, judge and promote one task: the stages that ran."""
    steps = ("finetune", "gate_finetune", "promote_finetune")
    return [ran for step in steps for ran in make(f"{step}@{name}", single=True)]


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def writer(stage: str) -> list[str]:
    """The last stage of a model that writes, and all that it needs and is not up to date: the stages that ran."""
    return make(stage)


@flow(log_prints=True, task_runner=Runner())
def language() -> dict[str, list[str]]:
    """Bring every language model of params.yaml up to date, then remove what retired ones left.

    A fine-tuning starts when the recipes are done, and is not tried when its own recipe failed. Models that write come
    one after the other, as each may begin from the one before: pre-training goes on, instructions, texts.

    Returns:
        "tokens", each recipe, task and model that writes -> the stages that ran for it.

    Raises:
        StageFailed: something shared failed: data, tokenizer, token ids.
        ModelsFailed: at the end, when all others are done; names each model and what its stage said.
        SettingsError: a fine-tuning starts from a recipe that params.yaml does not have, or two models have one name.
        Busy: another run holds this checkout.
    """
    chosen = read("params.yaml:language")
    parents = {name: entry.get("from") for name, entry in chosen["finetune"].items()}
    if lost := {name: parent for name, parent in parents.items() if parent not in chosen["pretrain"]}:
        words = ", ".join(f"{name} from {parent}" for name, parent in lost.items())
        raise SettingsError(f"language.finetune: {words}; language.pretrain has {', '.join(chosen['pretrain'])}")
    names = Counter(name for kind in REGISTERED for name in chosen.get(kind) or {})
    if twice := [name for name, count in names.items() if count > 1]:
        raise SettingsError(f"language: {', '.join(twice)} stands below several of {', '.join(REGISTERED)}; that would "
                            f"be one registered model, so name them apart")  # fmt: skip
    shared = [f"tokens@{name}" for name in chosen["tokens"]]
    shared += dict.fromkeys(f"ingest@{entry['data']}" for entry in chosen["finetune"].values())
    with alone():
        make("registry", single=True)  # a registry that was lost makes each promotion stale
        ran = {"tokens": [stage for name in shared for stage in make(name)]}  # and all that they need: data, tokenizer
        results = _all(pretrain, chosen["pretrain"])
        ready = [name for name, parent in parents.items() if not isinstance(results[parent], BaseException)]
        results |= _all(finetune, ready)
        for kind, stage in WRITERS.items():
            for name in chosen.get(kind) or {}:
                known = name if kind in REGISTERED else f"{stage}@{name}"
                results[known] = writer.submit(f"{stage}@{name}").result(raise_on_failure=False)
        retired = prune("params.yaml", "dvc.lock")
    left = [name for name in parents if name not in results]
    said = [f"- **{name}** was not tried: its recipe {parents[name]} failed" for name in left]
    said += [f"- removed, as its model is retired: {path}" for path in retired]
    rows = lambda ran: standings(ran, Path("artifacts/language"))
    return finish("language", "Language models", ran, results, said, rows, ModelsFailed, "models")


def _all(chain, names) -> dict[str, list[str] | BaseException]:
    """Every chain side by side: name -> the stages that ran, or what went wrong."""
    futures = {name: chain.submit(name) for name in names}
    return {name: future.result(raise_on_failure=False) for name, future in futures.items()}


if __name__ == "__main__":
    run(lambda: start(language))
