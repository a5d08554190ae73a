from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.augment import ClassificationAugment, SegmentationAugment
from rwkvctl.data.feed import transforms
from rwkvctl.data.images import colour
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.reader import Photo

SQUARES = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((16, 16))).astype(np.uint8)
NOTHING = {"horizontal_flip": 0, "vertical_flip": 0, "rotate90": 0, "affine": 0, "brightness_contrast": 0}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rgb(height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(pixels: np.ndarray) -> Photo:
    return Photo(image_files.encode_png(pixels))


def smooth(height: int, width: int) -> np.ndarray:
    """An image in which neighbouring pixels are alike, as in a photo."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    "geometry", ["horizontal_flip", "vertical_flip", "rotate90", "affine", "rotation", "scaling", "elastic"]
)
def test_image_and_mask_move_together(geometry):
    """The image is a function of the mask, so it has to be one afterwards."""
    augment = SegmentationAugment(**{**NOTHING, geometry: 1.0})
    image = np.repeat(SQUARES[..., None] * 200, 3, -1)
    moved_away = 0
    for seed in range(10):
        moved, mask = transforms.segmentation_train((64, 64), augment)(image, SQUARES, generator(seed))
        moved_away += not np.array_equal(mask.numpy(), SQUARES)
        away = (moved[0].numpy() > 100) != (mask.numpy() == 1)
        assert away.mean() < (1e-9 if geometry in ("horizontal_flip", "vertical_flip", "rotate90") else 0.06)
        assert set(mask.unique().tolist()) <= {0, 1}
    assert moved_away >= 5


def test_types_and_shapes():
    augment = SegmentationAugment(affine=1, brightness_contrast=1)
    for image, kind in ((rgb(50, 70), torch.uint8), (rgb(50, 70)[..., 0].astype(np.float32) / 255, torch.float32)):
        mask = np.zeros((50, 70), np.uint8)
        for size in ((64, 64), (32, 48)):
            moved, ids = transforms.segmentation_train(size, augment)(image, mask, generator())
            assert type(moved) is torch.Tensor
            assert moved.dtype == kind
            assert moved.shape == (3 if image.ndim == 3 else 1, *size)
            assert (ids.dtype, ids.shape) == (torch.uint8, size)
            assert moved.permute(1, 2, 0).is_contiguous()
            assert moved.max() <= (255 if kind == torch.uint8 else 1)


def test_no_augmentation_at_native_size_changes_nothing():
    image = rgb()
    moved, mask = transforms.segmentation_train((64, 64), None)(image, SQUARES, generator())
    np.testing.assert_array_equal(moved.numpy(), image.transpose(2, 0, 1))
    np.testing.assert_array_equal(mask.numpy(), SQUARES)


def test_resized_mask_is_in_register_with_the_image():
    """A disc's centre of mass stays at the same share of the side, for image and mask alike."""
    y, x = np.mgrid[:90, :90]
    disc = (np.hypot(y - 30, x - 50) < 20).astype(np.uint8)
    for size in ((32, 32), (64, 64), (224, 224)):
        mask = transforms.resize_mask(disc, size)
        image = transforms.resize_image(disc.astype(np.float32), size)
        centres = [(np.array(np.nonzero(a > 0.5)).mean(1) + 0.5) / size[0] for a in (mask, image)]
        np.testing.assert_allclose(centres[0], centres[1], atol=0.004)
        np.testing.assert_allclose(centres[0], [30.5 / 90, 50.5 / 90], atol=0.006)


@pytest.mark.parametrize("augment", [{}, {"rand_augment": None}, {"rand_augment": None, "color_jitter": 0}], ids=str)
@pytest.mark.parametrize("side", [32, 300])
def test_classification_is_a_function_of_its_generator(augment, side):
    transform = transforms.classification_train((64, 64), ClassificationAugment(**augment))
    image = photo(rgb(side, side + 8))
    first = transform(image, generator(3))
    assert (first.shape, first.dtype) == ((3, 64, 64), torch.uint8)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    assert torch.equal(transform(image, generator(3)), first)
    assert not torch.equal(transform(image, generator(4)), first)


@pytest.mark.parametrize("shape", [(1500, 2000), (1501, 2003), (300, 400)])
def test_a_photo_is_decoded_no_larger_than_its_crop_needs(shape, monkeypatch):
    """The pixels are those of cutting the whole photo, as far as two ways of shrinking agree."""
    jpeg = simplejpeg.encode_jpeg(smooth(*shape), quality=95)
    augment = ClassificationAugment(rand_augment=None, color_jitter=0)
    transform = transforms.classification_train((64, 64), augment)
    decoded = []
    whole = image_files.decode_rgb
    for seed in range(12):
        monkeypatch.setattr(
            image_files, "decode_rgb", lambda data, least: decoded.append(whole(data, least)) or decoded[-1]
        )
        reduced = transform(Photo(jpeg), generator(seed))
        monkeypatch.setattr(image_files, "decode_rgb", lambda data, least: whole(data))
        full = transform(Photo(jpeg), generator(seed))
        assert (reduced.int() - full.int()).abs().float().mean() < 3
        assert min(decoded[-1].shape[:2]) >= 64
    assert max(image.shape[0] for image in decoded) <= shape[0]
    assert min(image.shape[0] for image in decoded) <= shape[0] / 2


def test_a_jpeg_at_a_fraction_of_its_size():
    """Not below the size that is asked for, and a PNG as it is."""
    jpeg = simplejpeg.encode_jpeg(smooth(400, 600), quality=95)
    assert image_files.decode_rgb(jpeg, (40, 70)).shape == (50, 75, 3)
    assert image_files.decode_rgb(jpeg, (200, 300)).shape == (200, 300, 3)
    assert image_files.decode_rgb(jpeg, (201, 10)).shape == (400, 600, 3)
    assert image_files.decode_rgb(jpeg, (1000, 1000)).shape == image_files.decode_rgb(jpeg).shape == (400, 600, 3)
    assert image_files.decode_rgb(image_files.encode_png(rgb(64, 64)), (8, 8)).shape == (64, 64, 3)


def test_a_broken_photo_says_whose_it_is():
    def blame(error: ValueError) -> UserError:
        return UserError(f"x.tar: k.jpg: {error}")

    for data in (b"", b"\xff\xd8\xff", image_files.encode_png(rgb())[:20]):
        for look in (lambda data: Photo(data, blame).size, lambda data: Photo(data, blame).pixels()):
            with pytest.raises(UserError, match=r"x\.tar: k\.jpg: "):
                look(data)


def test_global_generators_are_left_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    transforms.classification_train((64, 64), ClassificationAugment())(photo(rgb()), generator())
    transforms.segmentation_train((64, 64), SegmentationAugment(affine=1))(rgb(), SQUARES, generator())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10-n6-inc1", "rand-m5"])
def test_every_step_of_rand_augment_runs(policy):
    transform = transforms.classification_train((32, 32), ClassificationAugment(rand_augment=policy))
    for seed in range(60):
        assert transform(photo(rgb(32, 32)), generator(seed)).shape == (3, 32, 32)


def test_eval_is_the_imagenet_convention():
    """Against torchvision's Resize(256, bicubic) and CenterCrop(224) on a Pillow image."""
    from PIL import Image
    from torchvision.transforms import v2

    image = rgb(300, 400)
    ours = transforms.classification_eval((224, 224))(photo(image), generator())
    steps = v2.Compose([v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    theirs = v2.functional.pil_to_tensor(steps(Image.fromarray(image)))
    assert (ours.int() - theirs.int()).abs().max() <= 1
    for height, width in ((32, 32), (500, 20), (20, 500), (224, 224)):
        assert transforms.classification_eval((64, 64))(photo(rgb(height, width)), generator()).shape == (3, 64, 64)


def test_crop_boxes_are_as_large_as_asked():
    augment = ClassificationAugment(crop_scale=(0.25, 0.5))
    for seed in range(200):
        top, left, height, width = transforms._crop_box(100, 140, augment, generator(seed))
        assert 0 <= top <= top + height <= 100
        assert 0 <= left <= left + width <= 140
        assert 0.24 <= height * width / 14000 <= 0.51
        assert 0.72 <= width / height <= 1.38
    assert transforms._crop_box(10, 1000, ClassificationAugment(crop_scale=(1, 1)), generator()) == (0, 493, 10, 13)


def test_colour_steps_are_torchvisions():
    from torchvision.transforms.v2 import functional as reference

    image = colour.to_float(rgb())
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    pairs = [
        (colour.brightness, reference.adjust_brightness),
        (colour.contrast, reference.adjust_contrast),
        (colour.saturation, reference.adjust_saturation),
    ]
    for ours, theirs in pairs:
        for factor in (0.0, 0.6, 1.0, 1.4):
            expected = theirs(tensor, factor).numpy().transpose(1, 2, 0)
            np.testing.assert_allclose(ours(image, factor), expected, atol=1e-6)
    np.testing.assert_array_equal(colour.to_uint8(colour.to_float(rgb())), rgb())
