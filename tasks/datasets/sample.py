"""A synthetic marketplace with MerRec's columns and May-2023 statistics, whose best possible scores are known.

Users have a home category, favourite leaves of the category tree, a style, a price they are used to and habits (to
like, to buy, to haggle); items have a leaf, a brand with a style, a price, a condition and an age. Users move through
leaves, open items that suit them, and the first view of an item in a session may be followed by

    view -> like -> add to cart -> offer -> buy_start -> buy_comp

The log-odds of every step are a sum of effects of what a model can see or learn, plus a bonus for the furthest step
reached before. All steps share the effects in different proportions, so that what is learned of one helps another.
Counts, prices, sessions and repeats follow figures of MerRec's May 2023 (arXiv:2402.14230); the latent structure is
ours. Unlike MerRec's, an item may be sold more than once: sellers are not simulated.

Nothing is drawn in sequence: every random bit is a hash of the seed and of what it decides (a user, an item, a view),
and every decision compares integers. The same settings give the same bytes on any machine, however the work is cut.
"""

import math
import zlib
from calendar import monthrange
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from statistics import NormalDist

import numpy as np
import polars as pl

from tasks.datasets import merrec
from tasks.datasets._rules import Rule, inside_month
from tasks.datasets._schema import COLUMNS, MERREC_EVENTS, conform

__all__ = ["EVENTS", "FEATURES", "best_scores", "expectations", "fetch", "items", "read", "view_scores"]

EVENTS = MERREC_EVENTS
FEATURES = merrec.FEATURES

USERS_A_BLOCK = 4096  # the unit of generation, and one shard: about 270,000 rows, whatever the size of the whole
ROW_GROUP = 131_072
DAY = 86_400_000  # milliseconds
UNIT = 1 << 32  # an integer probability of 1
SD = 1024  # one standard deviation of an integer normal
LOGIT = 256  # one unit of log-odds

# Fitted so that the finished log has the published quantiles (see tests); mu and sigma of logarithms.
VIEWS_OF_USER = (2.29, 1.855)
VIEWS_OF_SESSION = (0.66, 1.34)
SECONDS = (4.62, 1.32)  # duration of a session of two views or more; shorter ones last 0 s
DOLLARS = (3.11, 1.57)
POPULARITY = 1.9  # sigma of an item's weight
LISTINGS = Fraction(122, 1000)  # new items a month for each row
AGE_DAYS = 20  # mean age of an item when it is viewed
STAY, RETURNS = 0.73, 0.134  # a view stays in the leaf; a view returns to an item that the user viewed before
FAVOURITES, FAVOURITE = (28, 20, 16, 14, 12, 10), 0.8  # weights of six favourite leaves; a new leaf is one of them
HOME = 0.75  # a favourite leaf lies in the home category
SHORT = 0.45  # of the users with few views come within a sixth of the days
NULLS = {"brand": 0.192, "size": 0.6274, "color": 0.9561, "c2": 0.02}
DUPLICATES = 0.00084
PROPOSALS, SEARCHES = 6, 4  # items looked at before one is opened for want of a better; searches for one not yet viewed

# Effects on the log-odds of like, cart, offer, buy_start, buy_comp, in LOGIT units for one unit of the cause.
STEPS = MERREC_EVENTS[1:]
EFFECTS = {
    "liker": (215, 60, 40, 20, 0),  # habits, each a standard deviation
    "buyer": (40, 210, 120, 240, 130),
    "haggler": (10, -30, 270, -10, 0),
    "favourite": (75, 65, 45, 65, 10),  # 0, 1 or 2
    "misfit": (-120, -130, -60, -150, -70),  # |price - the user's|, standard deviations
    "price": (40, -100, 150, -140, -90),  # standard deviations
    "leaf": (80, 90, 100, 90, 50),  # a normal of its own for each leaf and step
    "brand": (60, 60, 60, 60, 20),  # and for each brand and step
    "condition": (-40, -50, 40, -60, -20),  # 0 (new) to 4, more in some categories
    "seen": (-160, 240, 220, 300, 60),  # viewed in an earlier session
    "popular": (60, 30, 20, 25, 0),  # 0 to 3
    "position": (18, 24, 10, 30, 0),  # in the session: 0 to 3
    "shipping": (10, 70, -40, 80, 30),  # paid by the seller
}
STYLE_EFFECTS = (  # by distance on the circle of eight styles, 0 to 4, then without a brand
    (150, 80, -40, -120, -160, -20),
    (120, 70, -20, -110, -130, -30),
    (60, 80, 20, -60, -100, 20),
    (140, 90, -30, -120, -150, -20),
    (50, 20, 0, -20, -50, 0),
)
BONUS = (
    (0, 0, 0, 0),
    (0, 330, 0, 0),
    (0, 200, 380, 0),
    (0, 150, 480, 330),
    (0, 0, 0, 0),
)  # by the furthest step before
SUITS = (65535, 50000, 34000, 22000, 18000, 36000)  # acceptance by style distance, of 65536

