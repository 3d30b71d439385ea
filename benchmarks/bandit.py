"""What would a distilled policy earn on the Open Bandit Dataset? Learned of one logging policy, estimated on the other.

    python benchmarks/bandit.py --data DATA [--steps 2000] [--seeds 3] [--out FILE.md]

DATA holds random.parquet (uniform) and bts.parquet (Bernoulli Thompson sampling) of the women's campaign, 10,000
impressions each (github.com/st-tech/zr-obp). Estimates, all with 95 % bootstrap intervals, are of clicks a thousand
impressions. The reward model of dr is every action's rate in the training log, the same for all policies.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks.bandit import train_policy
from tasks.files import read_json, write_text
from tasks.training import use_threads

CONTEXT = ["user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3", "user_item_affinity"]
COLUMNS = {"action": "item_id", "propensity": "propensity_score", "reward": ["click"], "context": CONTEXT}
LOGS = {"bts -> random": ("bts", "random"), "random -> bts": ("random", "bts")}


def told(estimate: dict) -> str:
    """An estimate and its interval, in clicks a thousand impressions."""
    value, low, high = (1000 * (estimate[name] or 0.0) for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def table(report: dict, title: str) -> list[str]:
    base = report["logging policy"]
    lines = [f"### {title}: {base['rows']:,} test rows, {base['rewarded']} clicks, {1000 * base['mean']:.1f} as logged"]
    lines += ["", "| policy | snips | dr | effective rows |", "|---|---|---|---|"]
    for name, found in report.items():
        if name != "logging policy":
            lines.append(f"| {name} | {told(found['snips'])} | {told(found['dr'])} | {found['effective_rows']:,.0f} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    use_threads()
    lines = [f"# {__doc__.splitlines()[0]}", ""]
    with tempfile.TemporaryDirectory() as folder:
        for title, (train, test) in LOGS.items():
            for seed in range(given.seeds):
                started = time.process_time()
                settings = {"columns": COLUMNS, "settings": {"gamma": 0.0},
                            "training": {"steps": given.steps, "seed": seed}}  # fmt: skip
                made = train_policy(settings, *(given.data / f"{log}.parquet" for log in (train, test)),
                                    Path(folder) / f"{train}{seed}")  # fmt: skip
                spent = time.process_time() - started
                found = read_json(made / "metrics.json")["click"]
                lines += table(found, f"{title}, seed {seed}, {spent:.0f} CPU s")
                print("\n".join(lines[-len(found) - 4 :]), flush=True)
    if given.out:
        write_text(given.out, "\n".join(lines))


if __name__ == "__main__":
    main()
