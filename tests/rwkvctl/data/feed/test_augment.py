"""Segmentation augmentation beyond the paper's: image and mask in register, values in range, equal for equal seeds."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from rwkvctl.config.specs.augment import PRESETS, SegmentationAugment
from rwkvctl.data.feed import appearance, order, transforms
from rwkvctl.data.feed.transforms import segmentation_train

NOTHING = {"horizontal_flip": 0, "vertical_flip": 0, "rotate90": 0, "affine": 0, "brightness_contrast": 0}
SIZE = (64, 64)
COLOURS = ("saturation", "hue")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def smooth(height: int = 80, width: int = 96, channels: int = 3) -> np.ndarray:
    small = generator().integers(20, 236, (6, 8, channels), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def kinds() -> dict[str, np.ndarray]:
    photo = smooth()
    return {"rgb8": photo, "float": photo[..., 0].astype(np.float32) / 255}


def blobs(height: int = 80, width: int = 96) -> np.ndarray:
    """Three classes and a region that is ignored."""
    y, x = np.mgrid[:height, :width]
    mask = ((y // 20 + x // 24) % 3).astype(np.uint8)
    mask[30:60, 30:60] = 255
    return mask


def only(**fields) -> SegmentationAugment:
    return SegmentationAugment(**{**NOTHING, **fields})


def as_it_was(image: np.ndarray, mask: np.ndarray, augment: SegmentationAugment, rng: np.random.Generator):
    """The paper's augmentation before there were presets, on images of the right size."""
    pair = (
        tv_tensors.Image(transforms.to_tensor(transforms.brightness_contrast(image, augment, rng))),
        tv_tensors.Mask(torch.from_numpy(mask)),
    )
    if rng.random() < augment.horizontal_flip:
        pair = [functional.horizontal_flip(x) for x in pair]
    if rng.random() < augment.vertical_flip:
        pair = [functional.vertical_flip(x) for x in pair]
    if rng.random() < augment.rotate90:
        quarters = int(rng.integers(1, 4))
        pair = [tv_tensors.wrap(torch.rot90(x, quarters, (-2, -1)), like=x) for x in pair]
    if rng.random() < augment.affine:
        angle, scale = float(rng.uniform(-augment.degrees, augment.degrees)), float(rng.uniform(*augment.scale))
        options = {"translate": [0, 0], "scale": scale, "shear": [0, 0], "interpolation": InterpolationMode.BILINEAR}
        pair = [functional.affine(x, angle, **options) for x in pair]
    return pair


@pytest.mark.parametrize("kind", ["rgb8", "float"])
def test_the_paper_preset_gives_the_same_pixels_as_before_there_were_presets(kind: str):
    image, mask = transforms.resize_image(kinds()[kind], SIZE), transforms.resize_mask(blobs(), SIZE)
    for augment in (SegmentationAugment(), SegmentationAugment(affine=1, brightness_contrast=1)):
        for index in range(25):
            rngs = [order.sample_generator(41, 3, index) for _ in range(2)]
            moved, ids = segmentation_train(SIZE, augment)(image, mask, rngs[0])
            before, ids_before = as_it_was(image, mask, augment, rngs[1])
            assert torch.equal(moved, before)
            assert torch.equal(ids, ids_before)
            assert rngs[0].random() == rngs[1].random(), "as many numbers are drawn"


@pytest.mark.parametrize("kind", ["rgb8", "float"])
@pytest.mark.parametrize("preset", PRESETS)
def test_geometry_keeps_image_and_mask_in_register(preset: str, kind: str):
    """The image is a function of the mask, so it has to be one afterwards, but for interpolated borders."""
    augment = SegmentationAugment(preset=preset, brightness_contrast=0, **dict.fromkeys(appearance.STEPS, 0))
    mask = np.kron(generator(1).integers(0, 2, (4, 4)), np.ones((24, 24))).astype(np.uint8)
    image = np.repeat(mask[..., None] * np.uint8(200), 3, -1) if kind == "rgb8" else mask.astype(np.float32)
    for seed in range(30):
        moved, ids = segmentation_train((96, 96), augment)(image, mask, generator(seed))
        away = (moved[0].numpy() > 0.5 * image.max()) != (ids.numpy() == 1)
        assert away.mean() < 0.06
        assert set(ids.unique().tolist()) <= {0, 1}


