"""Calibration: the figures of known cases, the temperature that was put in, sums that do not depend on the workers."""

from __future__ import annotations

import pytest
import torch

from rwkvctl.training.calibration import BINS, Calibration, Reliability, box_of, confidence_of


def drawn(temperature: float, classes: int, slices: int = 6, side: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits, and truths drawn with the probabilities that they have when they are divided by the temperature."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(slices):
        logits = 3 * torch.randn(classes, side, side, generator=generator)
        probabilities = torch.softmax(logits / temperature, 0).flatten(1).T
        truth = torch.multinomial(probabilities, 1, generator=generator).reshape(side, side)
        found.append((logits, truth.to(torch.uint8)))
    return found


def seen(given: list[tuple[torch.Tensor, torch.Tensor]], **fields: object) -> Calibration:
    calibration = Calibration(**fields)  # type: ignore[arg-type]
    for logits, truth in given:
        best = logits[0] > 0 if len(logits) == 1 else logits.argmax(0)
        calibration.see(logits, truth, best.to(torch.uint8))
    return calibration


def test_ece_of_a_table_by_hand():
    reliability = Reliability()
    reliability.see(torch.tensor([0.9, 0.9, 0.9, 0.9, 0.55, 1.0]), torch.tensor([True, True, False, False, True, True]))
    # Bins 13, 8 and 14: |2 - 3.6| + |1 - 0.55| + |1 - 1| over 6 pixels.
    assert reliability.ece() == pytest.approx((1.6 + 0.45) / 6, abs=1e-6)
    fields = reliability.as_fields()
    assert [fields["pixels"][place] for place in (8, 13, 14)] == [1, 4, 1]
    assert fields["right"][13] == 0.5
    assert fields["confidence"][0] is None
    assert len(fields["pixels"]) == BINS
    assert Reliability().ece() is None


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_that_was_put_in_is_found(temperature: float, classes: int):
    given = drawn(temperature, classes)
    fitted = seen(given, fit=True).fitted()
    assert fitted is not None
    assert fitted.temperature == pytest.approx(temperature, rel=0.07)
    assert fitted.ece[1] < 0.02
    assert fitted.likelihood[1] <= fitted.likelihood[0]
    known = seen(given, temperature=fitted.temperature)
    assert known.calibrated.ece() == pytest.approx(fitted.ece[1], abs=0.01)
    if temperature != 1:
        assert known.raw.ece() > 3 * known.calibrated.ece()


def test_one_logit_is_two_classes():
    two = drawn(2.0, 2)
    one = [((logits[1] - logits[0])[None], truth) for logits, truth in two]
    found = [seen(each, fit=True, temperature=2.0) for each in (one, two)]
    assert found[0].raw.ece() == pytest.approx(found[1].raw.ece(), abs=1e-5)
    assert found[0].fitted().temperature == found[1].fitted().temperature  # type: ignore[union-attr]
    assert torch.allclose(confidence_of(one[0][0]), confidence_of(two[0][0]))


def test_workers_add_up_to_one():
    given = drawn(2.0, 3)
    whole, first, second = (seen(part, fit=True, temperature=2.0) for part in (given, given[:2], given[2:]))
    first.merge(second)
    assert first.slices == whole.slices
    assert torch.equal(first.likelihood, whole.likelihood)
    assert torch.equal(first.all_calibrated.table, whole.all_calibrated.table)
    assert first.fitted().temperature == whole.fitted().temperature  # type: ignore[union-attr]


def test_only_pixels_around_the_foreground_and_none_that_are_ignored_count():
    logits, truth = torch.full((1, 100, 100), -4.0), torch.zeros(100, 100, dtype=torch.uint8)
    logits[0, 40:60, 40:60], truth[42:62, 40:60] = 4.0, 1
    truth[0, :], truth[40, 40] = 255, 255
    calibration = seen([(logits, truth)], ignore_index=255)
    assert int(calibration.all_raw.table[0].sum()) == 100 * 100 - 101
    assert int(calibration.raw.table[0].sum()) == (22 + 16) * (20 + 16) - 1
    nothing = seen([(torch.full((1, 8, 8), -4.0), torch.zeros(8, 8, dtype=torch.uint8))], fit=True)
    assert (nothing.raw.ece(), nothing.fitted()) == (None, None)
    assert nothing.as_fields()["ece_all"] == pytest.approx(0.018, abs=1e-3)


def test_a_box_has_a_margin_and_stays_in_the_image():
    foreground = torch.zeros(200, 50, dtype=torch.bool)
    foreground[50:150, 2] = True
    rows, columns = box_of(foreground)  # type: ignore[misc]
    assert (rows.start, rows.stop, columns.start, columns.stop) == (40, 160, 0, 11)


def test_a_network_that_is_always_right_has_no_temperature():
    logits = torch.where(torch.arange(64).reshape(8, 8) % 2 == 0, 5.0, -5.0)[None]
    assert seen([(logits, (logits[0] > 0).to(torch.uint8))], fit=True).fitted() is None
