"""Mask files of every mode, written by Pillow and OpenCV: what a viewer shows as foreground is foreground."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from rwkvctl.data.images import masks
from rwkvctl.data.images.masks import ALL_FOREGROUND, EMPTY, OUTLINE, oddity, read_mask

IDS = np.array([[0, 1], [2, 3]], np.uint8)
SHAPE = np.zeros((16, 16), np.uint8)
SHAPE[3:9, 4:12] = 1


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette([value for colour in colours for value in colour])
    return image


BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 200, 0)


def test_ids_under_a_palette_of_colours_are_its_indices():
    read = read_mask(encoded(with_palette(IDS, BLACK, RED, GREEN, WHITE)))
    np.testing.assert_array_equal(read.values, IDS)
    only_white = with_palette(IDS // 3 * 3, BLACK, RED, GREEN, WHITE)
    assert read_mask(encoded(only_white)).values.max() == 255, "the colour that is shown"
    np.testing.assert_array_equal(read_mask(encoded(only_white)).indices, IDS // 3 * 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("colours", [(BLACK, WHITE), (WHITE, BLACK), (RED, BLACK), (GREEN, BLACK)])
def test_colours_of_a_palette_decide_and_not_its_indices(kind: str, colours: tuple[tuple[int, int, int], ...]):
    indices = SHAPE if colours[0] == BLACK else 1 - SHAPE
    read = read_mask(encoded(with_palette(indices, *colours), kind))
    np.testing.assert_array_equal(read.values > 0, SHAPE)


def test_greys_of_a_palette_in_any_order_are_the_values():
    greys = [(2, 2, 2), (0, 0, 0), (3, 3, 3), (1, 1, 1)]
    order = np.array([1, 3, 0, 2], np.uint8)  # index of grey 0, 1, 2, 3
    np.testing.assert_array_equal(read_mask(encoded(with_palette(order[IDS], *greys))).values, IDS)


def test_a_palette_of_no_clear_meaning():
    with pytest.raises(ValueError, match=r"index 0 is RGB \(200, 0, 0\), not black; save it with one grey value"):
        read_mask(encoded(with_palette(IDS, RED, BLACK, GREEN, WHITE)))


def rgba(colour: np.ndarray | tuple[int, int, int], alpha: np.ndarray, **changes) -> bytes:
    pixels = np.dstack([np.broadcast_to(colour, (*alpha.shape, 3)), alpha]).astype(np.uint8)
    return encoded(Image.fromarray(pixels))


@pytest.mark.parametrize("colour", [WHITE, BLACK, RED])
def test_a_mask_in_the_alpha_channel(colour: tuple[int, int, int]):
    np.testing.assert_array_equal(read_mask(rgba(colour, SHAPE * 255)).values, SHAPE * 255)
    hidden = np.where(SHAPE[..., None], colour, np.random.default_rng(0).integers(0, 256, (16, 16, 3)))
    np.testing.assert_array_equal(read_mask(rgba(hidden, SHAPE * 255)).values, SHAPE * 255)
    grey_alpha = np.dstack([np.zeros_like(SHAPE), SHAPE * 255])
    np.testing.assert_array_equal(read_mask(encoded(Image.fromarray(grey_alpha, "LA"))).values, SHAPE * 255)


def test_alpha_that_says_nothing_or_the_same():
    colours = SHAPE[..., None] * np.full(3, 255)
    for alpha in (np.full((16, 16), 255), np.full((16, 16), 90), SHAPE * 255):
        np.testing.assert_array_equal(read_mask(rgba(colours, alpha)).values, SHAPE * 255)
    ids = SHAPE[..., None] * np.full(3, 7)
    np.testing.assert_array_equal(read_mask(rgba(ids, SHAPE * 255)).values, SHAPE * 7)


def test_alpha_that_says_something_else():
    colours = SHAPE[..., None] * np.full(3, 255)
    alpha = np.full((16, 16), 255)
    alpha[:6] = 0  # half of the foreground is not shown
    with pytest.raises(ValueError, match="grey values and alpha channel differ; save it without alpha"):
        read_mask(rgba(colours, alpha))
    with pytest.raises(ValueError, match="fully transparent"):
        read_mask(rgba(colours, np.zeros((16, 16))))


def test_a_transparent_colour_of_a_palette():
    image = with_palette(1 - SHAPE, WHITE, WHITE)
    np.testing.assert_array_equal(read_mask(encoded(image, transparency=1)).values, SHAPE * 255)
    labels = with_palette(IDS, RED, GREEN, (0, 0, 200), (9, 200, 9))
    np.testing.assert_array_equal(read_mask(encoded(labels, transparency=0)).values, IDS)


def test_masks_of_other_modes():
    one = read_mask(encoded(Image.fromarray(IDS > 1).convert("1")))
    assert (one.mode, one.values.tolist()) == ("1", [[0, 0], [1, 1]])
    grey = np.repeat(IDS[..., None], 3, -1)
    np.testing.assert_array_equal(read_mask(encoded(Image.fromarray(grey))).values, IDS)
    deep = IDS.astype(np.uint16) * 1000
    for data in (encoded(Image.fromarray(deep)), cv2.imencode(".png", np.repeat(deep[..., None], 3, -1))[1].tobytes()):
        read = read_mask(data)
        assert read.values.dtype == np.uint16
        np.testing.assert_array_equal(read.values, deep)


def test_masks_that_are_not_clear():
    coloured = np.zeros((2, 2, 3), np.uint8)
    coloured[0, 0] = (0, 0, 9)
    with pytest.raises(ValueError, match="colour"):
        read_mask(encoded(Image.fromarray(coloured)))
    with pytest.raises(ValueError, match=r"mask values from 0 to 0\.5; give whole ones"):
        read_mask(encoded(Image.fromarray(np.array([[0, 0.5]], np.float32)), "TIFF"))
    pages = [Image.fromarray(IDS)] * 3
    with pytest.raises(ValueError, match="has 3 pages"):
        read_mask(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


# Shapes -------------------------------------------------------------------------------------------------------------


def drawn(thickness: int, radius: int = 30, **line) -> np.ndarray:
    return cv2.circle(np.zeros((100, 100), np.uint8), (50, 48), radius, 1, thickness, **line)


@pytest.mark.parametrize("thickness", [1, 2, 3])
@pytest.mark.parametrize("radius", [20, 40])
def test_an_outline_is_no_area(thickness: int, radius: int):
    assert oddity(drawn(thickness, radius)) == OUTLINE
    square = cv2.rectangle(np.zeros((90, 90), np.uint8), (10, 20), (70, 60), 1, thickness)
    assert oddity(square) == OUTLINE


def vessels() -> np.ndarray:
    """Crossing lines, which enclose many small areas."""
    mask = np.zeros((200, 200), np.uint8)
    for start in range(10, 200, 30):
        cv2.line(mask, (start, 0), (200 - start, 199), 1, 3)
        cv2.line(mask, (0, start), (199, 200 - start // 2), 1, 3)
    return mask


def test_what_is_an_area():
    heart = drawn(-1, 40) - drawn(-1, 26)  # a ring-shaped organ
    for mask in (drawn(-1), heart, vessels(), drawn(-1, 3), np.eye(50, dtype=np.uint8)):
        assert oddity(mask) == ""


def test_masks_without_a_border():
    assert oddity(np.zeros((9, 9), np.uint8)) == EMPTY
    assert oddity(np.full((9, 9), 255, np.uint8)) == EMPTY, "ignored everywhere"
    assert oddity(np.full((9, 9), 2, np.uint8)) == ALL_FOREGROUND
    assert masks.oddity(IDS) == ""
