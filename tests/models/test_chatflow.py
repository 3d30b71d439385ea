"""ChatFlow's sampler: the path, the counts that follow it, and every way to ask for what cannot be."""

import json
import math

import pytest

from models import build
from models.language.chatflow import ChatFlow, Exhausted, even_shares, tempered

ROLES = {"en": "source", "zh": "target", "pairs": "parallel", "sft": "sft"}


def sampler(sources=ROLES, **settings) -> ChatFlow:
    return build("language", "chatflow", sources, **settings)


def drawn(made: ChatFlow, count: int, size=lambda source: 1) -> list[int]:
    found = []
    for _ in range(count):
        source = made.draw()
        made.took(source, size(source))
        found.append(source)
    return found


def test_balanced_by_hand():
    # p = (.5, .3, .2): A = (.5, .3, .2) -> 0; (1, .6, .4) - (1, 0, 0) -> 1; (1.5, .9, .6) - (1, 1, 0) -> 2 (.6 > .5);
    # (2, 1.2, .8) - (1, 1, 1) -> 0; (2.5, 1.5, 1) - (2, 1, 1): .5 and .5, the first; all is level after ten
    made = sampler(["a", "b", "c"], anchors={0: {"a": 0.5, "b": 0.3, "c": 0.2}, 1: {"a": 0.5, "b": 0.3, "c": 0.2}})
    assert drawn(made, 5) == [0, 1, 2, 0, 0]
    drawn(made, 5)
    assert made.samples == [5, 3, 2] and made.expected == pytest.approx([5, 3, 2])


@pytest.mark.parametrize(
    ("pacing", "settings", "wanted"),
    [
        ("linear", {}, 0.25),
        ("linear", {"start": 0.2}, 0.4),  # .2 + .8 / 4
        ("root", {}, 0.5),  # sqrt(1 / 4)
        ("root", {"start": 0.5, "power": 1.0}, 0.625),  # .5 + .5 / 4
        ("geometric", {"start": 1 / 16}, 1 / 8),  # 2^(-4 + 4 / 4)
    ],
)
def test_pacing_by_hand(pacing, settings, wanted):
    made = sampler(pacing=pacing, grow=400, **settings)
    assert made.pace(100) == pytest.approx(wanted)
    assert made.pace(400) == made.pace(10**9) == 1
    assert made.pace(0) == pytest.approx(settings.get("start", 0.0))
    assert all(made.pace(t) <= made.pace(t + 1) for t in range(400))


def test_path_by_hand():
    made = sampler(grow=1000)
    assert made.shares(0) == [0.8, 0.1, 0.1, 0.0]
    assert made.shares(250) == pytest.approx([0.55, 0.275, 0.125, 0.05])  # half way to the middle anchor
    assert made.shares(750) == pytest.approx([0.2, 0.3, 0.1, 0.4])
    assert made.shares(1000) == made.shares(10**9) == [0.1, 0.15, 0.05, 0.7]


@pytest.mark.parametrize("preset", ["chatflow", "two_stage", "static"])
def test_shares_sum_to_one_within_the_anchors(preset):
    made = sampler(preset=preset, grow=97)
    for t in range(120):
        shares = made.shares(t)
        assert sum(shares) == pytest.approx(1, abs=1e-12)
        for number, share in enumerate(shares):
            column = [anchor[number] for anchor in made.path]
            assert min(column) - 1e-12 <= share <= max(column) + 1e-12


def test_presets_give_equally_many_samples():
    made = {name: sampler(preset=name, grow=4000) for name in ("chatflow", "two_stage", "static")}
    orders = {name: drawn(each, 4000) for name, each in made.items()}
    assert {tuple(each.samples) for each in made.values()} == {(1500, 1150, 450, 900)}
    assert len({tuple(order) for order in orders.values()}) == 3
    assert orders["two_stage"].index(3) == 3100 and set(orders["two_stage"][3100:]) == {3}


def test_roles_share_their_part():
    made = sampler({"en": "source", "zh": "target", "ja": "target"}, grow=10)
    first = made.shares(0)  # .8 and .1 of .9 in all, the latter by two
    assert first == pytest.approx([8 / 9, 1 / 18, 1 / 18])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_balanced_stays_close_at_every_prefix(count):
    names = [f"s{number}" for number in range(count)]
    for seed in range(3):
        weights = [[(seed * 7 + place * 5 + number * number * 3) % 11 + (number == 0) for number in range(count)]
                   for place in range(4)]  # fmt: skip
        anchors = [[at, {name: value / sum(row) for name, value in zip(names, row, strict=True)}]
                   for at, row in zip((0, 0.3, 0.3, 1), weights, strict=True)]  # fmt: skip
        made = sampler(names, anchors=anchors, grow=2500)
        for _ in range(3000):
            drawn(made, 1)
            assert max(abs(a - n) for a, n in zip(made.expected, made.samples, strict=True)) < 1.5