def test_a_deformation_is_smooth_as_far_as_drawn_and_never_folds():
    augment = only(elastic=1, elastic_shift=(0.04, 0.04))
    for seed, size in enumerate([(64, 64), (224, 224), (96, 160)]):
        shifts = transforms.smooth_shifts(size, augment, generator(seed))[0].numpy() * np.array(size[::-1]) / 2
        assert np.hypot(shifts[..., 0], shifts[..., 1]).max() == pytest.approx(0.04 * min(size), rel=1e-5)
        (x_y, x_x), (y_y, y_x) = (np.gradient(shifts[..., axis]) for axis in (0, 1))
        assert ((1 + x_x) * (1 + y_y) - x_y * y_x).min() > 0.1


@pytest.mark.parametrize("field", ["rotation", "scaling", "elastic", "affine"])
def test_masks_keep_their_ids_and_what_is_ignored_stays_so(field: str):
    """Where the moved image shows what was ignored, the mask ignores it; what comes in from outside is background."""
    mask = blobs(64, 64)
    image = np.where(mask == 255, np.float32(1), np.float32(0))
    changed = 0
    for seed in range(10):
        moved, ids = segmentation_train(SIZE, only(**{field: 1}))(image, mask, generator(seed))
        assert set(ids.unique().tolist()) <= {0, 1, 2, 255}
        ignored = ids.numpy() == 255
        assert (ignored != (moved[0].numpy() > 0.5)).mean() < 0.02
        changed += not np.array_equal(ids.numpy(), mask)
    assert changed >= 8


