"""Files that can run code when read: their endings, and the error of whoever finds one."""

from tasks.bundled import PICKLES

__all__ = ["PICKLES", "PoisonedFolder"]


class PoisonedFolder(ValueError):
    """An artefact folder holds a file that can run code when read."""
