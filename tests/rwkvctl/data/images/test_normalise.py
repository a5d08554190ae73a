"""Rules of normalisation: their numbers, nnU-Net's own, and what is refused."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvctl.data.images import intensity, normalise
from rwkvctl.data.images.normalise import NormalSlices, Rule

RNG = np.random.default_rng(3)


def brain(channels: int = 2) -> list[np.ndarray]:
    """Channels whose tissue lies in air of 0, with a hole of 0 in its middle."""
    tissue = np.zeros((6, 20, 24), bool)
    tissue[1:5, 4:17, 5:20] = True
    found = [np.where(tissue, RNG.normal(400 * (n + 1), 60, tissue.shape), 0).round() for n in range(channels)]
    for own in found:
        own[2:4, 9:11, 9:12] = 0
    return found


def test_a_range_gives_the_bits_that_it_always_gave():
    values = RNG.normal(0, 500, (4, 30, 30)).astype(np.float32)
    low, high = intensity.window(values, "p0.5", "p99.5")
    image, rule = normalise.stacked([values], [Rule(clip=("p0.5", "p99.5"))])
    np.testing.assert_array_equal(image, intensity.scaled(values, low, high))
    assert rule == intensity.rule(low, high)


def test_channels_come_last_and_each_has_its_own_rule():
    first, second = brain()
    rules = [Rule(clip=(0, 800)), Rule(normalise.TO_DEVIATIONS, over="nonzero")]
    image, rule = normalise.stacked([first, second], rules)
    assert (image.shape, image.dtype) == ((6, 20, 24, 2), np.float32)
    np.testing.assert_allclose(image[..., 0], np.clip(first, 0, 800) / 800, rtol=1e-6)
    inside = np.zeros(first.shape, bool)
    inside[1:5, 4:17, 5:20] = True  # the hole is filled
    mean, deviation = second[inside].mean(), second[inside].std()
    np.testing.assert_allclose(image[..., 1][inside], (second[inside] - mean) / deviation, atol=1e-5)
    assert not image[..., 1][~inside].any()
    assert rule["channels"][1]["mean"] == pytest.approx(mean)
    assert normalise.rules_of({"channels": [own.as_fields() for own in rules]}) == rules


def test_the_box_is_around_what_is_not_zero_in_some_channel():
    first, second = brain()
    first[0, 0, 0] = 1
    image, _ = normalise.stacked([first, second], [normalise.nnunet_rule("T1")] * 2)
    own = first[0:5, 0:17, 0:20]
    np.testing.assert_allclose(image[..., 0], (first - own.mean()) / own.std(), rtol=1e-4, atol=1e-6)


@given(st.integers(1, 3), st.sampled_from(["box", "nonzero", "all"]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_slices_are_those_of_the_whole_volume(channels: int, over, stored: bool):
    volume = [own.astype(np.int16 if stored else np.float64) for own in brain(channels)]
    rules = [Rule(normalise.TO_DEVIATIONS, over=over), Rule(clip=("min", "p99")), Rule("x")][:channels]
    image, _ = normalise.stacked(volume, rules)
    slices = NormalSlices(volume, normalise.settled(rules, volume), [np.asarray] * channels)
    assert (slices.shape, slices.ndim, len(slices)) == (image.shape, image.ndim, 6)
    for z in range(6):
        np.testing.assert_array_equal(slices[z], image[z])
    np.testing.assert_array_equal(slices[1:3], image[1:3])


@pytest.mark.parametrize(("values", "rule", "line"), [
    (np.full((2, 4, 4), 7), Rule(normalise.TO_DEVIATIONS), r"has no contrast \(all voxels 7\)"),
    (np.full((2, 4, 4), 7), Rule(clip=("min", "p99")), "has no contrast"),
    (np.full((2, 4, 4), np.nan), Rule(normalise.TO_DEVIATIONS), "not finite"),
    (np.full((2, 4, 4), np.inf), Rule("x"), "not finite"),
])  # fmt: skip
def test_what_has_no_contrast_or_is_not_finite_is_refused(values, rule, line):
    with pytest.raises(ValueError, match=line):
        normalise.stacked([values], [rule])


def test_names_choose_the_scheme():
    assert normalise.nnunet_rule("noNorm") == Rule("x")
    assert normalise.nnunet_rule("RGB_to_0_1").clip == (0, 255)
    assert normalise.nnunet_rule("FLAIR") == normalise.nnunet_rule("zscore")
    assert normalise.nnunet_rule("ct").mean is None


@pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnU-Net is not installed")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["T1", "CT", "noNorm", "rescale_to_0_1", "rgb_to_0_1"])
def test_numbers_are_those_of_nnunet(name: str, masked: bool):
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    values = [own / 4 for own in brain()]
    properties = {"mean": 90.0, "std": 31.0, "percentile_00_5": 20.0, "percentile_99_5": 150.0}
    rule = normalise.nnunet_rule(name, over="nonzero" if masked else "box")
    if name == "CT":
        rule = Rule(normalise.TO_DEVIATIONS, (20.0, 150.0), 90.0, 31.0)
    ours, _ = normalise.stacked(values, [rule, Rule("x")])
    data, seg, box = crop_to_nonzero(np.stack(values).astype(np.float32))
    theirs = get_normalization_scheme(name)(masked, properties).run(data[0], seg[0])
    np.testing.assert_allclose(ours[..., 0][tuple(slice(*side) for side in box)], theirs, atol=1e-5)
