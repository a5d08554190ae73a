"""Comparing models, their receptive fields, accuracy against MACs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rwkvctl.base.errors import UserError
from rwkvctl.pictures import figures
from rwkvctl.reports import erf
from rwkvctl.reports.compare import Setting, compare


@pytest.mark.slow
def test_compare_measures_every_model_in_its_own_process():
    setting = Setting(size=32, num_classes=1, batch=1, device="cpu", seconds=0)
    small, smaller = compare(["rwkv_unet_t", "rwkv_unet_t,ccm=false"], setting)
    assert (small.parameters, small.model) == (3_145_761, "rwkv_unet_t")
    assert smaller.macs_paper < small.macs_paper
    for row in (small, smaller):
        assert min(row.inference_images_per_second, row.train_images_per_second, row.inference_peak_bytes) > 0
        assert row.train_peak_bytes > row.inference_peak_bytes


def test_compare_refuses_before_it_measures():
    setting = Setting(size=32, num_classes=1, batch=1, device="cpu", seconds=0)
    with pytest.raises(UserError, match="unknown model 'rwkv_unet_tt'; did you mean rwkv_unet_t"):
        list(compare(["rwkv_unet_t", "rwkv_unet_tt"], setting))
    with pytest.raises(UserError, match="model rwkv_unet_t,ccm_hiden=1: ccm_hiden: unknown field"):
        list(compare(["rwkv_unet_t,ccm_hiden=1"], setting))


class Box(nn.Module):
    """A mean over 3 x 3 pixels: a receptive field that is known."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x.abs(), 3, stride=1, padding=1)


def test_the_field_of_a_mean_is_its_window():
    found = erf.receptive_field(Box(), torch.randn(4, 3, 33, 33))
    window = np.zeros((33, 33))
    window[15:18, 15:18] = 1
    np.testing.assert_allclose(found.field, window)
    assert found.sides[0.99] == pytest.approx(2 / 33)
    with pytest.raises(UserError, match="is 0 for every image"):
        erf.receptive_field(Box(), torch.zeros(1, 3, 33, 33))


def test_figures_are_written_whole(tmp_path):
    field = erf.receptive_field(Box(), torch.randn(1, 3, 33, 33))
    erf.draw({"a": field, "b": field}, tmp_path / "erf.png")
    points = [figures.Point("a", 0.8, 10**9, 10**6), figures.Point("b", 0.9, 10**10, 10**7)]
    figures.accuracy_against_macs(points, "phantom", tmp_path / "plot.png")
    for name in ("erf.png", "plot.png"):
        with Image.open(tmp_path / name) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    with pytest.raises(UserError, match=r"x.bmp: a figure ends in .png, .svg, .pdf"):
        figures.accuracy_against_macs(points, "phantom", tmp_path / "x.bmp")
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder.png: cannot be written \(Is a directory\); give another path"):
        figures.accuracy_against_macs(points, "phantom", tmp_path / "folder.png")
    assert len(list(tmp_path.iterdir())) == 3