TREE = """
Women: Shoes = sneakers boots heels sandals flats loafers;
  Women's handbags = totes crossbody satchels clutches backpacks; Tops & blouses = tees blouses tanks tunics;
  Dresses = maxi midi mini gowns; Jewelry = necklaces rings earrings bracelets
Toys & Collectibles: Trading cards = singles packs boxes binders; Figures = statues plush figurines minifigures;
  Games = boardgames puzzles dice miniatures; Building = sets bricks kits; Dolls = dolls dollhouses outfits;
  Vehicles = diecast trains planes; Crafts = beads slime
Men: Men's shoes = trainers oxfords slides hikers; Men's tops = hoodies polos shirts jerseys;
  Jeans = slim straight relaxed; Men's accessories = belts wallets watches caps
Electronics: Phones = smartphones cases chargers; Video games = consoles cartridges controllers;
  Audio = headphones speakers turntables; Computers = laptops keyboards tablets
Home: Kitchen = cookware mugs knives gadgets; Decor = candles prints vases; Bedding = quilts sheets pillows
Beauty: Makeup = palettes lipsticks brushes; Skin care = serums masks creams; Fragrance = perfumes mists
Kids: Girls = leggings skirts tutus; Boys = joggers shorts jackets; Baby = onesies bibs blankets
Vintage & antiques: Glass = tumblers bowls; Paper = postcards maps stamps; Coins = silver copper
Sports & outdoors: Fitness = weights mats bands; Outdoor = tents packs lanterns; Golf = drivers putters
Handmade: Knitting = scarves beanies; Stickers = decals sheets; Candles = soy beeswax
Books: Fiction = novels comics; Learning = textbooks cookbooks; Music = vinyl cassettes
Pets: Dogs = collars leashes; Cats = trees toys; Aquarium = filters plants
"""
C0_SHARES = (3383, 1881, 896, 780, 650, 560, 470, 400, 330, 280, 210, 160)  # of 10,000; the first three are published
BRANDS, BRANDS_OF_C1 = 360, 24
BRAND_STARTS = "Al Be Ca Do El Fa Go Ha Ix Jo Ka Lu Mi No Or Pe Qua Ro"
BRAND_ENDS = "bora cati dena fira gano hale jori keto lume mira nova ora pina rue sato tera vano wynn xia zelo"
STYLE_WORDS = ("classic", "sporty", "boho", "minimal", "vintage", "glam", "street", "cosy")
DETAIL_WORDS = "rare bundle nwt authentic limited soft mini large handpicked gift everyday signed retro pair set lot"
CONDITIONS = ("New", "Like new", "Good", "Fair", "Poor")
CONDITION_WORDS = ("new with tags", "like new", "good used condition", "some wear", "for parts")
CONDITION_SHARES = (40, 27, 24, 7, 2)
SIZES = ("XXS", "XS", "S", "M", "L", "XL", "XXL", "0", "2", "4", "6", "8", "10", "12")
COLORS = ("black", "white", "blue", "pink", "red", "green", "gray", "brown", "purple", "beige", "gold", "orange")
HOURS = (34, 38, 41, 40, 35, 27, 18, 11, 7, 6, 8, 13, 20, 26, 29, 30, 31, 32, 33, 32, 31, 31, 32, 33)  # UTC
OLDEST = 1 << 24  # added to an item's place in its leaf: older listings have negative places


# Odd factors: multiplication by one, modulo a power of two, scatters numbers and can be undone.
MIX_USERS, MIX_ITEMS, MIX_RANKS = 0x5851F42D4D, 0x14057B7EF767, 0x9D


class SampleError(ValueError):
    """The sample cannot be made with these settings."""


# ---------------------------------------------------------------- the contract of a dataset


def read(raw: Path) -> pl.LazyFrame:
    """The events that `fetch` wrote; the hidden truth beside them is not read."""
    return conform(merrec.scan(Path(raw), pattern="events-*.parquet"))


def expectations() -> list[Rule]:
    """MerRec's rules; a sample keeps closer to the published event mix than one real shard does."""
    return [*merrec.rules(relative=0.05), inside_month("stime")]


def fetch(
    out: Path, source: Path, rows: int = 300_000, seed: int = 7, start: str = "2023-05-01", days: int = 31
) -> None:
    """Write exactly `rows` events as `events-*.parquet`, and the hidden truth below `truth/`.

    Args:
        out: an empty folder.
        source: this file; the sample needs no other.
        rows: events; memory does not grow with them.
        seed: other users, items and draws; the same category tree, brands and effects.
        start: first day, UTC.
        days: length of the log; it must end in the month of `start`.

    Raises:
        SampleError: a setting is out of its range; says which.
    """
    market = _market(rows, seed, start, days)
    (truth := Path(out) / "truth").mkdir(parents=True)
    left = rows
    for number, block in enumerate(_blocks(market)):
        events, views = _frames(market, block, left)
        _write(events, Path(out) / f"events-{number:05d}.parquet")
        _write(views, truth / f"views-{number:05d}.parquet")
        left -= len(events)
        if not left:
            break
    _write(pl.DataFrame([asdict(market)]), truth / "settings.parquet")


def best_scores(raw: Path) -> pl.LazyFrame:
    """The true probability that a view is followed by each step within its session: nothing ranks better on average.

    One row for each first view of (user_id, session_id, item_id), with p_item_like, p_item_add_to_cart_tap,
    p_offer_make, p_buy_start and p_buy_comp in [0, 1]. The best possible AUC of a task `{given: "event_id =
    'item_view'", positive: "event_id = 'X'", within: session}` is that of p_X as the score of the task's rows, joined
    on the three keys.
    """
    return pl.scan_parquet(Path(raw) / "truth" / "views-*.parquet")


def view_scores(raw: Path, rows: pl.DataFrame, category: float = 1, popularity: float = 1) -> pl.Series:
    """How much likelier each row is a real view than a sampled one: the best score for telling the two apart.

    Negatives are taken to be drawn from the view's own leaf (`category` of them for each view) and from all items
    (`popularity`), both in proportion to an item's views. Exact but for the rare forced choices and for views that
    return to an earlier item, which are scored like any other.

    Args:
        raw: what `fetch` wrote.
        rows: user_id, item_id, stime and, where known, previous_c2_id (the leaf of the event before in the session, or
            null) of views and sampled items alike.
        category: sampled items of the same leaf for each view.
        popularity: sampled items of the whole log for each view.

    Returns:
        One float a row, larger for likelier views; 0 for an item that was not yet listed.
    """
    market = _Market(**pl.read_parquet(Path(raw) / "truth" / "settings.parquet").row(0, named=True))
    world = _world()
    users = _users(market, market.user_number(rows["user_id"].to_numpy()))
    leaf, place = market.item_place(rows["item_id"].to_numpy())
    look = _look(market, leaf, place)
    accepted = _acceptance(users, np.arange(len(rows)), look) / UNIT
    typical = 0.4  # mean acceptance; enters only through the few forced choices
    forced = (1 - typical) ** (PROPOSALS - 1)
    suits = accepted * (1 - forced * (1 - typical)) / typical + forced * (1 - accepted)
    share = world.share[leaf] / world.share.sum()
    weights = np.array(FAVOURITES) / sum(FAVOURITES)
    taste = FAVOURITE * ((users.favourite == leaf[:, None]) * weights).sum(1) + (1 - FAVOURITE) * share
    if "previous_c2_id" in rows.columns:
        before = rows["previous_c2_id"].cast(pl.Int64).fill_null(-1).to_numpy()
        taste = np.where(before < 0, taste, STAY * (before == world.c2_id[leaf]) + (1 - STAY) * taste)
    drawn = (category * taste + popularity * share) / (category + popularity)
    stime = (rows["stime"].dt.epoch("ms") - market.epoch).to_numpy()
    return pl.Series("p_item_view", suits * taste / drawn * _freshness(market, leaf, place, stime))


