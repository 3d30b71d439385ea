"""Speech to text: filter banks of a recording in, its words out.

    frames (F, 80)     target_ids </s> y1 .. ym     labels_lm y1 .. ym </s>

Each recording is normalised by itself, and in training up to 2 x 27 bands and 2 x 100 frames of it are blanked out. One
that is too short, too long, or whose text is empty or longer than the row is left out and counted.

Source: Wang et al., 2020, arXiv:2010.05171, section 3; blanks: the LD policy of Park et al., 2019, arXiv:1904.08779.
"""

import numpy as np
import torch

from tasks.processors._arrays import Arrays
from tasks.processors._given import Given, special
from tasks.processors._sound import augmented, count_frames, fbank, normalised
from tasks.processors._target import target
from tasks.processors._text import Text

__all__ = ["S2T"]


class S2T:
    """Rows with frames, target_ids and labels_lm.

    Args:
        given: its folder has a stream `text`, audio.npy and offsets.npy, one recording a document.
        frames: of the longest recording, 100 a second.
        bands, band_masks: widest blank and number of blanks over bands.
        times, time_masks: widest blank, in frames, and number of blanks over time.

    Raises:
        ValueError: no recording is usable.
    """

    def __init__(
        self,
        given: Given,
        frames: int = 3000,
        bands: int = 27,
        band_masks: int = 2,
        times: int = 100,
        time_masks: int = 2,
    ):
        self.text, self.last = Text(given.folder / "text"), special(given.vocabulary, "end")
        self.audio, self.offsets, self.rate = Arrays(given.folder).sounds(len(self.text))
        lengths, words = count_frames(np.diff(self.offsets), self.rate), self.text.lengths
        fits = (lengths > 0) & (lengths <= frames) & (words > 0) & (words < given.length)
        self.usable = np.flatnonzero(fits)
        if not len(self):
            raise ValueError(
                f"{given.folder}: none of {len(fits)} recordings has 1..{frames} frames and a text of "
                f"1..{given.length - 1} tokens"
            )
        self.blanks = None if given.heldout else (bands, band_masks, times, time_masks)
        self.report = {"rows": len(self), "recordings_left_out": int((~fits).sum())}

    def __len__(self) -> int:
        return len(self.usable)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        sound = int(self.usable[place])
        wave = np.array(self.audio[self.offsets[sound] : self.offsets[sound + 1]])
        scale = 1.0 if wave.dtype.kind == "i" else 2.0**15
        frames = normalised(fbank(torch.from_numpy(wave.astype(np.float32)) * scale, self.rate)).numpy()
        if self.blanks:
            frames = augmented(frames, *self.blanks, rng)
        return {"frames": frames} | target(self.text.tokens(sound), self.last, self.last)