def test_iid_is_a_function_of_seed_and_number():
    settings = {"mode": "iid", "preset": "static", "grow": 100}
    one, other = sampler(seed=3, **settings), sampler(seed=3, **settings)
    order = drawn(one, 20000)
    assert order[:500] == drawn(other, 500) and order[:500] != drawn(sampler(seed=4, **settings), 500)
    for share, count in zip((0.375, 0.2875, 0.1125, 0.225), one.samples, strict=True):
        assert abs(count / 20000 - share) < 4 * math.sqrt(share * (1 - share) / 20000)


def test_tokens_as_unit():
    """A source of short samples gives more of them, and the clock counts tokens."""
    size = lambda source: (10, 1)[source]
    for mode, slack in (("balanced", 15), ("iid", 900)):
        made = sampler(["long", "short"], anchors=even_shares(["long", "short"]), unit="tokens", mode=mode, grow=5000)
        drawn(made, 5500, size)
        assert made.clock == sum(made.tokens) == sum(made.given)
        assert abs(made.tokens[0] - made.tokens[1]) <= 2 * slack
        assert made.samples[1] > 8 * made.samples[0]


@pytest.mark.parametrize("settings", [{}, {"mode": "iid"}, {"unit": "tokens"}, {"limits": {"zh": 40}}])
@pytest.mark.parametrize("stop", [1, 7, 333])
def test_state_goes_on(settings, stop):
    size = lambda source: source + 3
    whole = drawn(sampler(grow=700, **settings), stop + 1000, size)
    first, again = sampler(grow=700, **settings), sampler(grow=700, **settings)
    assert drawn(first, stop, size) == whole[:stop]
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert drawn(again, 1000, size) == whole[stop:]


def test_a_limit_is_kept_and_its_share_goes_on():
    made = sampler(grow=2000, limits={"zh": 100, "sft": 3})
    drawn(made, 1900)
    assert made.samples[1] == 100 and made.samples[3] == 3
    assert sum(made.expected) == pytest.approx(1900) and sum(made.samples) == 1900
    assert max(abs(a - n) for a, n in zip(made.expected, made.samples, strict=True)) < 1.5


def test_everything_given():
    made = sampler(["a", "b"], anchors=even_shares("ab"), limits={"a": 2, "b": 3})
    assert sorted(drawn(made, 5)) == [0, 0, 1, 1, 1]
    with pytest.raises(Exhausted, match="after 5 samples every source"):
        made.draw()


def test_tempered_by_hand():
    assert tempered({"a": 1, "b": 3})[1.0] == {"a": 0.25, "b": 0.75}
    assert tempered({"a": 1, "b": 10**6}, math.inf)[0.0] == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match="above 0"):
        tempered({"a": 1}, 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"anchors": {0: {"en": 0.9}, 1: {"en": 1}}}, "sum to 1, not 0.9"),
        ({"anchors": {0: {"en": 1.5, "zh": -0.5}, 1: {"en": 1}}}, "must be >= 0"),
        ({"anchors": {0: {"en": 1}, 1: {"de": 1}}}, "names de, which is no source"),
        ({"anchors": {0: {"en": 1}, 0.5: {"en": 1}}}, "ascend from 0 to 1"),
        ({"anchors": {0: {"en": 1}, 0.7: {"en": 1}, 0.5: {"en": 1}, 1: {"en": 1}}}, "ascend from 0 to 1"),
        ({"preset": "curriculum"}, "preset is one of chatflow, two_stage, static"),
        ({"pacing": "geometric"}, "cannot begin at 0"),
        ({"pacing": "cubic", "mode": "random", "grow": 0}, "pacing is one of.*mode is one of.*grow must be"),
        ({"start": 1.0}, "start must be a number in"),
        ({"limits": {"fr": 1}}, "limits of fr"),
        ({"limits": {"en": 0}}, "whole number >= 1"),
        ({"sources": ["en", "zh"]}, "needs each source's role"),
        ({"sources": {"en": "english"}}, "role of a source is one of"),
        ({"sources": {"en": "source"}, "preset": "two_stage"}, "gives nothing to source at 0.775"),
        ({"sources": []}, "there is no source"),
    ],
)
def test_what_cannot_work_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        sampler(**settings)


def test_a_state_of_other_sources():
    with pytest.raises(ValueError, match="of 4 sources, this sampler has 2"):
        sampler(["a", "b"], anchors=even_shares("ab")).load_state_dict(sampler().state_dict())
