"""ChatFlow: one run whose mixture of sources moves from one language, over two, to instructions.

    lambda(t) = min(1, l0 + (1 - l0) t / grow)                                                 linear
              = min(1, (l0^q + (1 - l0^q) t / grow)^(1/q))                                     root
              = min(1, 2^(log2 l0 - log2 l0 t / grow))                                         geometric
    p(t)      = p_m + (p_m+1 - p_m) (lambda - a_m) / (a_m+1 - a_m)   for lambda in [a_m, a_m+1)

t counts the samples handed out to all ranks, never steps, so neither batch nor ranks move the curve. Which source is
next is decided by one of

    balanced    A_s += p_s(t);  s = argmax(A_s - n_s), the first of equals;  n_s += 1
    iid         s = the source in whose share of p(t) the number u = hash(seed, k) falls

That the mixture shifts gradually over `grow` = 5 million samples is ChatFlow's (2024, arXiv:2405.10626); its formula,
proportions and unit are not known to us. The pacing functions are those of Wang, Chen and Zhu, 2021, arXiv:2010.13166;
path, modes and presets are ours. Hash: Steele et al., 2014, doi:10.1145/2660193.2660195 (SplitMix64).
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ChatFlow", "Exhausted", "even_shares", "tempered"]

ROLES = ("source", "target", "parallel", "sft")  # the language that is known, the new one, both, instructions
PACES, MODES, UNITS = ("linear", "root", "geometric"), ("balanced", "iid"), ("samples", "tokens")
PATH = (  # ours: the old language never goes, for that is what holds it
    (0.0, (0.80, 0.10, 0.10, 0.00)),
    (0.5, (0.30, 0.45, 0.15, 0.10)),
    (1.0, (0.10, 0.15, 0.05, 0.70)),
)
MEAN = (0.375, 0.2875, 0.1125, 0.225)  # of PATH over lambda: what the two others give of each source, in other orders
SWITCH = 1 - MEAN[3]  # all texts, then all instructions
TEXTS = tuple(share / SWITCH for share in MEAN[:3]) + (0.0,)
PRESETS = {
    "chatflow": PATH,
    "two_stage": ((0.0, TEXTS), (SWITCH, TEXTS), (SWITCH, (0.0, 0.0, 0.0, 1.0)), (1.0, (0.0, 0.0, 0.0, 1.0))),
    "static": ((0.0, MEAN), (1.0, MEAN)),
}
WORD = 2**64 - 1


class Exhausted(ValueError):
    """Every source has given all that it may."""


class ChatFlow:
    """Says which source the next sample comes from. Its state is its counts and nothing else.

    Args:
        sources: their names, or names -> roles (source, target, parallel, sft), which the presets speak of.
        preset: "chatflow"; "two_stage", texts and then instructions; "static", one mixture. Equally many samples of
            each source come from all three within `grow`. Roles that no source has are left out, and several sources of
            a role share its part evenly.
        anchors: instead of a preset: lambda -> {name: share}, or a list of [lambda, {name: share}] in which two equal
            lambdas are a jump. From 0 to 1; names left out have 0.
        grow: t at which the path is complete.
        pacing: "linear", "root" or "geometric".
        start: l0 in [0, 1); above 0 for geometric.
        power: q of root.
        mode: "balanced" or "iid".
        unit: "samples"; or "tokens", for t and for the shares: then a source of short samples gives more of them.
        seed: of iid.
        limits: name -> samples that it may give at most, or None; then the others share its part.

    Raises:
        ValueError: no source, or settings that cannot work; names all of them.
    """

    def __init__(
        self,
        sources: Iterable[str] | Mapping[str, str],
        preset: str = "chatflow",
        anchors: Mapping[float, Mapping[str, float]] | Sequence | None = None,
        grow: float = 5_000_000,
        pacing: str = "linear",
        start: float = 0.0,
        power: float = 2.0,
        mode: str = "balanced",
        unit: str = "samples",
        seed: int = 7,
        limits: Mapping[str, int | None] | None = None,
    ):
        roles = dict(sources) if isinstance(sources, Mapping) else {}
        self.sources = tuple(sources)
        wrong = _wrong(self.sources, preset, grow, pacing, start, power, mode, unit, limits or {})
        path, faults = _from_preset(roles, preset) if anchors is None else _from_anchors(self.sources, anchors)
        if wrong + faults:
            raise ValueError("sampler: " + "; ".join(wrong + faults))
        self.places, self.path = [place for place, _ in path], [list(shares) for _, shares in path]
        self.grow, self.pacing, self.origin, self.power = float(grow), pacing, float(start), float(power)
        self.mode, self.unit, self.seed = mode, unit, seed
        self.limits = [(limits or {}).get(name) for name in self.sources]
        self.drawn, self.clock = 0, 0.0
        self.expected = [0.0] * len(self.sources)  # A_s, in the unit
        self.given = [0] * len(self.sources)  # n_s, in the unit
        self.samples = [0] * len(self.sources)
        self.tokens = [0] * len(self.sources)

    def pace(self, t: float) -> float:
        """lambda(t) in [0, 1]: how much of the path lies behind."""
        done, origin = t / self.grow, self.origin
        if done >= 1:
            return 1.0
        if self.pacing == "linear":
            return origin + (1 - origin) * done
        if self.pacing == "root":
            return (origin**self.power + (1 - origin**self.power) * done) ** (1 / self.power)
        return 2.0 ** (math.log2(origin) * (1 - done))

    def shares(self, t: float) -> list[float]:
        """p(t): one share a source, together 1."""
        at = self.pace(t)
        after = bisect_right(self.places, at)
        if after == len(self.places):
            return self.path[-1]
        low, high = self.places[after - 1], self.places[after]
        part = (at - low) / (high - low)
        return [a + (b - a) * part for a, b in zip(self.path[after - 1], self.path[after], strict=True)]

    def draw(self) -> int:
        """The number of the source of the next sample; `took` must follow.

        Raises:
            Exhausted: no source may give any more.
        """
        shares = self._open_shares()
        if self.mode == "balanced":
            # A sample's size is known once it is chosen; until then it counts as the mean of those before.
            size = 1.0 if self.unit == "samples" or not self.drawn else sum(self.tokens) / self.drawn
            best, most = -1, -math.inf
            for source, share in enumerate(shares):
                owed = self.expected[source] + share * size - self.given[source]
                if owed > most and self._open(source):
                    best, most = source, owed
            return best
        if self.unit == "tokens":
            shares = self._by_sample(shares)
        left = _uniform(self.seed, self.drawn)
        for source, share in enumerate(shares):
            left -= share
            if left < 0 and share:
                return source
        return max(source for source, share in enumerate(shares) if share)  # shares may fall short of 1 by rounding

    def took(self, source: int, tokens: int = 1) -> None:
        """Count the sample that was drawn.

        Args:
            source: what `draw` said.
            tokens: of the sample.
        """
        size = 1 if self.unit == "samples" else tokens
        for other, share in enumerate(self._open_shares()):
            self.expected[other] += share * size
        self.given[source] += size
        self.samples[source] += 1
        self.tokens[source] += tokens
        self.drawn += 1
        self.clock += size
        if self.samples[source] == self.limits[source]:
            self._close(source)

    def state_dict(self) -> dict:
        """All that decides what is drawn next; JSON."""
        return {
            "drawn": self.drawn,
            "clock": self.clock,
            "expected": list(self.expected),
            "given": list(self.given),
            "samples": list(self.samples),
            "tokens": list(self.tokens),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from a state of a sampler of the same settings.

        Raises:
            ValueError: it is of another number of sources.
        """
        if len(state["expected"]) != len(self.sources):
            raise ValueError(f"sampler: the state is of {len(state['expected'])} sources, this sampler has "
                             f"{len(self.sources)}: {', '.join(self.sources)}")  # fmt: skip
        self.drawn, self.clock = state["drawn"], state["clock"]
        self.expected, self.given = list(state["expected"]), list(state["given"])
        self.samples, self.tokens = list(state["samples"]), list(state["tokens"])

    def _open(self, source: int) -> bool:
        limit = self.limits[source]
        return limit is None or self.samples[source] < limit

    def _open_shares(self) -> list[float]:
        """p(t) over the sources that may still give."""
        shares = self.shares(self.clock)
        if all(map(self._open, range(len(shares)))):
            return shares
        left = [share if self._open(source) else 0.0 for source, share in enumerate(shares)]
        if total := sum(left):
            return [share / total for share in left]
        still = [float(self._open(source)) for source in range(len(shares))]
        if not any(still):
            raise Exhausted(f"sampler: after {self.drawn:,} samples every source ({', '.join(self.sources)}) has given "
                            f"all that it may; train for fewer steps, allow more repeats, or add data")  # fmt: skip
        return [each / sum(still) for each in still]  # only sources are left that the path gives nothing here

    def _close(self, source: int) -> None:
        """What a closed source was owed, or had too much, goes to the others: A and n must have one sum."""
        owed, self.expected[source] = self.expected[source] - self.given[source], float(self.given[source])
        if any(map(self._open, range(len(self.sources)))):
            for other, share in enumerate(self._open_shares()):
                self.expected[other] += share * owed

    def _by_sample(self, shares: Sequence[float]) -> list[float]:
        """Shares of tokens -> shares of samples, by the mean size of each source's samples so far."""
        mean = sum(self.tokens) / self.drawn if self.drawn else 1.0
        sizes = [tokens / count if count else mean for tokens, count in zip(self.tokens, self.samples, strict=True)]
        parts = [share / max(size, 1.0) for share, size in zip(shares, sizes, strict=True)]
        return [part / sum(parts) for part in parts]


