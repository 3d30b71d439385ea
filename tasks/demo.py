"""`make demo`: the whole chain on the sample marketplace, a task added before the reader's eyes, and a bilingual model.

Everything runs in this checkout: what it leaves is what `dvc repro` would leave, plus one line in params.yaml.
"""

import difflib
import re
import subprocess
import sys
import time
from pathlib import Path

from tasks.command import environment, run
from tasks.files import read_json, write_text
from tasks.prune import prune

__all__ = ["demo"]

NEW = "buy_comp"
LINE = f"    {NEW}: {{given: \"event_id = 'item_view'\", positive: \"event_id = '{NEW}'\", within: session}}\n"
ALWAYS = ("guard", "registry", "listing_encoder")  # stages that run each time, in a moment
AFTER = "\n  tasks:"  # the mapping of recommend.tasks, two spaces in


def demo(params: Path = Path("params.yaml")) -> None:
    """Run the chain through its flow, add one line, run `dvc repro promote`; only that task's stages run."""
    started, began = time.monotonic(), time.time()
    text = params.read_text().replace(LINE, "")
    write_text(params, text)
    prune(str(params))
    _say("1. The whole chain: raw logs, checks, features, backbone, one prompt a task, gates, registry")
    _call([sys.executable, "-m", "flows.recommend"])
    _standings()

    _say(f"2. A new task is one line of {params}")
    added = with_task(text)
    print("".join(difflib.unified_diff(text.splitlines(True), added.splitlines(True), str(params), str(params), n=1)))
    write_text(params, added)
    before = time.monotonic()
    ran = _stages([sys.executable, "-m", "dvc", "repro", "promote"])  # without the language models
    print(f"\n`dvc repro promote` ran, in {time.monotonic() - before:.0f} s: {', '.join(ran)}")
    others = [stage for stage in ran if not stage.endswith(f"@{NEW}") and stage not in ALWAYS]
    if others:
        raise ValueError(f"adding {NEW} also ran {', '.join(others)}; that is a fault of ours, please report it")
    print("(guard, registry and listing_encoder look at data/ and at the registry in every run; they compute nothing)")
    _proof(read_json(f"artifacts/prompt/{NEW}/proof.json"))
    _standings()

    _say("3. Models that write: an English one goes on over Chinese and pairs of both, and is judged beside its base")
    _stages([sys.executable, "-m", "dvc", "repro", "promote_continued@bilingual"])
    _gained(read_json("artifacts/evaluated/bilingual/metrics.json")["evaluation"])

    _call([sys.executable, "-m", "tasks.report", "params.yaml", "artifacts", "data", "artifacts/report/index.html",
           str(began)])  # fmt: skip
    _say(f"Done in {time.monotonic() - started:.0f} s. To look at it:")
    print("  make ui                              runs, models, versions and aliases in MLflow (http://127.0.0.1:5000)")
    print(
        "  artifacts/report/index.html          the report: data, metrics against the best possible, verdicts, proofs"
    )
    print("  .venv/bin/dvc dag                    the graph")
    print("  artifacts/pages/bilingual            what the bilingual model writes, and the page about its output layer")
    print("  .venv/bin/python -m flows.language   every language model, to one that authors: tuned, judged, registered")
    print(f"\nparams.yaml now has the task {NEW}; `git checkout params.yaml && make prune` takes it back.")


def with_task(text: str) -> str:
    """params.yaml with the new task's line at the end of `recommend.tasks`; every other byte as it was."""
    head, mark, tail = text.partition(AFTER)
    if not mark:
        raise ValueError("params.yaml has no `tasks:` two spaces in, below `recommend:`; the demo adds its line there")
    first, *lines = tail.splitlines(True)
    entries = next((i for i, line in enumerate(lines) if not line.startswith("    ")), len(lines))
    return head + mark + first + "".join(lines[:entries]) + LINE + "".join(lines[entries:])


def _call(command: list[str]) -> None:
    if code := subprocess.run(command, env=environment()).returncode:
        raise ValueError(
            f"`{' '.join(['python', *command[1:]])}` ended with exit status {code}; its own words are above"
        )


def _stages(command: list[str]) -> list[str]:
    """Run dvc with its output passed on, and return the stages that it ran."""
    ran = []
    with subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE, bufsize=1) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.match(r"Running stage '(.+)'", line):
                ran.append(found[1])
    if process.returncode:
        raise ValueError(f"dvc repro ended with exit status {process.returncode}; its own words are above")
    return ran


def _say(words: str) -> None:
    print(f"\n\033[1m{words}\033[0m" if sys.stdout.isatty() else f"\n{words}", flush=True)


def _standings() -> None:
    for path in sorted(Path("artifacts/receipt").glob("*.json")):
        receipt = read_json(path)
        print(f"  {receipt['model']:<40} {receipt['status']:<12} version {receipt.get('version') or '-'}"
              f"{'  champion' if receipt.get('champion') else ''}")  # fmt: skip


def _gained(found: dict) -> None:
    before, after = (found[f"{who}bits_per_character_zh"] for who in ("base_", ""))
    print(f"""
Beside its base, on held-out texts (artifacts/evaluated/bilingual/page.html):
  Chinese, bits a character                {before:.2f} -> {after:.2f}
  English, perplexity a character          {found["forgetting_en"]:+.1%}
  translations found, best layer           {found["base_retrieval"]:.0%} -> {found["retrieval"]:.0%}
""")


def _proof(proof: dict) -> None:
    share = f"{proof['trained_share']:.1%} of the backbone without embeddings"
    print(f"""
Proof that nothing else changed (artifacts/prompt/{NEW}/proof.json):
  backbone tensors, hash before = after    {proof["backbone_unchanged"]} ({len(proof["backbone_before"])} tensors)
  old tasks' predictions, bit for bit      {proof["old_predictions_equal"]} ({proof["probe_rows"]} pinned rows)
  backbone tensors with a gradient         {proof["backbone_gradients"]}
  trained parameters                       {proof["trained_parameters"]} ({share})
  seconds of tuning / backbone training    {proof["tuning_share"]:.1%}
""")


if __name__ == "__main__":
    run(demo)
