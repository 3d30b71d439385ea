"""Logged choices with their propensities -> a policy, and what it would earn on another log, beside simple policies.

    {train: logged.parquet, test: uniform.parquet,
     columns: {action: item_id, propensity: propensity_score, reward: [click], context: [user_feature_0, affinity]},
     method: podire, settings: {gamma: 0.0}, training: {steps: 2000, lr: 1.0e-3}, reward_model: rates, samples: 1000}

A context column of strings, booleans or whole numbers is one field of categories, one of fractions a number, one of
lists a number for each place. A column that names the item's place on the page stays out: the propensity knows it.

    python -m tasks.bandit params.yaml:recommenders.bandits NAME TRAIN.parquet TEST.parquet OUT
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import build
from models.fit import fit
from models.recommend.bandit._estimates import effective, estimates, importance
from models.recommend.bandit._logged import Logged
from models.recommend.bandit._policies import ClickModel, greedy, popularity, shown_alike, uniform
from tasks import plots
from tasks.command import run
from tasks.curve import write_curve
from tasks.files import digest, new_folder, read_json, write_json
from tasks.settings import SettingsError, check_names, fill, read
from tasks.training import use_threads

__all__ = ["Columns", "Encoder", "Steps", "evaluate", "load_policy", "train_policy"]

KEYS = ("columns", "method", "settings", "training", "reward_model", "samples")
FILES = ("train", "test")  # of an entry: for the stage, which gives them to the command
REWARD_MODELS = ("rates", "clicks")  # q of an action, or of action and context: the latter where clicks are many


@dataclass(frozen=True)
class Columns:
    """Where a log's table holds what.

    Args:
        action: what was shown.
        propensity: how likely that was.
        reward: numbers, a column for each task.
        context: what a policy may read; see the module.
    """

    action: str
    propensity: str
    reward: list[str]
    context: list[str]

    @classmethod
    def of(cls, given: Mapping) -> "Columns":
        """From the settings.

        Raises:
            SettingsError: a name is missing or unknown.
        """
        made = fill(cls, given, "columns")
        if not made.reward or not made.context:
            raise SettingsError(f"columns names at least one reward and one context; got {dict(given)}")
        return made

    def require(self, frame: pl.DataFrame, path: Path) -> None:
        """Refuse a table without these columns, or with empty cells in them.

        Raises:
            ValueError: names every such column.
        """
        if not len(frame):
            raise ValueError(f"{path} has no rows; a log needs at least one")
        names = [self.action, self.propensity, *self.reward, *self.context]
        wrong = [f"has no {name!r}" for name in names if name not in frame.columns]
        wrong += [f"{nulls} of {len(frame)} cells of {name!r} are empty" for name in names
                  if name in frame.columns and (nulls := frame[name].null_count())]  # fmt: skip
        if wrong:
            raise ValueError(f"{path}: {'; '.join(wrong)}; it has: {', '.join(frame.columns)}")


@dataclass(frozen=True)
class Steps:
    """How policies are trained: Adam on random batches of the log, a fixed number of steps (ours).

    Args:
        steps: of the method; half of them, unless its settings say otherwise, are its teachers'.
        click_steps: of the click model beside it.
        batch: rows a step.
        lr: Adam's learning rate.
        weight_decay: of AdamW: a few dozen clicks are soon learned by heart.
        seed: of weights and batches.
    """

    steps: int = 2000
    click_steps: int = 1000
    batch: int = 512
    lr: float = 1e-3
    weight_decay: float = 0.1
    seed: int = 7


@dataclass
class Encoder:
    """A row's context as numbers, and the actions' places: learned of the training log alone.

    Attributes:
        fields: column -> its categories (the rest is "none of them"), [mean, deviation], or the length of its lists.
        actions: in the order of the policy's columns.
    """

    fields: dict[str, dict] = field(default_factory=dict)
    actions: list = field(default_factory=list)

    @classmethod
    def of(cls, frame: pl.DataFrame, columns: Columns) -> "Encoder":
        """Read a training log."""
        made = cls({name: _described(frame[name]) for name in columns.context})
        made.actions = frame[columns.action].unique().sort().to_list()
        return made

    @property
    def width(self) -> int:
        """D."""
        return sum(len(each["categories"]) if "categories" in each else each.get("places", 1)
                   for each in self.fields.values())  # fmt: skip

    def context(self, frame: pl.DataFrame) -> Tensor:
        """(N, D) float32."""
        return torch.cat([_numbers(frame[name], each) for name, each in self.fields.items()], 1)

    def logged(self, frame: pl.DataFrame, columns: Columns) -> Logged:
        """A log in numbers.

        Raises:
            ValueError: an action that the training log never shows: no policy of it could choose it.
        """
        place = {action: number for number, action in enumerate(self.actions)}
        if new := sorted(set(frame[columns.action].unique()) - set(place)):
            count = int(frame[columns.action].is_in(new).sum())
            raise ValueError(f"{count} of {len(frame)} rows show actions that the training log never does, "
                             f"such as {new[:3]}; train on a log that shows them, or drop those rows")  # fmt: skip
        action = torch.tensor([place[value] for value in frame[columns.action]])
        reward = torch.from_numpy(frame.select(pl.col(columns.reward).cast(pl.Float32)).to_numpy().copy())
        propensity = torch.from_numpy(frame[columns.propensity].cast(pl.Float32).to_numpy().copy())
        return Logged.of(self.context(frame), action, reward, propensity, len(self.actions))


def train_policy(settings: Mapping, train: Path, test: Path, out: Path) -> Path:
    """Learn a policy of one log, and estimate it on another.

    Returns:
        `out`: policy.safetensors (the student alone), policy.json, curve.csv, curve.png, extra/<task>.png (what
        each policy earns), and metrics.json: for each policy and task its ips, snips, dm and dr with intervals, and its
        effective rows.

    Raises:
        ValueError: a setting, column or row that cannot work; nothing is written.
    """
    check_names(settings, KEYS, "a bandit")
    if (reward_model := settings.get("reward_model", "rates")) not in REWARD_MODELS:
        raise SettingsError(f"reward_model is {' or '.join(REWARD_MODELS)}; got {reward_model!r}")
    columns, steps = Columns.of(settings.get("columns") or {}), fill(Steps, settings.get("training") or {}, "training")
    frames = [pl.read_parquet(path) for path in (train, test)]
    for frame, path in zip(frames, (train, test), strict=True):
        columns.require(frame, path)
    encoder = Encoder.of(frames[0], columns)
    ours, theirs = (encoder.logged(frame, columns) for frame in frames)

    method = settings.get("method", "podire")
    chosen = {"teach": steps.steps // 2} | dict(settings.get("settings") or {})
    torch.manual_seed(steps.seed)
    model = build("recommend.bandit", method, encoder.width, len(encoder.actions), len(columns.reward), **chosen)
    curve = _learn(model, ours, steps.steps, steps)
    report = evaluate(model, ours, theirs, columns.reward, steps, reward_model, settings.get("samples", 1000))
    with new_folder(out) as folder:
        save_file(model.policy.state_dict(), folder / "policy.safetensors")
        about = {"method": method, "settings": chosen, "columns": vars(columns), "training": vars(steps),
                 "fields": encoder.fields, "actions": encoder.actions, "tasks": columns.reward,
                 "train": digest(train), "sha256": digest(folder / "policy.safetensors")}  # fmt: skip
        write_json(folder / "policy.json", about)
        write_json(folder / "metrics.json", report)
        write_curve(folder, curve)
        for task, policies in report.items():
            found = {name: (each["dr"]["low"], each["dr"]["value"], each["dr"]["high"])
                     for name, each in policies.items() if "dr" in each}  # fmt: skip
            (folder / "extra").mkdir(exist_ok=True)
            picture = plots.intervals(found, policies["logging policy"]["mean"], f"{task}, a row (dr)", "as logged")
            (folder / f"extra/{task}.png").write_bytes(picture)
    return out


def evaluate(
    model: nn.Module, train: Logged, test: Logged, tasks: list[str], steps: Steps, reward_model: str, samples: int
) -> dict:
    """What each policy earns a row of `test`, by task: of the logging policy the mean, of the others all estimates.

    The reward model of dm and dr is the same for all policies, and of the training log, each row weighted as if all
    actions had been shown alike: every action's rate, or a click model.
    """
    report = {}
    for task, name in enumerate(tasks):
        own = Logged(train.context, train.action, train.reward[:, [task]], train.propensity, train.actions)
        plain, fair = (_clicks(own, weighted, steps) for weighted in (False, True))
        shown = model.score(test.context)[:, task]
        policies = {
            "uniform": uniform(len(test), test.actions),
            "popularity": greedy(popularity(own).expand(len(test), -1)),
            "click model": greedy(plain.values(test.context)),
            "weighted click model": greedy(fair.values(test.context)),
            "teacher": greedy(model.values(test.context)[:, task]),
            "student": shown,
            "student, greedy": greedy(shown),
        }
        alike = shown_alike(own.propensity, own.actions, fair.clip)
        rates_NA = popularity(own, weight=alike).expand(len(test), -1)
        value_NA = rates_NA if reward_model == "rates" else fair.values(test.context)
        report[name] = {"logging policy": {"mean": float(test.reward[:, task].mean()), "rows": len(test),
                                           "rewarded": int((test.reward[:, task] > 0).sum())}}  # fmt: skip
        for policy, probability_NA in policies.items():
            found = estimates(probability_NA, test, task, value_NA, samples=samples)
            report[name][policy] = {key: each._asdict() for key, each in found.items()} | {
                "effective_rows": effective(importance(probability_NA, test))}  # fmt: skip
    return report


def load_policy(folder: str | Path) -> tuple[nn.Module, Encoder]:
    """The policy of a folder, `policy(context) -> logits (B, T, A)`, and the encoder that makes contexts.

    Raises:
        ValueError: the weights are not those that policy.json names.
    """
    folder = Path(folder)
    about = read_json(folder / "policy.json")
    if (found := digest(folder / "policy.safetensors")) != about["sha256"]:
        raise ValueError(f"{folder}/policy.safetensors is {found[:12]}, policy.json names {about['sha256'][:12]}; "
                         f"train the policy again")  # fmt: skip
    # JSON files are written with sorted keys: the order of the columns is that of the settings.
    encoder = Encoder({name: about["fields"][name] for name in about["columns"]["context"]}, about["actions"])
    model = build("recommend.bandit", about["method"], encoder.width, len(encoder.actions), len(about["tasks"]),
                  **about["settings"])  # fmt: skip
    model.policy.load_state_dict(load_file(folder / "policy.safetensors"))
    return model.policy.eval(), encoder


def _learn(model: nn.Module, logged: Logged, count: int, steps: Steps) -> list[dict[str, float]]:
    """Train; a row for each twentieth of the steps, with the means of what was measured there."""
    random = torch.Generator().manual_seed(steps.seed)

    def batches() -> Iterator[dict[str, Tensor]]:
        for _ in range(count):
            yield logged.batch(torch.randint(len(logged), (steps.batch,), generator=random))

    learned = [each for each in model.parameters() if each.requires_grad]
    rows, since, every = [], [], max(count // 20, 1)
    optimizer = torch.optim.AdamW(learned, steps.lr, weight_decay=steps.weight_decay)
    for step, terms in enumerate(fit(model.train(), batches(), optimizer), 1):
        since.append(terms)
        if step % every == 0 or step == count:
            names = dict.fromkeys(name for each in since for name in each)
            mean = {name: torch.stack([each[name] for each in since if name in each]).mean().item() for name in names}
            rows.append({"step": step} | mean)
            since = []
    model.eval()
    return rows


def _clicks(logged: Logged, weighted: bool, steps: Steps) -> ClickModel:
    model = ClickModel(logged.context.shape[1], logged.actions, weighted)
    _learn(model, logged, steps.click_steps, steps)
    return model


def _described(column: pl.Series) -> dict:
    if isinstance(column.dtype, (pl.List, pl.Array)):
        lengths = column.list.len() if isinstance(column.dtype, pl.List) else pl.Series([column.dtype.size])
        if lengths.n_unique() != 1:
            raise ValueError(f"column {column.name!r} has lists of {lengths.min()} to {lengths.max()} places; "
                             f"a context needs equally many in every row")  # fmt: skip
        return {"places": int(lengths[0])}
    if column.dtype.is_float():
        return {"mean": float(column.mean()), "deviation": float(column.std() or 0) or 1.0}
    return {"categories": column.unique().sort().to_list()}


def _numbers(column: pl.Series, told: Mapping) -> Tensor:
    if "categories" in told:
        place = {value: number for number, value in enumerate(told["categories"])}
        found = torch.tensor([place.get(value, -1) for value in column])
        return (found[:, None] == torch.arange(len(place))).float()
    if "places" in told:
        made = torch.tensor(column.to_list(), dtype=torch.float32)
        if made.shape[1:] != (told["places"],):
            raise ValueError(
                f"column {column.name!r} has lists of {made.shape[1]} places, in training {told['places']}"
            )
        return made
    numbers = torch.from_numpy(column.cast(pl.Float32).to_numpy().copy())
    return ((numbers - told["mean"]) / told["deviation"])[:, None]


def main(address: str, name: str, train: str, test: str, out: str) -> None:
    """python -m tasks.bandit params.yaml:recommenders.bandits NAME TRAIN.parquet TEST.parquet OUT"""
    use_threads()
    settings = {key: value for key, value in read(f"{address}.{name}").items() if key not in FILES}
    folder = train_policy(settings, Path(train), Path(test), Path(out))
    for task, policies in read_json(folder / "metrics.json").items():
        base, dr = policies["logging policy"]["mean"], policies["student"]["dr"]
        print(f"{name}: {task} {dr['value']:.5f} [{dr['low']:.5f}, {dr['high']:.5f}] a row (dr), logged {base:.5f}: "
              f"{folder}")  # fmt: skip


if __name__ == "__main__":
    run(main)