def items(count: int, rows: int = 300_000, seed: int = 7, start: str = "2023-05-01", days: int = 31) -> pl.DataFrame:
    """`count` different items that are listed while the log of these settings runs, the same for the same settings.

    Returns:
        The log's columns of an item, and style, noun and detail: the words of its name.

    Raises:
        SampleError: a setting is out of its range; the market lists fewer items.
    """
    market, world = _market(rows, seed, start, days), _world()
    if count > (there := int(market.listed.sum())):
        raise SampleError(f"{count:,} listings are asked for, but a log of {rows:,} rows lists {there:,}; raise rows")
    ends = np.cumsum(market.listed)
    # An odd step through all items, without a repeat: leaves come in proportion to their listings.
    step = next(
        n for n in range(int(ends[-1] * 0.618) | 1, 2 * int(ends[-1]) + 3, 2) if math.gcd(n, int(ends[-1])) == 1
    )
    number = (np.arange(count) * step + int(_draw("items", seed)[0] % np.uint64(ends[-1]))) % ends[-1]
    leaf = np.searchsorted(ends, number, side="right")
    place = number - (ends - market.listed)[leaf]
    look, detail = _look(market, leaf, place), _details(market, leaf, place)
    return pl.DataFrame(_item_columns(market, leaf, place)).with_columns(
        _named("style", STYLE_WORDS, np.where(look.brand < 0, detail.words % 8, look.style)),
        _named("noun", [name.lower() for name in world.c2_name], leaf),
        _named("detail", DETAIL_WORDS.split(), detail.words),
    )


# ---------------------------------------------------------------- integers


def _draw(purpose: str, *keys) -> np.ndarray:
    """64 random bits an element, a pure function of the purpose and the keys (splitmix64, applied key by key)."""
    state = np.full(1, zlib.crc32(purpose.encode()), np.uint64)
    for key in keys:
        state = state * np.uint64(0x9E3779B97F4A7C15) + np.asarray(key).astype(np.uint64)
        state ^= state >> np.uint64(30)
        state *= np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(27)
        state *= np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def _bits(draw: np.ndarray, part: int) -> np.ndarray:
    """The 16 bits number `part` (0 to 3) of each draw, as an index."""
    return ((draw >> np.uint64(16 * part)) & np.uint64(0xFFFF)).astype(np.int64)


def _fraction(draw: np.ndarray, whole) -> np.ndarray:
    """A uniform integer in 0..whole-1 from the draw's upper half; `whole` is below 2**32."""
    return (draw >> np.uint64(33)).astype(np.int64) * whole >> 31


def _chance(probability: float) -> int:
    """A probability as a bound for 16 bits."""
    return round(probability * 65536)


@cache
def _normal() -> np.ndarray:
    """16 bits -> a normal variate in units of 1 / SD."""
    half = [round(SD * NormalDist().inv_cdf((place + 0.5) / 65536)) for place in range(32768, 65536)]
    return np.array([-value for value in reversed(half)] + half)


@cache
def _lognormal(mu: float, sigma: float, scale: int, low: int, high: int) -> np.ndarray:
    """A normal variate, plus 5 SD -> scale * exp(mu + sigma * it), rounded and clipped."""
    values = [scale * math.exp(mu + sigma * (place / SD - 5)) for place in range(10 * SD)]
    return np.array([min(high, max(low, round(value))) for value in values])


def _of_normal(table: np.ndarray, normal: np.ndarray) -> np.ndarray:
    return table[np.clip(normal + 5 * SD, 0, 10 * SD - 1)]


@cache
def _exponential() -> np.ndarray:
    """16 bits -> an exponential variate of mean 1 in units of 1 / 65536."""
    return np.array([round(-65536 * math.log1p(-(place + 0.5) / 65536)) for place in range(65536)])


@cache
def _logistic() -> np.ndarray:
    """Log-odds in LOGIT units, plus 12 -> the probability as an integer of UNIT."""
    return np.array([round(UNIT / (1 + math.exp(12 - place / LOGIT))) for place in range(20 * LOGIT)])


def _probability(logit: np.ndarray) -> np.ndarray:
    return _logistic()[np.clip(logit + 12 * LOGIT, 0, 20 * LOGIT - 1)]


@cache
def _price_fit() -> np.ndarray:
    """Distance in SD / 8 -> acceptance of 65536: a Gaussian kernel 1.2 SD wide."""
    return np.array([round(65536 * math.exp(-((place / 8 / 1.2) ** 2) / 2)) for place in range(10 * 8 * 2)])


