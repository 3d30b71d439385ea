"""Image and speech processors: pixels and filter banks by hand, blocks, wrong images, blanks."""

import json

import numpy as np
import pytest
import torch
from _corpus import BOS, CLS, EOS, MASK, SEP, SIZE, documents, draw, flat, given, made, stream

from tasks.processors import build
from tasks.processors._images import CLIP_MEAN, CLIP_STD, Pixels, part
from tasks.processors._sound import augmented, count_frames, fbank, normalised
from tasks.processors.beit import blocks

COUNT, EDGE = 12, 16


def images(folder, count: int = COUNT, edge: int = EDGE, codes: int = 64):
    """Images of one grey each (10 times their number), labels, codes (their number) and texts."""
    shades = (np.arange(count) * 10).astype(np.uint8)
    stream(folder / "train" / "text", documents(count, sentences=2))
    np.save(folder / "train" / "images.npy", np.tile(shades[:, None, None, None], (1, edge, edge, 3)))
    np.save(folder / "train" / "labels.npy", np.arange(count))
    np.save(folder / "train" / "codes.npy", np.tile(np.arange(count)[:, None], (1, codes)))
    return folder


def number(pixels: np.ndarray, mean: float = 0.5, std: float = 0.5) -> int:
    """Which image these pixels are."""
    assert np.ptp(pixels, axis=(1, 2)).max() < 1e-6
    return round(float(pixels[0, 0, 0] * std + mean) * 255 / 10)


# ---- pixels


def test_pixels_by_hand():
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, 1:3] = 255, 51, 0
    # Still: the middle square, (x / 255 - 0.5) / 0.5 = 1, -0.6, -1.
    pixels = Pixels(None, still=True)(image, np.random.default_rng(0))
    assert pixels.shape == (3, 2, 2) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[:, 0, 0], [1, -0.6, -1], atol=1e-6)
    assert np.ptp(pixels, axis=(1, 2)).max() == 0
    # Halved: each pixel of the smaller image is a mean of the larger one's.
    ramp = np.repeat(np.array([0, 0, 255, 255], np.uint8), 12).reshape(4, 4, 3)
    small = Pixels(2, mean=(0, 0, 0), std=(1, 1, 1), still=True)(ramp, np.random.default_rng(0))
    assert small.shape == (3, 2, 2)
    assert 0 <= small[0, 0, 0] < 0.2 and 0.8 < small[0, 1, 0] <= 1


def test_a_random_part_is_really_cut_out():
    image = np.arange(64 * 64 * 3).reshape(64, 64, 3)
    areas = []
    for seed in range(200):
        cut = part(image, 0.05, np.random.default_rng(seed))
        top, left = divmod(int(cut[0, 0, 0]) // 3, 64)
        assert (cut == image[top : top + cut.shape[0], left : left + cut.shape[1]]).all()
        areas.append(cut.shape[0] * cut.shape[1] / 64**2)
        assert 0.7 < cut.shape[1] / cut.shape[0] < 1.45
    assert min(areas) > 0.04 and max(areas) < 1
    assert abs(np.mean(areas) - 0.5) < 0.06
    assert part(image, 1.0, np.random.default_rng(0)).shape == (64, 64, 3)  # no such part but the whole


def test_half_of_the_images_are_mirrored_and_none_when_still():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 0] = 255
    sides = [Pixels(None, flip=True)(image, np.random.default_rng(seed))[0, 0, 0] > 0 for seed in range(400)]
    assert abs(np.mean(sides) - 0.5) < 0.1
    still = Pixels(None, flip=True, crop=0.1, still=True)
    assert all(still(image, np.random.default_rng(seed))[0, 0, 0] > 0 for seed in range(20))
    with pytest.raises(ValueError, match="crop in"):
        Pixels(None, crop=0.0)


def test_vit_rows(tmp_path):
    place = given(images(tmp_path))
    rows = list(draw(build("vit", place, size=8)))
    assert [row["labels_cls"] for row in rows] == [number(row["pixels"]) for row in rows] == list(range(COUNT))
    assert rows[0]["pixels"].shape == (3, 8, 8)


# ---- images and texts


