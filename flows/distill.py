"""Students: the teacher once, then methods and mixes side by side, then all whose teachers are students, or texts."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows._command import finish, start
from flows._runner import Runner
from flows.language import ModelsFailed
from tasks.command import run
from tasks.make import make
from tasks.notice import standings
from tasks.prune import prune
from tasks.repro import alone
from tasks.settings import read

__all__ = ["distill", "student"]

PARTS = {"distill": "methods", "mix": "mixes"}  # stage -> the part of params.yaml that it is run for
LATER = {  # whose teachers, or what they begin from, may be students of the first
    "chain": "chains", "several": "several", "specific": "specific",
}  # fmt: skip
OTHERS = {  # which bring their own teachers and texts; what others read comes first
    "generate_reading": "readings", "generate_examples": "examples", "generate_reasons": "reasons",
    "promote_relevance": "relevance", "promote_languages": "languages", "distill_tasks": "tasks",
    "distill_of_tasks": "of_tasks", "promote_tasks": "served",
}  # fmt: skip
REGISTERED = ("promote_relevance", "promote_languages", "promote_tasks")


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def student(kind: str, name: str) -> list[str]:
    """Distil, judge and promote one student: the stages that ran."""
    steps = (f"parts_{kind}", kind, f"gate_{kind}", f"promote_{kind}")
    return [ran for step in steps for ran in make(f"{step}@{name}", single=True)]


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def whole(stage: str) -> list[str]:
    """A stage, and whatever it reads that is not up to date, such as students that teach: the stages that ran."""
    return make(stage)


@flow(log_prints=True, task_runner=Runner())
def distill() -> dict[str, list[str]]:
    """Bring the teacher and every student of params.yaml up to date, then remove what retired ones left.

    Returns:
        "teacher", each method, mix, chain, student of several teachers, student that goes on with a task, student of
        reasons or of a language more, each task that is served, and every other stage by its own name -> the stages
        that ran for it.

    Raises:
        StageFailed: the teacher, or the data, failed.
        ModelsFailed: at the end, when all others are done; names each student and what its stage said.
        Busy: another run holds this checkout.
    """
    chosen = read("params.yaml:distill")
    wanted, later = ([(kind, name) for kind, part in parts.items() for name in chosen.get(part) or {}]
                     for parts in (PARTS, LATER))  # fmt: skip
    teacher = chosen["teacher"]
    with alone():
        make("registry", single=True)  # a registry that was lost makes each promotion stale
        # and all that it needs; a version of the student names the teacher's
        ran = {"teacher": make(f"promote_{teacher['from']}@{teacher['name']}") if wanted + later else []}
        if wanted + later and chosen["data"].startswith(("ingest/", "tokens/")):
            ran["teacher"] += make(chosen["data"].replace("/", "@"))
        futures = {name: student.submit(kind, name) for kind, name in wanted}
        results = {name: future.result(raise_on_failure=False) for name, future in futures.items()}
        last = {name: f"promote_{kind}@{name}" for kind, name in later}
        for stage, part in OTHERS.items():
            for name in chosen.get(part) or {}:
                last[name if stage in REGISTERED else f"{stage}@{name}"] = f"{stage}@{name}"
        for name, stage in last.items():  # one after the other: two chains may wait for one assistant
            results[name] = whole.submit(stage).result(raise_on_failure=False)
        retired = prune("params.yaml", "dvc.lock")
    said = [f"- removed, as its student is retired: {path}" for path in retired]
    rows = lambda ran: standings(ran, Path("artifacts/language"))
    return finish("distill", "Students", ran, results, said, rows, ModelsFailed, "students")


if __name__ == "__main__":
    run(lambda: start(distill))
