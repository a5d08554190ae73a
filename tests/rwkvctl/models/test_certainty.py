"""How sure a model is of a mask: the predicted Dice of true probabilities is the Dice that they have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkvctl.models.certainty import Certainty, probabilities_of
from rwkvctl.models.sureness import Sureness, ranks, spearman, together


def blob(sharpness: float, side: int = 80) -> torch.Tensor:
    """Probabilities (1, 2, H, W) of a disc whose border is blurred."""
    rows, columns = np.ogrid[:side, :side]
    distance = np.hypot(rows - side / 2, columns - side / 2)
    foreground = torch.from_numpy(1 / (1 + np.exp((distance - 20) / sharpness))).float()
    return torch.stack([1 - foreground, foreground])[None]


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 8.0])
def test_the_predicted_dsc_is_the_mean_of_truths_drawn_with_these_probabilities(sharpness: float):
    probabilities = blob(sharpness)
    mask = probabilities.argmax(1).to(torch.uint8)
    certainty = Certainty()
    certainty.see(probabilities, mask)
    rng, foreground = np.random.default_rng(0), probabilities[0, 1].numpy()
    dscs = []
    for _ in range(30):
        truth = rng.random(foreground.shape) < foreground
        dscs.append(2 * np.count_nonzero(truth & (mask[0].numpy() > 0)) / (truth.sum() + int(mask.sum())))
    [predicted] = certainty.result().predicted_dsc
    assert predicted == pytest.approx(np.mean(dscs), abs=0.01)


def test_slices_add_up_and_a_blurred_border_has_more_entropy():
    sharp, blurred = blob(0.5), blob(5.0)
    both, one = Certainty(), Certainty()
    for each in (sharp, blurred):
        both.see(each, each.argmax(1).to(torch.uint8))
    stacked = torch.cat([sharp, blurred])
    one.see(stacked, stacked.argmax(1).to(torch.uint8))
    assert torch.allclose(both.sums, one.sums)  # type: ignore[arg-type]
    assert both.result().entropy == pytest.approx(one.result().entropy)
    found = []
    for each in (sharp, blurred):
        certainty = Certainty()
        certainty.see(each, each.argmax(1).to(torch.uint8))
        found.append(certainty.result())
    assert found[0].entropy < found[1].entropy  # type: ignore[operator]


def test_an_empty_mask_is_looked_at_first():
    certainty = Certainty()
    probabilities = torch.tensor([0.7, 0.2, 0.1])[None, :, None, None].expand(1, 3, 8, 8)
    certainty.see(probabilities, torch.zeros(1, 8, 8, dtype=torch.uint8))
    empty = certainty.result()
    assert empty == Sureness([None, None], None)
    assert empty.mean_dsc == 0
    assert ranks({"good": Sureness([0.9, None], 0.1), "empty": empty, "poor": Sureness([0.5, 0.3], 0.1)}) == {
        "empty": 1, "poor": 2, "good": 3,
    }  # fmt: skip


def test_a_temperature_changes_probabilities_and_no_mask():
    logits = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))
    raw, softer = probabilities_of(logits), probabilities_of(logits, 2.5)
    assert torch.equal(raw.argmax(1), softer.argmax(1))
    assert softer.amax(1).mean() < raw.amax(1).mean()
    assert torch.allclose(probabilities_of(logits[:, :1], 2.0)[:, 1], torch.sigmoid(logits[:, 0] / 2))


def test_rank_correlation_of_too_little_is_unknown():
    assert spearman([1, 2, 3, 4], [1, 3, 2, 9]) == pytest.approx(0.8)
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_a_case_of_several_volumes_has_the_mean_of_each_class():
    both = together([Sureness([0.5, None], 0.2), Sureness([0.7, 0.4], None)])
    assert both == Sureness([pytest.approx(0.6), 0.4], 0.2)  # type: ignore[list-item]
    assert together([Sureness([0.5], 0.2), None]) is None
    assert together([]) is None