def _inverse(weights: Sequence[int]) -> np.ndarray:
    """16 bits -> an index drawn in proportion to integer weights."""
    total = np.cumsum(np.array(weights, dtype=np.int64))
    return np.searchsorted(total, np.arange(65536) * total[-1] // 65536, side="right")


@cache
def _fixed_inverse(weights: tuple[int, ...]) -> np.ndarray:
    return _inverse(weights)


# ---------------------------------------------------------------- the world: the same for every seed


@dataclass(frozen=True)
class _World:
    """Category tree, brands and the effects that belong to them."""

    c0_name: list[str]
    c1_name: list[str]
    c2_name: list[str]
    c0: np.ndarray  # of each leaf; the next four as well
    c1: np.ndarray
    c2_id: np.ndarray
    share: np.ndarray  # of 2**24
    any_leaf: np.ndarray  # 16 bits -> leaf
    home_leaf: np.ndarray  # (c0, 16 bits) -> leaf
    brand: np.ndarray  # (c1, rank) -> brand
    brand_name: list[str]
    brand_style: np.ndarray
    brand_price: np.ndarray
    leaf_price: np.ndarray
    leaf_effect: np.ndarray  # (step, leaf)
    brand_effect: np.ndarray  # (step, brand)
    caution: np.ndarray  # of each c0: how much condition counts, of 64


@cache
def _world() -> _World:
    c0_name, c1_name, c2_name, c0, c1, share = [], [], [], [], [], []
    for line in TREE.replace("\n  ", " ").strip().splitlines():
        name, _, rest = line.partition(": ")
        part = Fraction(C0_SHARES[len(c0_name)], sum(C0_SHARES))
        children = [child.split(" = ") for child in rest.split("; ")]
        for rank, (child, leaves) in enumerate(children):
            words = leaves.split()
            for place, word in enumerate(words):
                c2_name.append(word.capitalize())
                c0.append(len(c0_name))
                c1.append(len(c1_name))
                share.append(int(part * _zipf(rank, len(children)) * _zipf(place, len(words)) * (1 << 24)))
            c1_name.append(child)
        c0_name.append(name)
    c0, c1, share = np.array(c0), np.array(c1), np.array(share)
    leaf, brand = np.arange(len(c0)), np.arange(BRANDS)
    normal = lambda purpose, *keys: _normal()[_bits(_draw(purpose, *keys), 0)]
    steps = np.arange(len(STEPS))[:, None]
    scale = lambda name: np.array(EFFECTS[name])[:, None]
    return _World(
        c0_name=c0_name,
        c1_name=c1_name,
        c2_name=c2_name,
        c0=c0,
        c1=c1,
        c2_id=1000 + leaf,
        share=share,
        any_leaf=_inverse(share),
        home_leaf=np.stack([_inverse(np.where(c0 == home, share, 0)) for home in range(len(c0_name))]),
        brand=(np.arange(len(c1_name))[:, None] * 67 + np.arange(BRANDS_OF_C1) * 7) % BRANDS,  # 7 and 360 are coprime
        brand_name=[start + end for start in BRAND_STARTS.split() for end in BRAND_ENDS.split()],
        brand_style=_bits(_draw("brand style", brand), 0) % 8,
        brand_price=normal("brand price", brand),
        leaf_price=normal("leaf price", leaf),
        leaf_effect=normal("leaf effect", steps, leaf) * scale("leaf") // SD,
        brand_effect=normal("brand effect", steps, brand) * scale("brand") // SD,
        caution=_bits(_draw("caution", np.arange(len(c0_name))), 0) % 97 + 16,
    )


def _zipf(rank: int, count: int) -> Fraction:
    return Fraction(1, rank + 1) / sum(Fraction(1, place + 1) for place in range(count))


# ---------------------------------------------------------------- one sample: settings and numbers of users and items


@dataclass(frozen=True)
class _Market:
    """The settings of one sample, and what follows from them."""

    rows: int
    seed: int
    start: str
    days: int

    @property
    def span(self) -> int:
        return self.days * DAY

    @property
    def epoch(self) -> int:
        """Milliseconds from 1970 to the first day."""
        day = date.fromisoformat(self.start)
        return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000

    @property
    def most_views(self) -> int:
        """Of one user: 30,000 events a month at most, and no user may be a thirtieth of a small sample."""
        return max(20, min(25_000 * self.days // 31, self.rows // 36))

    @cached_property
    def listed(self) -> np.ndarray:
        """New items of each leaf while the log runs."""
        share = _world().share
        return np.maximum(1, int(self.rows * LISTINGS) * share // share.sum())

    @cached_property
    def window(self) -> np.ndarray:
        """Consecutive items of a leaf among which popularity chooses: a power of two, four days' listings, 8 to 256."""
        size = np.full(len(self.listed), 8)
        for _ in range(5):
            size = np.where(2 * size * self.days <= 4 * self.listed, 2 * size, size)
        return size

    @cached_property
    def age(self) -> np.ndarray:
        """Mean milliseconds from listing to view in each leaf, less what the window adds."""
        added = self.window * self.span // self.listed // 2
        return np.maximum(AGE_DAYS * DAY // 6, AGE_DAYS * DAY - added)

    def user_id(self, number: np.ndarray) -> np.ndarray:
        return (number * MIX_USERS + self._shift("user ids")) % (1 << 40) + 1

    def user_number(self, id: np.ndarray) -> np.ndarray:
        return (id - 1 - self._shift("user ids")) * pow(MIX_USERS, -1, 1 << 40) % (1 << 40)

    def item_id(self, leaf: np.ndarray, place: np.ndarray) -> np.ndarray:
        return (_number(leaf, place) * MIX_ITEMS + self._shift("item ids")) % (1 << 44) + 1

    def item_place(self, id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        number = (id - 1 - self._shift("item ids")) * pow(MIX_ITEMS, -1, 1 << 44) % (1 << 44)
        return number % len(_world().c0), number // len(_world().c0) - OLDEST

    def _shift(self, purpose: str) -> int:
        return int(_draw(purpose, self.seed)[0] >> np.uint64(24))


def _number(leaf: np.ndarray, place: np.ndarray) -> np.ndarray:
    """One integer below 2**40 for each item."""
    return (place + OLDEST) * len(_world().c0) + leaf


def _market(rows: int, seed: int, start: str, days: int) -> _Market:
    try:
        first = date.fromisoformat(str(start))
    except ValueError:
        raise SampleError(f"start must be a day such as 2023-05-01; got {start!r}") from None
    room = monthrange(first.year, first.month)[1] - first.day + 1
    for name, value, low, high in (
        ("rows", rows, 1000, 1 << 40),
        ("seed", seed, 0, (1 << 63) - 1),
        ("days", days, 2, room),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            more = f": a log that starts on {first} must end in that month" if name == "days" else ""
            raise SampleError(f"{name} must be an integer in {low}..{high}; got {value!r}{more}")
    return _Market(rows, seed, first.isoformat(), days)


# ---------------------------------------------------------------- users


@dataclass(frozen=True)
class _Users:
    """Traits of some users; every array has one element (or row) a user."""

    number: np.ndarray
    views: np.ndarray
    favourite: np.ndarray  # (users, 6) leaves
    style: np.ndarray
    price: np.ndarray  # what they are used to; the next three as well: in SD
    liker: np.ndarray
    buyer: np.ndarray
    haggler: np.ndarray


def _users(market: _Market, number: np.ndarray) -> _Users:
    world, normal = _world(), _normal()
    drawn = _draw("user", market.seed, number)
    # Evenly spread instead of independent: a few heavy users would otherwise decide the statistics of a small sample.
    size, home, price, liker = (_even(market, axis, number) for axis in range(4))
    engaged, buyer, haggler = (normal[_bits(drawn, part)] for part in (1, 2, 3))
    count = _lognormal(*VIEWS_OF_USER, 1, 1, 1 << 30)
    place = _draw("favourite", market.seed, number[:, None], np.arange(len(FAVOURITES)))
    home = _fixed_inverse(C0_SHARES)[home]
    at_home = _bits(place, 0) < _chance(HOME)
    return _Users(
        number=number,
        views=np.minimum(_of_normal(count, normal[size]), market.most_views),
        favourite=np.where(at_home, world.home_leaf[home[:, None], _bits(place, 1)], world.any_leaf[_bits(place, 1)]),
        style=_bits(drawn, 0) % 8,
        price=normal[price],
        liker=(545 * engaged + 868 * normal[liker]) // SD,
        buyer=(545 * engaged + 868 * buyer) // SD,
        haggler=(400 * engaged + 500 * buyer + 797 * haggler) // SD,
    )


def _even(market: _Market, axis: int, number: np.ndarray) -> np.ndarray:
    """16 bits a user, spread evenly together with the other three axes (Kronecker sequence of 1 / 1.1673)."""
    step = (0xDB4F0B9175AE2165, 0xBBE0563303A4615F, 0xA0F2EC75A1FE1575, 0x89E182857D9ED689)[axis]
    place = number.astype(np.uint64) * np.uint64(step) + _draw("even", market.seed, axis)
    return (place >> np.uint64(48)).astype(np.int64)


# ---------------------------------------------------------------- views


@dataclass(frozen=True)
class _Views:
    """All views of a block, user by user in time. `session` counts within the block, `user` too."""

    users: _Users
    user: np.ndarray
    session: np.ndarray
    position: np.ndarray  # in the session, from 0
    time: np.ndarray  # milliseconds since the start
    ordinal: np.ndarray  # of the session within its user
    leaf: np.ndarray
    place: np.ndarray
    first: np.ndarray  # bool: first view of the item in its session
    seen: np.ndarray  # bool: the user viewed the item in an earlier session


def _blocks(market: _Market) -> Iterator[_Views]:
    """Blocks of users without end; the first ones together hold a little more than the rows asked for."""
    share = merrec.EVENT_SHARES[EVENTS[0]] / (1 + DUPLICATES)
    wanted, users = math.ceil(market.rows * share) + 10, 0
    while wanted > 0:
        total = np.cumsum(_users(market, np.arange(users, users + 1024)).views)
        users += min(1024, 1 + int(np.searchsorted(total, wanted)))
        wanted -= int(total[-1])
    blocks = -(-users // USERS_A_BLOCK)
    size = -(-users // blocks)
    block = 0
    while True:
        yield _views(market, np.arange(block * size, (block + 1) * size))
        block += 1


def _views(market: _Market, number: np.ndarray) -> _Views:
    users = _users(market, number)
    ends = np.cumsum(users.views)
    user = np.repeat(np.arange(len(number)), users.views)
    place_in_user = np.arange(ends[-1]) - np.repeat(ends - users.views, users.views)
    key = (number[user] << 20) + place_in_user
    opens, quantile = _session_starts(market, users, user, place_in_user, key)
    session = np.cumsum(opens) - 1
    first_view = np.flatnonzero(opens)
    position = np.arange(len(user)) - first_view[session]
    time = _times(market, users, user[first_view], np.diff(first_view, append=len(user)), quantile, position, key)
    leaf = _leaves(market, users, user, opens, key)
    place = _choose(market, users, user, leaf, time, key)
    origin = _returns(market, user, place_in_user, _number(leaf, place), key)
    leaf, place = leaf[origin], place[origin]
    item = _number(leaf, place)
    first_of_user = _first(user, item)
    first_of_session = _first(session, item)
    first_session = np.searchsorted(user[first_view], np.arange(len(number)))
    return _Views(
        users=users,
        user=user,
        session=session,
        position=position,
        time=time,
        ordinal=session - first_session[user],
        leaf=leaf,
        place=place,
        first=first_of_session == np.arange(len(user)),
        seen=session[first_of_user] < session,
    )


def _session_starts(market, users, user, place, key) -> tuple[np.ndarray, np.ndarray]:
    """Which views open a session, and the normal variate behind each session's size."""
    quantile = _normal()[_bits(_draw("session size", market.seed, key), 0)]
    size = _of_normal(_lognormal(*VIEWS_OF_SESSION, 1, 1, 1 << 20), quantile)
    # The k-th size drawn for a user begins where the ones before end; those beyond the user's views fall away.
    before = np.cumsum(size) - size
    begins = before - before[np.flatnonzero(place == 0)][user]
    begun = begins < users.views[user]
    owner, begins, quantile = user[begun], begins[begun], quantile[begun]
    ends = np.append(begins[1:], 0)
    size = np.where(ends > begins, ends, users.views[owner]) - begins
    # The session that the user's last view cuts off is longer than most: without a shuffle it would always come last.
    shuffled = np.lexsort((_draw("shuffle", market.seed, key[begun]), owner))
    size, quantile = size[shuffled], quantile[shuffled]
    opens = np.zeros(len(user), dtype=bool)
    opens[np.cumsum(size) - size] = True
    return opens, quantile


def _times(market, users, owner, size, quantile, position, key) -> np.ndarray:
    """Milliseconds of every view: sessions spread over each user's days without overlap, views within their session."""
    ordinal = np.arange(len(owner)) - np.searchsorted(owner, owner)
    drawn = _draw("session", market.seed, users.number[owner], ordinal)
    start = np.sort(owner * (1 << 40) + _session_start(market, users, owner, drawn)) - owner * (1 << 40)
    seconds = _lognormal(*SECONDS, 1000, 1000, 3_600_000)
    duration = np.where(size > 1, _of_normal(seconds, (614 * quantile + 819 * _normal()[_bits(drawn, 0)]) // SD), 0)
    start = _apart(start, duration + 120_000, owner, market.span)
    session = np.repeat(np.arange(len(owner)), size)
    inside = _fraction(_draw("moment", market.seed, key), duration[session])
    inside = np.where(position == 0, 0, np.where(position == 1, duration[session], inside))
    inside = np.sort((session << 24) + inside) - (session << 24)
    return np.clip(start[session] + inside, 0, market.span - 1)


def _session_start(market, users, owner, drawn) -> np.ndarray:
    """Heavy users come all month, most others within a sixth of it, so that some are new in the last days."""
    habit = _draw("days", market.seed, users.number)
    short = (_bits(habit, 0) < _chance(SHORT)) & (users.views <= 200)
    width = np.where(short, market.span // 6, market.span)[owner]
    begin = _fraction(habit, market.span)[owner]
    day = (begin + _fraction(drawn, width)) % market.span // DAY
    hour = _fixed_inverse(HOURS)[_bits(drawn, 1)]
    return day * DAY + hour * 3_600_000 + _fraction(_draw("within the hour", drawn), 3_600_000)


def _apart(start, length, owner, span) -> np.ndarray:
    """Push sorted starts of each owner later, then earlier, until none overlaps the next or the end of the span."""
    total = np.cumsum(length)
    first = np.searchsorted(owner, owner)
    before = total - length - (total - length)[first]
    last = np.searchsorted(owner, owner, side="right") - 1
    after = total[last] - total + length
    lane = owner * (1 << 42)
    start = np.maximum.accumulate(start - before + lane) - lane + before
    return np.maximum(np.minimum(start, span - after), 0)


def _leaves(market, users, user, opens, key) -> np.ndarray:
    """A walk through leaves: stay, or move to a favourite or to any leaf."""
    drawn = _draw("leaf", market.seed, key)
    moves = opens | (_bits(drawn, 0) >= _chance(STAY))
    favourite = users.favourite[user, _fixed_inverse(FAVOURITES)[_bits(drawn, 2)]]
    target = np.where(_bits(drawn, 1) < _chance(FAVOURITE), favourite, _world().any_leaf[_bits(drawn, 3)])
    return target[np.maximum.accumulate(np.where(moves, np.arange(len(user)), 0))]


def _choose(market, users, user, leaf, time, key) -> np.ndarray:
    """The item opened in each view, as its place among the items of its leaf: the first proposal that suits.

    Where the user has had the item before, the view looks again among older ones: returns are `_returns`' to make.
    """
    place = np.empty(len(user), dtype=np.int64)
    again = np.arange(len(user))
    for search in range(SEARCHES):
        unsure = again
        for attempt in range(PROPOSALS):
            drawn = _draw("proposal", market.seed, key[unsure], search, attempt)
            place[unsure] = _propose(market, leaf[unsure], time[unsure], drawn, 1 << search)
            look = _look(market, leaf[unsure], place[unsure])
            unsure = unsure[_acceptance(users, user[unsure], look) >> 16 <= _bits(drawn, 3)]
        again = np.flatnonzero(_first(user, _number(leaf, place)) < np.arange(len(user)))
    return place


def _propose(market, leaf, time, drawn, older) -> np.ndarray:
    """An item listed before `time`: an age (times `older`), then a popularity among the items listed just before that.

    Popularity goes round in each leaf, so that every window of consecutive items holds each of its ranks once.
    """
    age = _exponential()[_bits(drawn, 0)] * (market.age[leaf] * older >> 8) >> 8
    newest = (time - age) * market.listed[leaf] // market.span
    size = market.window[leaf]
    rank = _popularity()[np.log2(size).astype(np.int64) - 3, _bits(drawn, 1)]
    return newest - (newest - rank * pow(MIX_RANKS, -1, 256)) % size


@cache
def _popularity() -> np.ndarray:
    """(log2 of the window - 3, 16 bits) -> rank, in proportion to log-normal weights; the last is the most popular."""
    tables = []
    for size in (8, 16, 32, 64, 128, 256):
        weights = [round(1e6 * math.exp(POPULARITY * NormalDist().inv_cdf((r + 0.5) / size))) for r in range(size)]
        tables.append(_inverse(weights))
    return np.stack(tables)


def _returns(market, user, place, item, key) -> np.ndarray:
    """For each view the view whose item it shows: itself, or an earlier one of the same user."""
    drawn = _draw("return", market.seed, key)
    # In a small sample some views return by chance; the rest of the published share is made here.
    already = int((_first(user, item) < np.arange(len(user))).sum())
    bound = max(0, round(RETURNS * len(user)) - already) * 65536 // len(user)
    near = 1 + (_exponential()[_bits(drawn, 1)] * 2 >> 16)
    back = np.where(_bits(drawn, 3) < 32768, near, 1 + _bits(drawn, 2) % 40)
    origin = np.arange(len(place))
    origin = np.where((_bits(drawn, 0) < bound) & (back <= place), origin - back, origin)
    while (origin[origin] != origin).any():
        origin = origin[origin]
    return origin


def _first(group: np.ndarray, item: np.ndarray) -> np.ndarray:
    """For each element, the first one with the same group and item."""
    _, first, inverse = np.unique((group << 40) + item, return_index=True, return_inverse=True)
    return first[inverse]


# ---------------------------------------------------------------- items


@dataclass(frozen=True)
class _Look:
    """What of an item a user sees before opening it."""

    brand: np.ndarray  # -1: none
    style: np.ndarray
    price: np.ndarray  # in SD


def _look(market: _Market, leaf: np.ndarray, place: np.ndarray) -> _Look:
    world = _world()
    drawn = _draw("item", market.seed, leaf, place)
    rank = _fixed_inverse(tuple(10**6 // (r + 1) for r in range(BRANDS_OF_C1)))[_bits(drawn, 0)]
    brand = np.where(_has(market, "brand", leaf, place), world.brand[world.c1[leaf], rank], -1)
    own = _normal()[_bits(drawn, 1)]
    price = (400 * world.leaf_price[leaf] + 350 * np.where(brand < 0, 0, world.brand_price[brand]) + 870 * own) // SD
    return _Look(brand, world.brand_style[brand], price)


def _has(market: _Market, what: str, leaf: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Whether an item has a brand, size ...: spread evenly along each leaf, so that null rates hold in any sample."""
    offset = _draw(what, market.seed, leaf)
    turn = place.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + offset
    return turn >> np.uint64(32) >= np.uint64(round(NULLS[what] * UNIT))


def _acceptance(users: _Users, user: np.ndarray, look: _Look) -> np.ndarray:
    """How likely a user opens an item, of UNIT."""
    misfit = np.abs(look.price - users.price[user]) * 8 // SD
    return _price_fit()[misfit] * np.array(SUITS)[_distance(users, user, look)]


def _distance(users: _Users, user: np.ndarray, look: _Look) -> np.ndarray:
    """0 to 4 steps on the circle of styles; 5 without a brand."""
    turn = (look.style - users.style[user]) % 8
    return np.where(look.brand < 0, 5, np.minimum(turn, 8 - turn))


def _freshness(market: _Market, leaf: np.ndarray, place: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Density of views at this age over its mean while the log runs; 0 before the item was listed."""
    mean, window = market.age[leaf].astype(float), market.window[leaf] * market.span / market.listed[leaf]
    listed = place * market.span / market.listed[leaf]
    # Long after the window the density is exponential, and where it began no longer matters; exp would end in 0 / 0.
    born = np.maximum(listed, -window - 20 * mean)

    def until(age):
        """Integral of the density of (exponential age + uniform window) from 0, times the window."""
        ramp = lambda x: np.where(x > 0, x + mean * np.expm1(-np.maximum(x, 0) / mean), 0)
        return ramp(age) - ramp(age - window)

    hour = DAY / 24
    density = (until(time - born + hour) - until(time - born)) / hour
    mean_density = (until(market.span - born) - until(-born)) / market.span
    return np.where(time >= listed, density / np.maximum(mean_density, 1e-30), 0.0)


# ---------------------------------------------------------------- what follows a view


@dataclass(frozen=True)
class _Chain:
    """The steps that follow first views."""

    happens: np.ndarray  # (steps, views) bool
    probability: np.ndarray  # (steps, views), as seen from the view


def _chain(market: _Market, views: _Views) -> _Chain:
    """Draw the steps after each first view; elsewhere nothing happens and the probability is 0."""
    at = np.flatnonzero(views.first)
    logit = _logits(market, views, at)
    order = np.argsort(_draw("order", market.seed, views.users.number[views.user[at]], at), kind="stable")
    stage = np.zeros(len(at), dtype=np.int64)
    reach = np.zeros((4, len(at)))  # probability that this is the furthest step so far, seen from the view
    reach[0] = 1.0
    happens = np.zeros((len(STEPS), len(views.user)), dtype=bool)
    probability = np.zeros(happens.shape)
    base = 0
    for step, name in enumerate(STEPS):
        bonus = np.array(BONUS[step])
        possible = happens[step - 1, at] if name == "buy_comp" else np.ones(len(at), dtype=bool)
        target = int(len(views.user) * merrec.EVENT_SHARES[name] / merrec.EVENT_SHARES[EVENTS[0]] * UNIT)
        base = _base(logit[step] + bonus[stage], possible, target)
        chance = np.where(possible, _probability(logit[step] + bonus[stage] + base), 0)
        happened = _fire(
            chance, order, int(_draw("fire", market.seed, views.users.number[0], step)[0] >> np.uint64(32))
        )
        given = _probability(logit[step] + bonus[:, None] + base) / UNIT
        happens[step, at] = happened
        if name == "buy_comp":
            probability[step, at] = probability[step - 1, at] * given[0]
        else:
            probability[step, at] = (reach * given).sum(0)
        if step < 3:
            reach *= 1 - given
            reach[step + 1] = probability[step, at]
            stage = np.where(happened, step + 1, stage)
    return _Chain(happens, probability)


def _logits(market: _Market, views: _Views, at: np.ndarray) -> np.ndarray:
    """(steps, len(at)) integer log-odds of each step, before the bonus of earlier steps and the step's base rate."""
    world, users = _world(), views.users
    user, leaf, place = views.user[at], views.leaf[at], views.place[at]
    look, detail = _look(market, leaf, place), _details(market, leaf, place)
    favourite = users.favourite[user] == leaf[:, None]
    size = market.window[leaf]
    causes = {
        "liker": users.liker[user],
        "buyer": users.buyer[user],
        "haggler": users.haggler[user],
        "favourite": SD * (favourite[:, :2].any(1) + favourite.any(1).astype(np.int64)),
        "misfit": np.minimum(np.abs(look.price - users.price[user]), 3 * SD),
        "price": look.price,
        "condition": SD * detail.condition * world.caution[world.c0[leaf]] // 64,
        "seen": SD * views.seen[at],
        "popular": SD * (place * MIX_RANKS % size * 4 // size),
        "position": SD * np.searchsorted([1, 2, 5], views.position[at], side="right"),
        "shipping": SD * (detail.shipper - 1),
    }
    logit = world.leaf_effect[:, leaf] + np.where(look.brand < 0, 0, world.brand_effect[:, look.brand])
    logit += np.array(STYLE_EFFECTS)[:, _distance(users, user, look)]
    for name, cause in causes.items():
        logit += np.array(EFFECTS[name])[:, None] * cause // SD
    return logit


def _base(logit: np.ndarray, possible: np.ndarray, target: int) -> int:
    """The base rate, in LOGIT units, at which the chances of the possible views sum to the target."""
    low, high, logit = -12 * LOGIT, 8 * LOGIT, logit[possible]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _probability(logit + middle).sum() < target else (low, middle)
    return high


def _fire(chance: np.ndarray, order: np.ndarray, start: int) -> np.ndarray:
    """Events with these chances (integers of UNIT) whose number is the sum of the chances, up to 1.

    Systematic sampling over a shuffled line: each element's chance is exact, only the total has no luck in it.
    """
    line = np.cumsum(chance[order]) + start
    happened = np.empty(len(chance), dtype=bool)
    happened[order] = line >> 32 != (line - chance[order]) >> 32
    return happened


# ---------------------------------------------------------------- frames


@dataclass(frozen=True)
class _Details:
    """What else an item has; -1: none."""

    condition: np.ndarray  # 0 (new) to 4
    size: np.ndarray
    color: np.ndarray
    shipper: np.ndarray  # 1: the buyer pays, 2: the seller
    words: np.ndarray  # an index into DETAIL_WORDS


def _details(market: _Market, leaf: np.ndarray, place: np.ndarray) -> _Details:
    drawn = _draw("details", market.seed, leaf, place)
    other = _bits(drawn, 3)
    return _Details(
        condition=_fixed_inverse(CONDITION_SHARES)[_bits(drawn, 0)],
        size=np.where(_has(market, "size", leaf, place), _bits(drawn, 1) % len(SIZES), -1),
        color=np.where(_has(market, "color", leaf, place), _bits(drawn, 2) % len(COLORS), -1),
        shipper=1 + (other & 1),
        words=(other >> 1) % len(DETAIL_WORDS.split()),
    )


def _frames(market: _Market, views: _Views, most: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events of a block in the order (user, time), at most so many, and the truth about their first views."""
    chain = _chain(market, views)
    view, code, time = _rows(market, views, chain)
    view, code, time = view[:most], code[:most], time[:most]
    session = {"user_id": market.user_id(views.users.number)[views.user], "session_id": _session_id(market, views)}
    sequence, sequence_id = _sequences(market, views)
    length = np.bincount(sequence[view], minlength=1)[sequence[view]]
    events = pl.DataFrame({name: values[view] for name, values in session.items()})
    events = events.with_columns(
        pl.Series("session_id", events["session_id"]).cast(pl.String),
        pl.Series("sequence_id", sequence_id[view]).cast(pl.String),
        pl.Series("stime", (time + market.epoch) * 1000).cast(COLUMNS["stime"]),
        _named("event_id", EVENTS, code),
        pl.Series("sequence_length", length),
        *_item_columns(market, views.leaf[view], views.place[view]),
    )
    return events.select(list(COLUMNS)), _truth(market, views, chain, session, view[code == 0])


def _rows(market: _Market, views: _Views, chain: _Chain) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """View, event code and time of each row in the order (user, time); some rows are there twice, as in MerRec."""
    step, followed = np.nonzero(chain.happens)
    delay = 1500 + (
        _draw("delay", market.seed, views.users.number[views.user[followed]], followed, step) % 9000
    ).astype(np.int64)
    # Steps come one after the other: a step's delay counts from the steps of the same view before it.
    waited = np.zeros(chain.happens.shape, dtype=np.int64)
    waited[step, followed] = delay
    waited = np.cumsum(waited, axis=0)[step, followed]
    view = np.concatenate([np.arange(len(views.user)), followed])
    code = np.concatenate([np.zeros(len(views.user), dtype=np.int64), step + 1])
    time = np.minimum(
        views.time[view] + np.concatenate([np.zeros(len(views.user), dtype=np.int64), waited]), market.span - 1
    )
    order = np.argsort((views.user[view] << 36) + (time << 3) + code, kind="stable")
    twice = _bits(_draw("twice", market.seed, views.users.number[views.user[view[order]]], order), 0) < _chance(
        DUPLICATES
    )
    order = np.repeat(order, 1 + twice)
    return view[order], code[order], time[order]


def _session_id(market: _Market, views: _Views) -> np.ndarray:
    """A number that is unique within the user only: in MerRec, eight sessions share an id on average."""
    base = _draw("session id", market.seed, views.users.number) % np.uint64(market.rows // 42 + 1)
    return base.astype(np.int64)[views.user] + views.ordinal


def _sequences(market: _Market, views: _Views) -> tuple[np.ndarray, np.ndarray]:
    """Of each view, the sequence's number in the block and in its user: a sequence is about four sessions."""
    opens = np.flatnonzero(views.position == 0)
    user, ordinal = views.user[opens], views.ordinal[opens]
    cut = _bits(_draw("sequence", market.seed, views.users.number[user], ordinal), 0) < 16384
    number = np.cumsum(cut | (ordinal == 0)) - 1
    within = number - number[np.searchsorted(user, user)]
    return number[views.session], 1 + within[views.session]


def _item_columns(market: _Market, leaf: np.ndarray, place: np.ndarray) -> list[pl.Series | pl.Expr]:
    world, look, detail = _world(), _look(market, leaf, place), _details(market, leaf, place)
    c2 = np.where(_has(market, "c2", leaf, place), leaf, -1)
    c0, c1 = world.c0[leaf], world.c1[leaf]
    style = np.where(look.brand < 0, detail.words % 8, look.style)
    words = [
        _named("brand", world.brand_name, look.brand),
        _named("style", STYLE_WORDS, style),
        _named("noun", [name.lower() for name in world.c2_name], leaf),
        _named("detail", DETAIL_WORDS.split(), detail.words),
        _named("condition", CONDITION_WORDS, detail.condition),
    ]
    return [
        pl.Series("item_id", market.item_id(leaf, place)),
        pl.Series("product_id", _product(market, leaf, place, look)).cast(pl.String),
        pl.DataFrame(words).select(name=pl.concat_str(pl.all(), separator=" ", ignore_nulls=True))["name"],
        pl.Series("price", _dollars(market, leaf, place, look).astype(np.float64)),
        *(pl.Series("c0_id", c0 + 1), _named("c0_name", world.c0_name, c0)),
        *(pl.Series("c1_id", c1 + 101), _named("c1_name", world.c1_name, c1)),
        *(_numbered("c2_id", c2, 1000), _named("c2_name", world.c2_name, c2)),
        *(_numbered("brand_id", look.brand, 1), _named("brand_name", world.brand_name, look.brand)),
        *(
            pl.Series("item_condition_id", detail.condition + 1),
            _named("item_condition_name", CONDITIONS, detail.condition),
        ),
        *(_numbered("size_id", detail.size, 1), _named("size_name", SIZES, detail.size)),
        _named("color", COLORS, detail.color),
        *(pl.Series("shipper_id", detail.shipper), _named("shipper_name", ("Buyer", "Seller"), detail.shipper - 1)),
    ]


def _dollars(market: _Market, leaf: np.ndarray, place: np.ndarray, look: _Look) -> np.ndarray:
    """Whole dollars; half of the prices are rounded to fives or tens, as people do."""
    price = _of_normal(_lognormal(*DOLLARS, 1, 1, 5000), look.price)
    taste = _bits(_draw("price tag", market.seed, leaf, place), 0)
    tag = np.where(taste < 16384, 10, np.where(taste < 32768, 5, 1))
    rounded = (price + tag // 2) // tag * tag
    return np.where(rounded > 0, rounded, price)


def _product(market: _Market, leaf: np.ndarray, place: np.ndarray, look: _Look) -> np.ndarray:
    """A product: listings of one leaf and brand, about 33 of them where there are many."""
    models = np.maximum(1, market.listed[leaf] // 1000)
    model = (_draw("model", market.seed, leaf, place) >> np.uint64(33)).astype(np.int64) % models
    number = (model * (BRANDS + 1) + look.brand + 1) * len(_world().c0) + leaf
    return number * MIX_ITEMS % (1 << 44)


def _truth(market: _Market, views: _Views, chain: _Chain, session: dict, shown: np.ndarray) -> pl.DataFrame:
    kept = np.zeros(len(views.user), dtype=bool)
    kept[shown] = True
    at = np.flatnonzero(kept & views.first)
    frame = pl.DataFrame(
        {name: values[at] for name, values in session.items()}
        | {"item_id": market.item_id(views.leaf[at], views.place[at])}
        | {f"p_{name}": chain.probability[step, at].astype(np.float32) for step, name in enumerate(STEPS)}
    )
    return frame.with_columns(pl.col("session_id").cast(pl.String))


def _named(column: str, names: Sequence[str], index: np.ndarray) -> pl.Series:
    """names[index] as strings; null where the index is -1."""
    return pl.Series(column, [*names, None]).gather(np.where(index < 0, len(names), index).astype(np.uint32))


def _numbered(column: str, index: np.ndarray, first: int) -> pl.Series:
    """index + first; null where the index is -1."""
    return pl.Series(column, index + first).set(pl.Series(index < 0), None)


def _write(frame: pl.DataFrame, path: Path) -> None:
    frame.write_parquet(path, compression="zstd", compression_level=3, statistics=True, row_group_size=ROW_GROUP)
