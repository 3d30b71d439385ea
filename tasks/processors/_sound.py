"""Sound as a model reads it: log filter banks, normalised, with bands and times blanked out.

Source: filter banks as in Kaldi (Povey et al., 2011), its defaults without dither; blanks: SpecAugment, Park et al.,
2019, arXiv:1904.08779.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["augmented", "count_frames", "fbank", "mel", "normalised"]

WINDOW, SHIFT = 0.025, 0.010  # seconds
BANDS, LOWEST, EMPHASIS = 80, 20.0, 0.97  # bands, hertz, of the sample before
FLOOR = float(torch.finfo(torch.float32).eps)


def count_frames(samples: np.ndarray, rate: int) -> np.ndarray:
    """Whole windows in so many samples."""
    return np.maximum(0, 1 + (samples - round(WINDOW * rate)) // round(SHIFT * rate))


def fbank(wave: Tensor, rate: int) -> Tensor:
    """Log energies of 80 bands on the mel scale.

    Args:
        wave: (samples,) float on the scale of 16-bit numbers.
        rate: samples a second.

    Returns:
        (F, 80) float32, natural logarithm; 25 ms windows every 10 ms.
    """
    size, shift = round(WINDOW * rate), round(SHIFT * rate)
    frames = wave.to(torch.float32).unfold(0, size, shift)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - EMPHASIS * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    power = torch.fft.rfft(frames * _window(size), n=_points(size)).abs().square()
    return (power @ _filters(rate, size)).clamp_min(FLOOR).log()


def normalised(frames: Tensor) -> Tensor:
    """Each band with mean 0 and variance 1 over the recording (CMVN)."""
    spread = frames.std(0, correction=0, keepdim=True).clamp_min(1e-5)  # a silent band stays zero
    return (frames - frames.mean(0, keepdim=True)) / spread


def augmented(
    frames: np.ndarray, bands: int, band_masks: int, times: int, time_masks: int, rng: np.random.Generator
) -> np.ndarray:
    """Normalised frames (F, 80) with blanks of 0..bands bands and 0..times frames, set to the mean, which is 0."""
    frames = frames.copy()
    for axis, widest, masks in ((1, bands, band_masks), (0, times, time_masks)):
        for _ in range(masks):
            width = min(int(rng.integers(widest + 1)), frames.shape[axis])
            start = int(rng.integers(frames.shape[axis] - width + 1))
            frames[(slice(None),) * axis + (slice(start, start + width),)] = 0
    return frames


def mel(hertz: Tensor) -> Tensor:
    """Pitch as it is heard.

    >>> mel(torch.tensor([700.0]))
    tensor([781.1769])
    """
    return 1127 * torch.log1p(hertz / 700)


@cache
def _window(size: int) -> Tensor:
    return torch.hann_window(size, periodic=False) ** 0.85


def _points(size: int) -> int:
    return 1 << (size - 1).bit_length()


@cache
def _filters(rate: int, size: int) -> Tensor:
    """Triangles on the mel scale: (points / 2 + 1, 80)."""
    points = _points(size)
    at = mel(torch.arange(points // 2 + 1, dtype=torch.float64) * rate / points)[:, None]
    low, high = mel(torch.tensor([LOWEST, rate / 2], dtype=torch.float64))
    step = (high - low) / (BANDS + 1)
    left = low + step * torch.arange(BANDS, dtype=torch.float64)
    return torch.minimum((at - left) / step, (left + 2 * step - at) / step).clamp_min(0).float()
