"""Of which metrics less is better."""

from __future__ import annotations

SMALLER = ("loss", "hd95", "assd", "ece", "volume_difference", "seconds", "wait", "bytes", "grad", "rate", "lr")
"""Parts of their names; of all others more is better."""


def smaller_is_better(metric: str) -> bool:
    """
    >>> smaller_is_better("test/hd95_mm_strict/mean"), smaller_is_better("dsc_strict")
    (True, False)
    >>> smaller_is_better("test/ece/mean"), smaller_is_better("precision_strict")
    (True, False)
    >>> smaller_is_better("assd_vox_strict"), smaller_is_better("nsd_mm_strict"), smaller_is_better("iou_strict")
    (True, False, False)
    """
    return any(part in metric.lower() for part in SMALLER)
