"""Put the previous champion back, at once and without any stage: `python -m tasks.rollback recommend-offer_make`."""

from tasks import promote, promote_language, track
from tasks.command import run

__all__ = ["NothingToRollBack", "rollback"]


class NothingToRollBack(ValueError):
    """The champion has no predecessor."""


def rollback(name: str, to: int | None = None) -> tuple[int, int]:
    """Make the predecessor of the champion, or version `to`, the champion; it is loaded and replayed before.

    Running it again changes nothing: a champion that came by a rollback stays, until a promotion or an explicit `to`.

    Returns:
        the version that was the champion, the version that is it now.

    Raises:
        NothingToRollBack: there is no champion, or none before it.
        RegistryError: no such version.
        ReplayFailed: the version to go back to does not answer as it did when it was registered.
    """
    now = track.by_alias(name, "champion")
    if now is None:
        raise NothingToRollBack(f"{name} has no champion at {track.shown()}")
    if to is None and now.tags.get("champion_by") == "rollback":
        return int(now.tags["rolled_back_from"]), now.number
    if to is None and not now.tags.get("previous_champion"):
        raise NothingToRollBack(f"{name} version {now.number} is the first champion; name a version: "
                                f"python -m tasks.rollback {name} VERSION")  # fmt: skip
    target = track.by_number(name, to or int(now.tags["previous_champion"]))
    if target.number == now.number:
        return now.number, now.number
    (promote_language if name.startswith(("language-", "distill-")) else promote).replay(target)
    # Tags first: a death in between leaves the old champion with a note, and the next run repeats the whole step.
    track.set_tags(now, rolled_back="true")
    track.set_tags(target, champion_by="rollback", rolled_back_from=now.number, rolled_back="false")
    track.set_alias(target, "champion")
    return now.number, target.number


def main(name: str, to: str | None = None) -> None:
    """python -m tasks.rollback NAME [VERSION]"""
    if to is not None and not to.isdigit():
        raise ValueError(f"a version is a number, got {to!r}")
    before, after = rollback(name, int(to) if to else None)
    print(f"{name}: champion is version {after}, was {before}; models:/{name}@champion serves it")


if __name__ == "__main__":
    run(main)