@pytest.mark.parametrize("kind", ["rgb8", "float"])
@pytest.mark.parametrize("field", appearance.STEPS)
def test_appearance_changes_the_image_alone_and_stays_in_range(field: str, kind: str):
    image, mask = kinds()[kind], blobs()
    plain, ids = segmentation_train(SIZE, only())(image, mask, generator())
    for seed in range(5):
        rng = generator(seed)
        moved, same_ids = segmentation_train(SIZE, only(**{field: 1}))(image, mask, rng)
        assert torch.equal(same_ids, ids)
        assert (moved.dtype, moved.shape) == (plain.dtype, plain.shape)
        assert moved.min() >= 0
        assert moved.max() <= (255 if kind == "rgb8" else 1)
        assert moved.isfinite().all()
        if field in COLOURS and kind == "float":
            assert torch.equal(moved, plain), "a grey image has no colours to change"
        else:
            assert not torch.equal(moved, plain)
            assert torch.corrcoef(torch.stack([moved.float().flatten(), plain.float().flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("field", [*appearance.STEPS, "elastic", "rotation"])
def test_images_of_one_value_pass_every_step(field: str, value: int):
    for image in (np.full((16, 16, 3), value, np.uint8), np.full((16, 16), value / 255, np.float32)):
        moved, _ = segmentation_train((16, 16), only(**{field: 1}))(image, np.zeros((16, 16), np.uint8), generator())
        assert moved.isfinite().all()
        if field in appearance.STEPS:
            assert (moved.float() - moved.float().mean()).abs().max() <= (0.01 if field != "brightness_only" else 1)


def test_a_step_that_is_off_draws_nothing():
    image = torch.from_numpy(smooth()).permute(2, 0, 1)
    rng, untouched = generator(), generator()
    assert appearance.change_appearance(image, SegmentationAugment(), rng) is image
    assert rng.random() == untouched.random()


@pytest.mark.parametrize("preset", ["nnunet", "photo"])
def test_pixels_are_a_function_of_seed_epoch_and_sample(preset: str):
    """And no global generator is asked, nor do threads matter."""
    transform = segmentation_train(SIZE, SegmentationAugment(preset=preset))
    image, mask = kinds()["rgb8"], blobs()
    first = [transform(image, mask, order.sample_generator(1, 0, index)) for index in range(30)]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    for index, (moved, ids) in enumerate(first):
        again, same_ids = transform(image, mask, order.sample_generator(1, 0, index))
        assert torch.equal(again, moved)
        assert torch.equal(same_ids, ids)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    other = [transform(image, mask, order.sample_generator(1, 1, index))[0] for index in range(30)]
    assert sum(torch.equal(a, b) for a, (b, _) in zip(other, first, strict=True)) < 5


def pixels() -> torch.Tensor:
    return torch.from_numpy(kinds()["float"]).clone()[None] * 0.4 + 0.3


def test_noise_has_the_deviation_that_is_drawn_in_units_of_the_images_own():
    image, augment = torch.rand(1, 300, 300), only(noise_deviation=(0.1, 0.1))
    noisy = appearance.noise(image, augment, generator())
    assert float((noisy - image).std()) == pytest.approx(0.1 * float(image.std()), rel=0.02)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_a_gaussian(sigma: float):
    image = torch.rand(3, 40, 50)
    ours = appearance.blur(image, only(blur_sigma=(sigma, sigma)), generator())
    expected = scipy.ndimage.gaussian_filter(image.numpy(), (0, sigma, sigma), mode="mirror")
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-3)


def test_blur_of_a_sigma_wider_than_the_image():
    assert appearance.blur(torch.rand(1, 16, 16), only(blur_sigma=(50, 50)), generator()).std() < 0.02


@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_is_nnunets(exponent: float):
    """Its formula, in numpy, with its `retain_stats`."""
    image, augment = pixels(), only(exponent=(exponent, exponent))
    x = image.numpy().astype(np.float64)
    low, extent = x.min(), np.ptp(x)
    bent = ((x - low) / extent) ** exponent * extent + low
    expected = (bent - bent.mean()) / bent.std() * x.std() + x.mean()
    np.testing.assert_allclose(appearance.gamma(image, augment, generator()).numpy(), expected, atol=1e-5)
    inverted = 1 - appearance.gamma(1 - image, augment, generator())
    torch.testing.assert_close(appearance.gamma_inverted(image, augment, generator()), inverted)
    for bent_image in (expected, inverted.numpy()):
        assert (bent_image.mean(), bent_image.std()) == pytest.approx((x.mean(), x.std()), abs=1e-5)


def test_low_resolution_has_as_many_values_as_the_small_image():
    image = torch.rand(1, 64, 64)
    coarse = appearance.low_resolution(image, only(zoom=(0.25, 0.25)), generator())[0].numpy()
    small = coarse[2::4, 2::4][:15, :15], coarse[1::4, 1::4][:15, :15]
    assert coarse.shape == (64, 64)
    assert np.abs(small[0] - small[1]).mean() < 0.2 * image.std(), "neighbours come from the same few pixels"
    known = cv2.resize(image[0].numpy()[2::4, 2::4], (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(coarse, known, atol=1e-5)


def test_hue_goes_round_the_circle():
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 8, 8)
    augment = only(hue_shift=0.5)
    seen = torch.stack([appearance.hue(red, augment, generator(seed))[:, 0, 0] for seed in range(40)])
    assert (seen.max(1).values == 1).all()
    assert (seen.min(1).values == 0).all()
    assert seen.argmax(1).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(("ends", "below"), [((0.7, 1.5), 0.5), ((0.75, 1.25), 0.5), ((1.0, 2.0), 0), ((0.5, 0.9), 1)])
def test_factors_are_as_often_below_one_as_above(ends: tuple[float, float], below: float):
    rng = generator()
    drawn = np.array([appearance.around_one(ends, rng) for _ in range(2000)])
    assert ends[0] <= drawn.min() < drawn.max() <= ends[1]
    assert (drawn < 1).mean() == pytest.approx(below, abs=0.05)


def test_steps_are_taken_as_often_as_their_probability_says():
    image, mask = np.full((16, 16), 0.4, np.float32), np.zeros((16, 16), np.uint8)
    transform = segmentation_train((16, 16), only(brightness_only=0.15, brightness_factor=(0.5, 0.5)))
    rng = generator()
    darker = [float(transform(image, mask, rng)[0].mean()) < 0.3 for _ in range(1000)]
    assert np.mean(darker) == pytest.approx(0.15, abs=0.04)
