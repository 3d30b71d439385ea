"""Who is trained on and who is asked: by product, by clusters of like titles, and with whole categories held out.

Titles are like where the Jaccard similarity of their four-letter pieces reaches a bound; candidates are found by
MinHash (Broder, 1997; datasketch) and compared exactly, and likeness is carried on from one to the next.
"""

from collections.abc import Mapping, Sequence

from tasks.authoring._catalogue import Product, place

__all__ = ["ROWS", "clusters", "split_of", "split_products"]

ROWS = ("train", "dev", "test", "zero_task", "zero_category")
PIECE, PERMUTATIONS = 4, 64


def clusters(titles: Sequence[str], similar: float) -> list[int]:
    """The number of each title's cluster: the place of its first title.

    >>> clusters(["red leather bag", "Red leather bag!", "blue tent"], 0.8)
    [0, 0, 2]
    """
    from datasketch import MinHash, MinHashLSH

    pieces = [_pieces(title) for title in titles]
    parent = list(range(len(titles)))
    first: dict[frozenset, int] = {}
    for number, one in enumerate(pieces):  # equal titles need no search
        parent[number] = first.setdefault(one, number)
    index = MinHashLSH(threshold=similar * 0.9, num_perm=PERMUTATIONS)  # a little lower: what it misses is lost
    for one, number in first.items():
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([piece.encode() for piece in sorted(one)])
        for other in sorted(index.query(sketch)):
            if len(one & pieces[other]) >= similar * len(one | pieces[other]):
                low, high = sorted((_root(parent, number), _root(parent, other)))
                parent[high] = low
        index.insert(number, sketch)
    return [_root(parent, number) for number in range(len(titles))]


def split_products(
    products: Sequence[Product], similar: float, shares: Mapping[str, int], categories: int, seed: int
) -> tuple[dict[str, str], dict[str, int]]:
    """Product -> split, and product -> cluster; a cluster lies in one split.

    Args:
        similar: titles from which likeness on are one cluster.
        shares: percent of the clusters in dev and in test.
        categories: top categories that are held out whole, with every cluster that touches them.
        seed: chooses both.
    """
    number = dict(zip((one.id for one in products), clusters([one.title for one in products], similar), strict=True))
    tops = sorted({one.category[0] for one in products}, key=lambda top: (place(1 << 60, seed, "top", top), top))
    held = {number[one.id] for one in products if one.category[0] in tops[:categories]}
    names = {one.id: "zero_category" if (own := number[one.id]) in held else split_of(f"cluster {own}", shares, seed)
             for one in products}  # fmt: skip
    return names, number


def split_of(group: str, shares: Mapping[str, int], seed: int) -> str:
    """train, dev or test by a hash of the group."""
    drawn = place(100, seed, "split", group)
    return "test" if drawn < shares["test"] else "dev" if drawn < shares["test"] + shares["dev"] else "train"


def _pieces(title: str) -> frozenset[str]:
    plain = " ".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())
    return frozenset(plain[start : start + PIECE] for start in range(max(1, len(plain) - PIECE + 1)))


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number
