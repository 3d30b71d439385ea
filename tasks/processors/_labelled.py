"""Labelled texts and pairs of texts: [CLS] A [SEP], or [CLS] A [SEP] B [SEP], and a class."""

import numpy as np

from tasks.processors._arrays import Arrays
from tasks.processors._given import Given, special
from tasks.processors._text import aligned

__all__ = ["Labelled"]


class Labelled:
    """The texts of a split with their classes; what is longer than the row loses its end, the longer side first.

    Args:
        given: its folder has a stream `text`, perhaps a stream `second`, and labels.npy, one entry a document.
    """

    def __init__(self, given: Given):
        self.cls, self.sep = special(given.vocabulary, "cls", "bos"), special(given.vocabulary, "sep", "eos")
        streams = ["text", "second"] if (given.folder / "second").is_dir() else ["text"]
        self.streams = aligned(given.folder, *streams)
        self.label = Arrays(given.folder).whole("labels", len(self.streams[0]))
        self.room = given.length - 1 - len(streams)
        if self.room < len(streams):
            raise ValueError(f"a row of {given.length} has no room for {len(streams)} texts beside special tokens")
        cut = int((sum(stream.lengths for stream in self.streams) > self.room).sum())
        self.report = {"rows": len(self), "texts_cut": cut}

    def __len__(self) -> int:
        return len(self.label)

    def fields(self, place: int) -> dict:
        """ids, segments and which token starts a word."""
        sizes = [int(stream.lengths[place]) for stream in self.streams]
        if len(sizes) == 2 and sum(sizes) > self.room:
            shorter = min(min(sizes), self.room // 2)
            sizes = [self.room - shorter, shorter] if sizes[0] > sizes[1] else [shorter, self.room - shorter]
        ids, starts, segments = [[self.cls]], [[True]], [0]
        for number, (stream, size) in enumerate(zip(self.streams, sizes, strict=True)):
            size = min(size, self.room)
            ids += [stream.tokens(place, 0, size), [self.sep]]
            starts += [stream.starts(place, 0, size), [True]]
            segments += [number] * (size + 1)
        ids, starts = np.concatenate(ids).astype(np.int64), np.concatenate(starts).astype(bool)
        return {"ids": ids, "segments": np.array(segments, np.int64), "starts": starts}
