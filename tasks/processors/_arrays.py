"""Images, sounds, codes and labels as plain arrays in a split's folder, mapped into memory.

images.npy   (N, H, W, 3) uint8     codes.npy    (N, P) int, one code a patch
labels.npy   (N,) int               audio.npy    (samples,) int16 or float, all sounds on end
manifest.json {"sample_rate": 16000}  offsets.npy  (N + 1,) int64 into audio
"""

from pathlib import Path

import numpy as np

from tasks.files import read_json

__all__ = ["Arrays"]


class Arrays:
    """The arrays of one split's folder, by name."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def whole(self, name: str, count: int | None = None) -> np.ndarray:
        """An array of whole numbers, one entry an example.

        Raises:
            ValueError: it is missing, empty, no array of whole numbers, or has not `count` entries.
        """
        array = self._open(name)
        if array.dtype.kind not in "iu":
            raise ValueError(f"{self._path(name)} holds {array.dtype}; it must hold whole numbers")
        return self._counted(name, array, count)

    def images(self, count: int | None = None) -> np.ndarray:
        """The images: (N, H, W, 3) uint8.

        Raises:
            ValueError: it is missing, empty, of another shape or type, or has not `count` images.
        """
        array = self._open("images")
        if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
            raise ValueError(
                f"{self._path('images')} is {array.dtype} {array.shape}; images are uint8 (number, height, width, 3)"
            )
        return self._counted("images", array, count)

    def sounds(self, count: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
        """All samples on end, offsets (N + 1,) of the sounds, and samples a second.

        Raises:
            ValueError: something is missing, or the offsets do not lie in the samples.
        """
        audio, offsets = self._open("audio"), self._open("offsets")
        if offsets[0] != 0 or offsets[-1] != len(audio) or (np.diff(offsets) < 0).any():
            raise ValueError(
                f"{self._path('offsets')} runs from {offsets[0]} to {offsets[-1]} over {len(audio)} samples; it must "
                "rise from 0 to their number"
            )
        if count is not None and len(offsets) - 1 != count:
            raise ValueError(f"{self.folder} has {len(offsets) - 1} sounds and {count} texts; they belong together")
        rate = read_json(self.folder / "manifest.json").get("sample_rate")
        if not isinstance(rate, int) or rate <= 0:
            raise ValueError(f"{self.folder / 'manifest.json'} has sample_rate {rate!r}; it must be samples a second")
        return audio, offsets, rate

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _open(self, name: str) -> np.ndarray:
        if not self._path(name).is_file():
            raise FileNotFoundError(f"{self._path(name)} does not exist; this processor reads it")
        array = np.load(self._path(name), mmap_mode="r", allow_pickle=False)
        if not len(array):
            raise ValueError(f"{self._path(name)} is empty")
        return array

    def _counted(self, name: str, array: np.ndarray, count: int | None) -> np.ndarray:
        if count is not None and len(array) != count:
            raise ValueError(f"{self._path(name)} has {len(array)} entries for {count} examples; they belong together")
        return array
