"""Equation 10 against the authors' values and against direct formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvctl.training.deep_supervision import at_scales
from rwkvctl.training.losses import segmentation_loss

GOLDENS = np.load(Path(__file__).parents[2] / "goldens" / "training.npz", allow_pickle=False)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(11)
    logits = torch.from_numpy(rng.standard_normal((2, 9, 16, 16)).astype(np.float32))
    return logits, torch.from_numpy(rng.integers(0, 8, (2, 16, 16)))


@pytest.mark.parametrize(("name", "alpha", "beta"), [("ce", 1.0, 0.0), ("dice", 0.0, 1.0)])
def test_terms_equal_the_authors(batch: tuple[torch.Tensor, torch.Tensor], name: str, alpha: float, beta: float):
    loss = segmentation_loss(*batch, alpha=alpha, beta=beta)
    assert loss.item() == pytest.approx(float(GOLDENS[f"loss/{name}"]), rel=1e-6)


def test_gradient_equals_the_authors(batch: tuple[torch.Tensor, torch.Tensor]):
    logits = batch[0].requires_grad_()
    segmentation_loss(logits, batch[1], alpha=0.5, beta=0.5).backward()
    assert logits.grad is not None
    assert logits.grad.norm().item() == pytest.approx(float(GOLDENS["loss/gradnorm"]), rel=1e-6)
    np.testing.assert_allclose(logits.grad.flatten()[:64], GOLDENS["loss/grad_first64"], rtol=1e-4, atol=1e-9)


def test_acdc_equals_the_authors():
    logits = torch.from_numpy(np.random.default_rng(12).standard_normal((2, 4, 16, 16)).astype(np.float32))
    target = torch.from_numpy(np.random.default_rng(13).integers(0, 4, (2, 16, 16)))
    loss = segmentation_loss(logits, target, alpha=0.2, beta=0.8, ignore_index=4)
    assert loss.item() == pytest.approx(float(GOLDENS["loss/acdc"]), rel=1e-6)


def dice_loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """1 - DSC with squared terms, of one class over the whole batch."""
    overlap, total = (probabilities * truth).sum(), (probabilities**2).sum() + (truth**2).sum()
    return 1 - (2 * overlap + 1e-5) / (total + 1e-5)


def test_one_logit_is_binary_cross_entropy_and_the_dice_of_the_foreground():
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((3, 1, 8, 8)), rng.integers(0, 2, (3, 8, 8))
    p, y = 1 / (1 + np.exp(-logits[:, 0])), target.astype(float)
    expected = 0.3 * -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean() + 0.7 * dice_loss(p, y)
    loss = segmentation_loss(torch.from_numpy(logits), torch.from_numpy(target), alpha=0.3, beta=0.7)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_ignored_pixels_count_in_no_term_and_get_no_gradient(channels: int):
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.standard_normal((2, channels, 8, 8))).float().requires_grad_()
    target = torch.from_numpy(rng.integers(0, max(2, channels), (2, 8, 8)).astype(np.uint8))
    target[:, :3] = 255
    loss = segmentation_loss(logits, target, alpha=0.5, beta=1.0)
    kept = segmentation_loss(logits[:, :, 3:], target[:, 3:], alpha=0.5, beta=1.0, ignore_index=None)
    assert loss.item() == pytest.approx(kept.item(), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, :3].any()
    assert logits.grad[:, :, 3:].all()


def test_nothing_but_ignored_pixels_is_no_nan():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), 255), alpha=1.0, beta=1.0)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_bfloat16_logits_are_reduced_in_float32(batch: tuple[torch.Tensor, torch.Tensor]):
    loss = segmentation_loss(batch[0].bfloat16(), batch[1], alpha=0.5, beta=0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(segmentation_loss(*batch, alpha=0.5, beta=0.5).item(), rel=5e-3)


@pytest.mark.parametrize("classes", [1, 3])
def test_volumes_have_the_loss_of_their_slices_beside_each_other(classes: int):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 4, 6, 5, generator=rng)
    target = torch.randint(0, max(2, classes), (2, 4, 6, 5), generator=rng)
    target[0, 1] = 255
    flat = segmentation_loss(logits.flatten(2, 3), target.flatten(1, 2), alpha=0.5, beta=1)
    torch.testing.assert_close(segmentation_loss(logits, target, alpha=0.5, beta=1), flat)


def test_every_scale_has_the_mask_at_its_size_and_half_the_weight_of_the_one_above():
    target = torch.zeros(1, 4, 8, 8, dtype=torch.uint8)
    target[0, 2:, :4, 4:] = 2
    maps = [torch.zeros(1, 3, *size) for size in ((4, 8, 8), (4, 4, 4), (2, 2, 2))]
    found = at_scales(maps, target)
    assert [share for _, _, share in found] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert [tuple(mask.shape[1:]) for _, mask, _ in found] == [(4, 8, 8), (4, 4, 4), (2, 2, 2)]
    assert found[2][1].dtype == torch.uint8
    assert found[2][1][0, 1].tolist() == [[0, 2], [0, 0]]
