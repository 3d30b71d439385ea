"""Logged choices in, a policy and its estimates out: on a made-up shop whose best offer is known for every group."""

import json
import math
import shutil

import polars as pl
import pytest
import torch

from tasks.bandit import Columns, Encoder, load_policy, main, train_policy
from tasks.settings import SettingsError

COLUMNS = {"action": "offer", "propensity": "chance", "reward": ["click"], "context": ["group", "age", "past"]}
FAST = {"columns": COLUMNS, "reward_model": "clicks", "settings": {"teacher": [16], "student": [8], "gamma": 0.0},
        "training": {"steps": 300, "click_steps": 100, "batch": 128, "lr": 1e-2}, "samples": 50}  # fmt: skip
BEST = {"a": "tea", "b": "cup", "c": "pot"}


def shop(rows: int, seed: int) -> pl.DataFrame:
    """Each group clicks its own offer half the time, others one time in twenty; tea is shown most."""
    random = torch.Generator().manual_seed(seed)
    groups = torch.randint(3, (rows,), generator=random).tolist()
    offers, chance = ["cup", "pot", "tea"], torch.tensor([0.2, 0.2, 0.6])
    shown = torch.multinomial(chance, rows, replacement=True, generator=random).tolist()
    luck = torch.rand(rows, generator=random).tolist()
    clicks = [int(luck[i] < (0.5 if BEST["abc"[groups[i]]] == offers[shown[i]] else 0.05)) for i in range(rows)]
    return pl.DataFrame({
        "offer": [offers[each] for each in shown], "chance": chance[shown].tolist(), "click": clicks,
        "group": ["abc"[each] for each in groups], "age": [float(i % 7) for i in range(rows)],
        "past": [[0.0, float(i % 2)] for i in range(rows)],
    })  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bandit")
    shop(2000, 0).write_parquet(folder / "train.parquet")
    shop(2000, 1).write_parquet(folder / "test.parquet")
    return train_policy(FAST, folder / "train.parquet", folder / "test.parquet", folder / "out")


def test_it_finds_each_groups_offer(made):
    policy, encoder = load_policy(made)
    frame = shop(300, 2)
    chosen = policy(encoder.context(frame))[:, 0].argmax(-1)
    right = [
        encoder.actions[place] == BEST[group] for place, group in zip(chosen.tolist(), frame["group"], strict=True)
    ]
    assert sum(right) > 290


def test_the_report_names_what_is_known(made):
    report = json.loads((made / "metrics.json").read_text())["click"]
    # The log earns (0.6 + 0.2 + 0.2) / 3 * 0.5 + 2/3 * 0.05 = 0.2; the best is 0.5, uniform the log's 0.2 as well.
    assert report["logging policy"]["mean"] == pytest.approx(0.2, abs=0.03)
    assert report["uniform"]["dr"]["value"] == pytest.approx(0.2, abs=0.03)
    assert report["popularity"]["snips"]["value"] < 0.3
    for name in ("student, greedy", "teacher", "weighted click model"):
        dr = report[name]["dr"]
        assert dr["low"] < 0.5 < dr["high"]
    assert report["student"]["effective_rows"] < 2000


def test_the_same_settings_give_the_same_policy(made, tmp_path):
    folder = made.parent
    again = train_policy(FAST, folder / "train.parquet", folder / "test.parquet", tmp_path / "out")
    for file in ("policy.safetensors", "policy.json", "metrics.json"):
        assert (again / file).read_bytes() == (made / file).read_bytes()


def test_contexts_by_hand():
    columns = Columns("offer", "chance", ["click"], ["group", "age", "past"])
    train = pl.DataFrame({"offer": [2, 1], "group": ["x", "y"], "age": [1.0, 3.0], "past": [[1.0], [2.0]]})
    encoder = Encoder.of(train, columns)
    assert encoder.width == 4 and encoder.actions == [1, 2]
    new = pl.DataFrame({"group": ["y", "z"], "age": [3.0, 2.0], "past": [[5.0], [6.0]]})
    step = 1 / math.sqrt(2)  # age 3 is 1 above the mean of 2, the deviation is sqrt(2)
    torch.testing.assert_close(encoder.context(new), torch.tensor([[0.0, 1.0, step, 5.0], [0.0, 0.0, 0.0, 6.0]]))


def test_the_command_says_one_line(made, tmp_path, capsys):
    settings = tmp_path / "params.yaml"
    files = {name: str(made.parent / f"{name}.parquet") for name in ("train", "test")}
    entry = FAST | files | {"training": FAST["training"] | {"steps": 4, "click_steps": 2}}
    settings.write_text(json.dumps({"recommenders": {"bandits": {"shop": entry}}}))
    main(f"{settings}:recommenders.bandits", "shop", *files.values(), str(tmp_path / "out"))
    assert capsys.readouterr().out.startswith("shop: click 0.")
    curve = pl.read_csv(tmp_path / "out/curve.csv")
    assert curve["step"].to_list() == [1, 2, 3, 4]
    assert curve["teacher_0"].null_count() == 2 and curve["distilled_0"].null_count() == 2  # first one, then the other
    assert (tmp_path / "out/extra/click.png").read_bytes()[:4] == b"\x89PNG"


def refused(tmp_path, match, frame=None, test=None, **settings):
    (shop(20, 0) if frame is None else frame).write_parquet(tmp_path / "train.parquet")
    (shop(20, 1) if test is None else test).write_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=match):
        train_policy(FAST | settings, tmp_path / "train.parquet", tmp_path / "test.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_input_is_refused_and_nothing_written(tmp_path):
    frame = shop(20, 0)
    refused(tmp_path, r"has no 'chance'(.|\n)*it has: offer", frame.drop("chance"))
    refused(tmp_path, "20 of 20 cells of 'age' are empty", frame.with_columns(age=pl.lit(None, pl.Float64)))
    refused(tmp_path, r"20 propensities not in \(0, 1\]", frame.with_columns(chance=pl.lit(0.0)))
    refused(
        tmp_path, "20 of 20 rows show actions that the training log never", test=frame.with_columns(offer=pl.lit("z"))
    )
    refused(tmp_path, "lists of 1 to 2 places", frame.with_columns(past=pl.Series([[1.0]] + [[1.0, 2.0]] * 19)))
    refused(tmp_path, "has no rows", frame.head(0))
    refused(tmp_path, "columns lacks propensity, reward, context; it needs action", columns={"action": "offer"})
    refused(tmp_path, "reward_model is rates or clicks", reward_model="none")
    refused(tmp_path, "training has no setting epochs", training={"epochs": 1})
    with pytest.raises(SettingsError, match="a bandit has no setting colour; it has: columns"):
        train_policy({"colour": 1}, tmp_path / "a", tmp_path / "b", tmp_path / "out")


def test_another_policy_is_not_loaded(made, tmp_path):
    copy = shutil.copytree(made, tmp_path / "copy")
    about = json.loads((copy / "policy.json").read_text())
    (copy / "policy.json").write_text(json.dumps(about | {"sha256": "0" * 64}))
    with pytest.raises(ValueError, match="train the policy again"):
        load_policy(copy)
