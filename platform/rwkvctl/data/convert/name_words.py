"""What words in the names of files and folders say of them: that they are masks, or show masks or images otherwise."""

from __future__ import annotations

import re

_MASK = re.compile(
    r"mask|(?<![a-z])msk|label|lbl|(?<![a-z])gt(?![a-z])|truth|annot|segm|(?<![a-z])seg(?![a-z])|manual|target|beschrift"
    r"|masque|m[aá]scara|mascher|etiquet|étiquet|etichett|etykiet|etiket|r[oó]tulo|anotac|annotaz|v[eé]rit[eé]|mapa"
    r"|маск|размет|метк|сегмент|マスク|ラベル|正解|标签|標籤|标注|標註|掩|遮罩|分割|마스크|라벨",
    re.IGNORECASE,
)
"""In what folders of masks, or what stands before or behind the names of masks, are called."""
_SHOWN = r"colou?r|(?<![a-z])rgb(?![a-z])|overlay|blend|visuali|(?<![a-z])vis(?![a-z])|preview|thumb|heat.?map"
_LESSER_MASK = re.compile(
    rf"{_SHOWN}|instance|(?<![a-z])inst(?![a-z])|object|panoptic|super.?pixel|(?<![a-z])roi(?![a-z])|contour|outline"
    r"|border|boundar|(?<![a-z])edges?(?![a-z])|skelet|trimap|bbox|boxes|weight|distance|uncertain",
    re.IGNORECASE,
)
_DRAWN = re.compile(r"overlay|blend|visuali|preview|thumb|heat.?map", re.IGNORECASE)
_LESSER_IMAGE = re.compile(
    rf"{_DRAWN.pattern}|depth|tiefe|profond|profund|深度|disparit|thermal|infrared|normals"
    r"|(?<![a-z])(?:d|ir|nir|dsm|dem|ndvi|flow)(?![a-z])",
    re.IGNORECASE,
)


def says_mask(text: str) -> bool:
    return bool(_MASK.search(text))


def says_lesser_mask(text: str) -> bool:
    """Whether masks of that name show what others show as class ids in another way: in colours, each object for itself,
    as outlines or frames."""
    return bool(_LESSER_MASK.search(text))


def says_drawn(text: str) -> bool:
    """Whether pictures of that name are images with something drawn on them, or small ones to be looked at."""
    return bool(_DRAWN.search(text))


def says_lesser_image(text: str) -> bool:
    """Whether pictures of that name come beside images: depth, heat, or the image with something drawn on it."""
    return bool(_LESSER_IMAGE.search(text))
