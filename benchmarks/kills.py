"""A whole chain, killed again and again at random moments: what is left at the end, against an unbroken run.

    nice python benchmarks/kills.py [--chain recommend] [--kills 100] [--ahead 2] [--seed 1] [--folder FOLDER]

A checkout with a small sample goes from nothing to two or three champions: `recommend` is the demo's (data, backbone,
prompt, gates, promotions), `language` pre-trains one model and tunes it, `distill` has a student of that, too. A moment
is drawn afresh for each run: so many stages on (none, one, or up to --ahead), and there a uniform share of the time
that the stage took in the unbroken run; every sixth one is the moment in which dvc.lock is written. Then SIGKILL of the
whole process group, and the same command again. When a round got through it is compared with the unbroken run: the
bytes of every file that holds no times, each version's content, one champion a model, no stray file, MLflow's database
whole, no lock held, `dvc status` clean. Then everything is thrown away and the next round begins, by turns with `dvc
repro` and `python -m tasks.repro`.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from _checkout import ALWAYS, Checkout  # noqa: E402
from _killing import CHAINS, LAST, Kill, Left, Running, again, chain, differences, finish, killed, left  # noqa: E402

DVC = ("dvc", "repro")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chain", choices=CHAINS, default="recommend")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ahead", type=int, default=2, help="stages at most between one kill and the next")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept, and so can be looked at; by default a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        survive(folder, given.chain, given.kills, given.ahead, random.Random(given.seed))


def survive(folder: Path, kind: str, kills: int, ahead: int, chance: random.Random) -> None:
    """Print each kill, each round's verdict and the sums."""
    started, checkout = time.monotonic(), chain(folder / "run" / "rootstock", kind)
    commands = (DVC, ("tasks.repro", LAST[kind]))
    fresh = folder / "fresh"
    shutil.copytree(checkout.folder, fresh, symlinks=True)
    seconds = timed(checkout)
    unbroken = left(checkout)
    print(f"unbroken: {len(unbroken.files)} files, champions {unbroken.champions}, "
          f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    moment = partial(a_moment, seconds, ahead, chance)
    hits, faults, rounds, mended = [], [], 0, 0
    while len(hits) < kills:
        again(checkout, fresh)
        struck = one_round(checkout, commands[rounds % 2], kills - len(hits), moment)
        finish(checkout)
        wrong = differences(left(checkout), unbroken)
        hits, faults, rounds = hits + struck, faults + wrong, rounds + 1
        mended += sum(kill.mended for kill in struck)
        print(f"round {rounds}: {len(struck)} kills, {'; '.join(wrong) or 'equals the unbroken run'}", flush=True)
    report(hits, faults, rounds, mended, unbroken, time.monotonic() - started)
    sys.exit(1 if faults else 0)


def timed(checkout: Checkout) -> dict[str, float]:
    """The unbroken run: seconds of each stage."""
    begun: list[float] = []
    names: list[str] = []

    def look(running: Running) -> bool:
        names[:] = running.stages()
        begun.extend([running.seconds()] * (len(names) - len(begun)))
        return False

    killed(checkout, DVC, look)
    ends = [*begun[1:], begun[-1] + 10.0]
    return {stage: end - start for stage, start, end in zip(names, begun, ends, strict=True)}


def one_round(checkout, words: tuple[str, ...], most: int, moment: Callable) -> list[Kill]:
    """From nothing until the command gets through, or as many kills as are left."""
    hits = []
    while len(hits) < most:
        kill = killed(checkout, words, moment())
        if kill is None:
            return hits
        hits.append(kill)
        print(f"  kill after {kill.seconds:5.1f} s in {kill.stage:20} {kill.doing}", flush=True)
    return hits


def a_moment(seconds: dict[str, float], ahead: int, chance: random.Random) -> Callable[[Running], bool]:
    """Whether it has come: a share of some stage's time, or, one time in six, the writing of dvc.lock."""
    on, share, writing = chance.choice(range(ahead + 1)), chance.random(), chance.random() < 1 / 6
    reached: list[float] = []

    def now(running: Running) -> bool:
        stages = [stage for stage in running.stages() if stage not in ALWAYS]
        if len(stages) < on:
            return False
        reached[:] = reached or [running.seconds()]
        if writing and stages:
            return running.writes_lock()
        usual = seconds.get(stages[-1], 3.0) if stages else 3.0
        return running.seconds() - reached[0] > share * usual

    return now


def report(hits: list[Kill], faults: list[str], rounds: int, mended: int, unbroken: Left, seconds: float) -> None:
    print("\n| stage | kills | in the work unit | in DVC itself |\n|---|---|---|---|")
    for stage, count in Counter(kill.stage for kill in hits).most_common():
        inside = sum(kill.stage == stage and kill.doing.startswith("tasks.") for kill in hits)
        print(f"| {stage} | {count} | {inside} | {count - inside} |")
    print(f"\n{len(hits)} kills in {rounds} rounds: {len(faults)} differences; `python -m tasks.mend` was needed "
          f"{mended} times; {len(unbroken.files)} files compared; {seconds:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
