"""Bi-WKV, the linear-time bidirectional attention of RWKV-UNet, and the selective scan of Mamba as torch operators.

Needs torch alone.
"""

from biwkv.nd import bi_wkv_nd
from biwkv.op import bi_wkv
from biwkv.reference import bi_wkv_nd_reference, bi_wkv_reference, selective_scan_reference
from biwkv.selective import selective_scan

__all__ = [
    "bi_wkv",
    "bi_wkv_nd",
    "bi_wkv_nd_reference",
    "bi_wkv_reference",
    "selective_scan",
    "selective_scan_reference",
]
