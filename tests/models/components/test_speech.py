"""Speech: a number by hand, the convolutions of transformers, padding that nobody hears."""

import pytest
import torch
from torch import nn
from transformers import Speech2TextConfig
from transformers.models.speech_to_text.modeling_speech_to_text import Conv1dSubsampler

from models import build


def part(width: int = 4, **settings) -> nn.Module:
    torch.manual_seed(0)
    return build("components.embedding", "speech", width, **settings)


def frames(count: int, length: int, features: int = 80) -> torch.Tensor:
    return torch.randn(count, length, features, generator=torch.Generator().manual_seed(1))


def hear(speech: nn.Module, **batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = speech.rows(batch)
    return speech(batch, rows), rows.mask


def test_one_layer_by_hand():
    # width 1, so GLU halves two channels: the sum of three frames times sigmoid(0) = 1/2; windows at frames 0, 2, 4
    speech = part(1, features=1, kernels=[3])
    with torch.no_grad():
        speech.layers[0].weight.copy_(torch.tensor([1.0, 1, 1, 0, 0, 0]).view(2, 1, 3))
        speech.layers[0].bias.zero_()
    x, mask = hear(speech, frames=torch.tensor([1.0, 2, 3, 4, 5]).view(1, 5, 1))
    assert x.flatten().tolist() == [1.5, 4.5, 4.5]
    assert mask.tolist() == [[True] * 3]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9])
def test_unpadded_speech_is_that_of_transformers(length):
    theirs = Conv1dSubsampler(Speech2TextConfig(d_model=6, conv_channels=8))
    speech = part(6, channels=8)
    for ours, other in zip(speech.layers, theirs.conv_layers, strict=True):
        ours.load_state_dict(other.state_dict())
    x, mask = hear(speech, frames=frames(2, length))
    torch.testing.assert_close(x, theirs(frames(2, length)) * 6**0.5)
    assert mask.shape == (2, -(-length // 4)) and mask.all()


def test_padding_is_not_heard():
    speech = part(channels=8)
    sound, length = frames(3, 21), torch.tensor([21, 10, 3])
    there = torch.arange(21) < length[:, None]
    x, mask = hear(speech, frames=sound, frame_mask=there)
    assert mask.sum(1).tolist() == [6, 3, 1]  # a quarter, rounded up
    noisy = sound.where(there[..., None], 1e4)
    assert torch.equal(hear(speech, frames=noisy, frame_mask=there)[0][mask], x[mask])
    for row, (frames_there, places) in enumerate(zip(length, mask.sum(1), strict=True)):
        alone = hear(speech, frames=sound[row : row + 1, :frames_there])[0]
        torch.testing.assert_close(x[row : row + 1, :places], alone)


def test_scale_is_a_factor():
    plain, scaled = part(4, scale=False), part(4)
    torch.testing.assert_close(hear(plain, frames=frames(1, 8))[0] * 2, hear(scaled, frames=frames(1, 8))[0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="odd kernels"):
        part(kernels=[4])
    with pytest.raises(ValueError, match="even number of channels"):
        part(channels=7)
    with pytest.raises(ValueError, match="79 features"):
        hear(part(), frames=frames(1, 8, 79))