def test_vilt_shows_half_of_the_texts_a_wrong_image(tmp_path):
    vilt = made("vilt", images(tmp_path), {"patch": 8})
    wrong, asked = [], []
    for epoch in range(20):
        for place in range(COUNT):
            row = vilt.row(place, np.random.default_rng([epoch, place]))
            assert (number(row["pixels"]) != place) == row["labels_sp"]
            assert len(row["labels_mlm"]) == len(row["ids"]) + 1 + 4  # the class vector and 2 x 2 patches
            assert (row["labels_mlm"][len(row["ids"]) :] == -100).all()
            assert row["ids"][0] == CLS and row["ids"][-1] == SEP
            wrong.append(row["labels_sp"])
            asked.append((row["labels_mlm"] != -100).any())
            # A mask must not betray the match: wrong rows have words hidden too.
    assert abs(np.mean(wrong) - 0.5) < 0.13
    assert asked == [not label for label in wrong]
    hidden = {row["labels_sp"] for row in draw(vilt, 10) if (row["ids"] == MASK).any()}
    assert hidden == {0, 1}


def test_vilt_refuses_what_cannot_be_wrong_or_cut(tmp_path):
    with pytest.raises(ValueError, match="patches of 5 pixels do not divide images of 16"):
        made("vilt", images(tmp_path), {"patch": 5})
    with pytest.raises(ValueError, match="has one image"):
        made("vilt", images(tmp_path / "one", 1), {"patch": 8})
    stream(tmp_path / "train" / "text", [*documents(COUNT - 1), [[]]])
    with pytest.raises(ValueError, match="1 of 12 images have an empty text"):
        made("vilt", tmp_path, {"patch": 8})


def test_clip_rows_are_a_text_and_its_image(tmp_path):
    clip = made("clip", images(tmp_path), length=8)
    texts = [flat(text) for text in documents(COUNT, sentences=2)]
    for place, row in enumerate(draw(clip)):
        assert row["first_ids"].tolist() == [BOS, *texts[place][:6], EOS]
        assert number(row["second_pixels"], CLIP_MEAN[0], CLIP_STD[0]) == place
    assert clip.report["texts_cut"] == sum(len(text) > 6 for text in texts) > 0


def test_beit_asks_for_the_codes_of_hidden_patches(tmp_path):
    beit = made("beit", images(tmp_path, codes=196))
    for place, row in enumerate(draw(beit)):
        hidden = row["masked_patches"]
        assert row["labels_mlm"].tolist() == [-100, *np.where(hidden, place, -100).tolist()]
        assert 78 <= hidden.sum() <= 2 * 78
        assert number(row["pixels"]) == place
    random = made("beit", tmp_path, {"masking": "random", "share": 0.15})
    assert {int(row["masked_patches"].sum()) for row in draw(random)} == {29}
    with pytest.raises(ValueError, match="must be square"):
        made("beit", images(tmp_path / "oblong", codes=12))
    with pytest.raises(ValueError, match="got 'stripes'"):
        made("beit", tmp_path, {"masking": "stripes"})


def test_hidden_blocks_are_blocks():
    rng = np.random.default_rng(0)
    shares, neighbours = [], []
    for _ in range(300):
        hidden = blocks(14, 78, rng).reshape(14, 14)
        shares.append(hidden.mean())
        neighbours.append((hidden[:, 1:] & hidden[:, :-1]).sum() / hidden[:, 1:].sum())
    assert 0.4 <= np.mean(shares) < 0.5
    assert np.mean(neighbours) > 0.75  # of patches hidden at random, 0.4 would have a hidden neighbour
    assert 1 <= blocks(2, 1, rng).sum() <= 2 and blocks(4, 6, rng).sum() >= 6  # grids smaller than the smallest block


def test_dalle_by_hand(tmp_path):
    stream(tmp_path / "train" / "text", [[[100, 101]], [[102, 103, 104]]])
    np.save(tmp_path / "train" / "codes.npy", np.array([[3, 1], [0, 2]]))
    dalle = made("dalle", tmp_path, {"codes": 8}, length=7)
    first, second = draw(dalle)
    assert first["ids"].tolist() == [BOS, 100, 101, EOS, SIZE + 3, SIZE + 1, EOS]
    assert first["prefix"].tolist() == [True] * 4 + [False] * 3
    assert first["segments"].tolist() == [0] * 4 + [1] * 3
    assert first["labels_lm"].tolist() == [-100] * 3 + [SIZE + 3, SIZE + 1, EOS, -100]
    assert second["ids"].tolist() == [BOS, 102, 103, EOS, SIZE, SIZE + 2, EOS]
    assert dalle.report == {"rows": 2, "texts_cut": 1, "vocabulary": SIZE + 8}
    (row, _) = draw(made("dalle", tmp_path, {"backward": 1.0}, length=7))
    assert row["ids"].tolist() == [BOS, SIZE + 3, SIZE + 1, EOS, 100, 101, EOS]
    with pytest.raises(ValueError, match="codes run from 0 to 3, but there are 3"):
        made("dalle", tmp_path, {"codes": 3}, length=7)
    with pytest.raises(ValueError, match="a row of 5 has no room"):
        made("dalle", tmp_path, length=5)


