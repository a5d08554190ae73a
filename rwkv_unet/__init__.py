"""RWKV-UNet: medical image segmentation with linear global attention. Importing it registers its encoders with timm."""

from rwkv_unet.config import ModelConfig
from rwkv_unet.fusion import fuse_for_inference
from rwkv_unet.model import RWKVUNet
from rwkv_unet.official import load_official_state_dict
from rwkv_unet.planning import planned_options
from rwkv_unet.registry import create_model, deep_supervision, dimensions, list_models
from rwkv_unet.rwkv_unet_enc import RWKVUNetEncoder
from rwkv_unet.volumetric import RWKVUNet3D

__all__ = [
    "ModelConfig",
    "RWKVUNet",
    "RWKVUNet3D",
    "RWKVUNetEncoder",
    "create_model",
    "deep_supervision",
    "dimensions",
    "fuse_for_inference",
    "list_models",
    "load_official_state_dict",
    "planned_options",
]
