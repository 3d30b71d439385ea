"""Which task a step is of: shares, order, counts, refusals."""

from collections import Counter

import pytest

from models.distill.tasks._sampler import BLOCK, TaskSampler, alpha_for

SIZES = {"large": 8100, "middle": 900, "small": 100}


@pytest.mark.parametrize("alpha", [1.0, 0.75, 0.5, 0.0])
def test_shares_follow_the_sizes(alpha):
    weights = {name: size**alpha for name, size in SIZES.items()}
    sampler, total = TaskSampler(SIZES, alpha, seed=3), sum(weights.values())
    drawn = Counter(sampler.at(step)[0] for step in range(20_000))
    for name, weight in weights.items():
        assert drawn[name] / 20_000 == pytest.approx(weight / total, rel=0.015)


def test_alpha_one_half_by_hand():
    # sqrt(8100) : sqrt(900) : sqrt(100) = 90 : 30 : 10
    assert TaskSampler(SIZES, 0.5).shares.tolist() == pytest.approx([9 / 13, 3 / 13, 1 / 13])


def test_a_pure_function_of_seed_and_step():
    forward, back = TaskSampler(SIZES, seed=1), TaskSampler(SIZES, seed=1)
    steps = [*range(0, 50), BLOCK - 1, BLOCK, 3 * BLOCK + 5]
    told = [forward.at(step) for step in steps]
    assert [back.at(step) for step in reversed(steps)] == told[::-1]
    assert [TaskSampler(SIZES, 0.0, seed=2).at(step) for step in steps] != [
        TaskSampler(SIZES, 0.0, seed=1).at(step) for step in steps
    ]


def test_each_task_counts_its_own_steps():
    sampler, seen = TaskSampler(SIZES, 0.5, seed=5), Counter()
    for step in range(BLOCK + 300):
        name, number = sampler.at(step)
        assert number == seen[name]
        seen[name] += 1
    mix = sampler.mix(BLOCK + 300)
    assert mix == {name: pytest.approx(seen[name] / (BLOCK + 300)) for name in SIZES}


def test_the_default_share():
    assert alpha_for({"a": 1, "b": 100}) == 1.0 and alpha_for({"a": 1, "b": 101}) == 0.75


def test_refusals():
    with pytest.raises(ValueError, match="1 of 2 tasks have no rows: b"):
        TaskSampler({"a": 3, "b": 0})
    with pytest.raises(ValueError, match="no task"):
        TaskSampler({})
    with pytest.raises(ValueError, match="alpha must be >= 0"):
        TaskSampler(SIZES, -1.0)
