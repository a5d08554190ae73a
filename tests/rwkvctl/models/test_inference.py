"""Masks come back at native resolution, in register with the image, the same for a slice and its volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rwkv_unet import create_model
from rwkvctl.base.errors import UserError
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.feed.transforms import resize_image
from rwkvctl.models.inference import best_class, segment_image, segment_volume
from rwkvctl.models.memory import Memory


class Threshold(nn.Module):
    """Says class 1 where the mean of the channels is above a level: its right answer is known."""

    def __init__(self, level: float, classes: int = 2):
        super().__init__()
        self.level, self.classes = level, classes
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(x.shape))
        above = x.mean(dim=1, keepdim=True) - self.level
        return above if self.classes == 1 else torch.cat([-above, above], dim=1)


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((y - height * 0.4) / height) ** 2 + ((x - width * 0.6) / width) ** 2 < 0.06


def dsc(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero((a > 0) & (b > 0)) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("shape", [(64, 64), (200, 150), (333, 500), (40, 50)])
@pytest.mark.parametrize("classes", [1, 2])
def test_mask_lies_where_the_object_is(shape: tuple[int, int], classes: int) -> None:
    truth = disc(*shape)
    model = Threshold(0.0, classes).eval()
    rgb = np.repeat(np.where(truth, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    mask = segment_image(model, rgb, image_size=(64, 96), image_kind="rgb8")
    assert mask.dtype == np.uint8
    assert mask.shape == shape
    assert model.sizes == [(1, 3, 64, 96)]
    assert dsc(mask, truth) > 0.97
    grey = np.where(truth, 1, -1).astype(np.float32)
    assert dsc(segment_image(model, grey, image_size=64, image_kind="float"), truth) > 0.97
    assert model.sizes[-1] == (1, 1, 64, 64)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_volume_is_its_slices(batch: int) -> None:
    volume = np.random.default_rng(0).normal(size=(7, 50, 60)).astype(np.float32)
    model = Threshold(0.1).eval()
    whole = segment_volume(model, volume, image_size=32, memory=Memory(batch))
    single = [segment_image(model, one, image_size=32, image_kind="float") for one in volume]
    assert whole.shape == volume.shape
    assert np.array_equal(whole, np.stack(single))


def test_same_numbers_reach_the_model_as_in_training() -> None:
    """Validation in the training loop and prediction later must agree to the pixel."""
    torch.manual_seed(0)
    model = create_model("rwkv_unet_t", num_classes=3).eval()
    image = np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8)
    x = torch.from_numpy(np.ascontiguousarray(resize_image(image, (64, 64)).transpose(2, 0, 1)))[None]
    with torch.inference_mode():
        logits = model(to_input(x, "cpu"))
        expected = nn.functional.interpolate(logits, (70, 90), mode="bilinear").argmax(1)[0].numpy()
    assert np.array_equal(segment_image(model, image, image_size=64, image_kind="rgb8"), expected)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((8, 8), np.uint8), "rgb8"),
        (np.zeros((8, 8, 4), np.uint8), "rgb8"),
        (np.zeros((8, 8, 3), np.float32), "rgb8"),
        (np.zeros((0, 8, 3), np.uint8), "rgb8"),
        (np.zeros((8, 8), np.float64), "float"),
        (np.zeros((8, 8, 3), np.float32), "float"),
        (np.full((8, 8), np.nan, np.float32), "float"),
    ],
)
def test_wrong_images_are_named(image: np.ndarray, kind) -> None:
    with pytest.raises(UserError, match=r"image (is|holds)"):
        segment_image(Threshold(0).eval(), image, image_size=16, image_kind=kind)


def test_model_in_training_mode_is_refused() -> None:
    with pytest.raises(AssertionError, match="eval"):
        segment_image(Threshold(0).train(), np.zeros((8, 8), np.float32), image_size=16, image_kind="float")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    torch.manual_seed(0)
    model = create_model("rwkv_unet_t", num_classes=2).eval()
    image = np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8)
    cpu = segment_image(model, image, image_size=64, image_kind="rgb8")
    model.cuda()
    for bf16, least in ((False, 0.999), (True, 0.95)):
        cuda = segment_image(model, image, image_size=64, image_kind="rgb8", device="cuda", bf16=bf16)
        assert (cuda == cpu).mean() >= least


def test_of_equal_logits_the_first_class_is_taken():
    logits = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (2, 5, 33, 70)).astype(np.float32))
    np.testing.assert_array_equal(best_class(logits).numpy(), logits.numpy().argmax(axis=1))
