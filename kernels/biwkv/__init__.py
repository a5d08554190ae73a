"""Bi-WKV, the linear-time bidirectional attention of RWKV-UNet, as a torch operator. Needs torch alone."""

from biwkv.nd import bi_wkv_nd
from biwkv.op import bi_wkv
from biwkv.reference import bi_wkv_nd_reference, bi_wkv_reference

__all__ = ["bi_wkv", "bi_wkv_nd", "bi_wkv_nd_reference", "bi_wkv_reference"]