# ---- speech


def test_filter_banks_equal_those_of_transformers():
    from transformers import Speech2TextFeatureExtractor

    rng = np.random.default_rng(0)
    seconds = np.arange(16000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * 440 * seconds) + 0.05 * rng.standard_normal(16000)
    theirs = Speech2TextFeatureExtractor(do_ceptral_normalize=False)([wave.astype(np.float32)], sampling_rate=16000)
    ours = fbank(torch.from_numpy(wave).float() * 2**15, 16000)
    assert ours.shape == (98, 80) == (count_frames(np.array([16000]), 16000)[0], 80)
    np.testing.assert_allclose(ours.numpy(), theirs["input_features"][0], atol=2e-3)


def test_a_tone_is_loudest_in_its_band():
    seconds = torch.arange(16000) / 16000
    bank = fbank(torch.sin(2 * torch.pi * 1000 * seconds) * 2**14, 16000)
    # mel(1000) = 1000 by definition, nearly; bands lie every (mel(8000) - mel(20)) / 81 = 34.7 from mel(20) = 31.7 on.
    assert bank.mean(0).argmax().item() in (26, 27)


def test_cmvn_by_hand():
    frames = normalised(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert frames.tolist() == [[-1, 0], [1, 0]]  # a silent band stays zero


def test_blanks_are_at_most_as_wide_and_at_zero():
    frames = np.ones((200, 80), np.float32)
    for seed in range(30):
        out = augmented(frames, 27, 2, 100, 2, np.random.default_rng(seed))
        bands, times = (out == 0).all(0), (out == 0).all(1)
        assert bands.sum() <= 54 and times.sum() <= 200
        assert ((out == 0) == (bands[None] | times[:, None])).all()
    assert (frames == 1).all()
    assert augmented(frames[:1], 27, 2, 100, 2, np.random.default_rng(0)).shape == (1, 80)  # shorter than a blank


def sounds(folder, lengths=(16000, 8000, 300, 16000), rate: object = 16000):
    stream(folder / "train" / "text", [[[100, 101]], [[102]], [[103]], [[]]])
    audio = np.random.default_rng(0).integers(-3000, 3000, sum(lengths)).astype(np.int16)
    np.save(folder / "train" / "audio.npy", audio)
    np.save(folder / "train" / "offsets.npy", np.cumsum([0, *lengths]))
    (folder / "train" / "manifest.json").write_text(json.dumps({"sample_rate": rate}))
    return folder


def test_s2t_rows(tmp_path):
    # The third recording is shorter than a window, the fourth has no text.
    s2t = made("s2t", sounds(tmp_path), {"bands": 0, "times": 0})
    first, second = draw(s2t)
    assert first["frames"].shape == (98, 80) and second["frames"].shape == (48, 80)
    assert abs(first["frames"].mean()) < 1e-5 and abs(first["frames"].std() - 1) < 1e-3
    assert first["target_ids"].tolist() == [EOS, 100, 101] and first["labels_lm"].tolist() == [100, 101, EOS]
    assert s2t.report == {"rows": 2, "recordings_left_out": 2}
    assert not (first["frames"] == 0).any()
    blanked = made("s2t", tmp_path).row(0, np.random.default_rng(1))
    assert (blanked["frames"] == 0).any()
    heldout = build("s2t", given(tmp_path, heldout=True)).row(0, np.random.default_rng(1))
    np.testing.assert_array_equal(heldout["frames"], first["frames"])


def test_broken_sounds_and_images_are_refused(tmp_path):
    sounds(tmp_path, rate="fast")
    with pytest.raises(ValueError, match="sample_rate 'fast'"):
        made("s2t", tmp_path)
    np.save(tmp_path / "train" / "offsets.npy", np.array([0, 5, 4, 9, 12]))
    with pytest.raises(ValueError, match="must rise from 0"):
        made("s2t", tmp_path)
    with pytest.raises(ValueError, match="none of 4 recordings has 1..10 frames"):
        made("s2t", sounds(tmp_path), {"frames": 10})
    np.save(tmp_path / "train" / "images.npy", np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"images are uint8 \(number, height, width, 3\)"):
        made("vit", tmp_path)
    with pytest.raises(FileNotFoundError, match="codes.npy does not exist"):
        made("dalle", tmp_path)