def even_shares(sources: Iterable[str]) -> dict[float, dict[str, float]]:
    """Anchors that give every source the same, from the beginning to the end."""
    return tempered(dict.fromkeys(sources, 1))


def tempered(sizes: Mapping[str, float], temperature: float = 1.0) -> dict[float, dict[str, float]]:
    """Anchors of one mixture: p_s ~ size_s^(1 / temperature); 1 follows the sizes, infinity knows none of them.

    Source: Arivazhagan et al., 2019, arXiv:1907.05019, section 4.

    >>> tempered({"a": 1, "b": 9}, 2)[0.0]
    {'a': 0.25, 'b': 0.75}
    """
    if not temperature > 0 or not sizes or min(sizes.values()) <= 0:
        raise ValueError(f"sampler: temperature and all sizes must be above 0, got {temperature} and {dict(sizes)}")
    weights = {name: size ** (1 / temperature) for name, size in sizes.items()}
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    return {0.0: shares, 1.0: shares}


def _uniform(seed: int, number: int) -> float:
    """A number in [0, 1) that seed and number decide."""
    word = (_mixed(seed & WORD) + (number + 1) * 0x9E3779B97F4A7C15) & WORD
    return (_mixed(word) >> 11) / 2**53


def _mixed(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def _wrong(sources, preset, grow, pacing, start, power, mode, unit, limits) -> list[str]:
    wrong = [] if sources else ["there is no source"]
    named = {"preset": (preset, tuple(PRESETS)), "pacing": (pacing, PACES)}
    named |= {"mode": (mode, MODES), "unit": (unit, UNITS)}
    wrong += [f"{name} is one of {', '.join(known)}, got {value!r}" for name, (value, known) in named.items()
              if value not in known]  # fmt: skip
    numbers = {"grow": (grow, "above 0", lambda x: x > 0), "start": (start, "in [0, 1)", lambda x: 0 <= x < 1),
               "power": (power, "above 0", lambda x: x > 0)}  # fmt: skip
    wrong += [f"{name} must be a number {must}, got {value!r}" for name, (value, must, right) in numbers.items()
              if isinstance(value, bool) or not isinstance(value, (int, float)) or not right(value)]  # fmt: skip
    if pacing == "geometric" and start == 0:
        wrong.append("geometric pacing cannot begin at 0; set start, such as 0.01")
    if unknown := sorted(set(limits) - set(sources)):
        wrong.append(f"limits of {', '.join(unknown)}, which is no source")
    wrong += [f"the limit of {name} must be a whole number >= 1, got {value!r}" for name, value in limits.items()
              if value is not None and (not isinstance(value, int) or value < 1)]  # fmt: skip
    return wrong


def _from_preset(roles: Mapping[str, str], preset: str) -> tuple[list, list[str]]:
    if preset not in PRESETS:
        return [], []  # already said
    if wrong := {name: role for name, role in roles.items() if role not in ROLES}:
        listed = ", ".join(f"{name} is {role!r}" for name, role in wrong.items())
        return [], [f"the role of a source is one of {', '.join(ROLES)}, but {listed}"]
    if not roles:
        return [], ["a preset needs each source's role; give names -> roles, or anchors"]
    counts = [list(roles.values()).count(role) for role in ROLES]
    path = []
    for place, parts in PRESETS[preset]:
        total = sum(part for part, count in zip(parts, counts, strict=True) if count)
        if not total:
            only = ", ".join(dict.fromkeys(roles.values()))
            return [], [f"preset {preset} gives nothing to {only} at {place:g}; give anchors instead"]
        by_role = {role: part / total / count for role, part, count in zip(ROLES, parts, counts, strict=True) if count}
        path.append((place, [by_role[role] for role in roles.values()]))
    return path, []


def _from_anchors(sources: Sequence[str], anchors: Mapping | Sequence) -> tuple[list, list[str]]:
    pairs = list(anchors.items()) if isinstance(anchors, Mapping) else [tuple(anchor) for anchor in anchors]
    wrong, path = [], []
    for place, shares in pairs:
        if unknown := sorted(set(shares) - set(sources)):
            wrong.append(f"anchor {place} names {', '.join(unknown)}, which is no source; those are "
                         f"{', '.join(sources)}")  # fmt: skip
            continue
        values = [float(shares.get(name, 0.0)) for name in sources]
        if min(values) < 0 or abs(sum(values) - 1) > 1e-6:
            listed = ", ".join(f"{name} {value:g}" for name, value in zip(sources, values, strict=True))
            wrong.append(f"the shares of anchor {place} must be >= 0 and sum to 1, not {sum(values):g} ({listed})")
            continue
        path.append((float(place), [value / sum(values) for value in values]))
    places = [float(place) for place, _ in pairs]
    if len(places) < 2 or places[0] != 0 or places[-1] != 1 or places != sorted(places):
        wrong.append(f"anchors ascend from 0 to 1, got {', '.join(f'{place:g}' for place in places) or 'none'}")
    return path, wrong
