"""RWKV-UNet: an encoder with linear global attention, mixed skip connections and a large-kernel decoder.

Paper: "RWKV-UNet: Improving UNet with Long-Range Cooperation for Effective Medical Image Segmentation",
https://arxiv.org/abs/2501.08458
"""

# Annotations are classes here, not text: Hugging Face's mixin reads what a config is from them.
import math
import os
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from rwkv_unet import hub
from rwkv_unet.ccm import CrossChannelMix
from rwkv_unet.config import ModelConfig, model_config
from rwkv_unet.decoder import Decoder
from rwkv_unet.images import check_images
from rwkv_unet.rwkv_unet_enc import RWKVUNetEncoder, not_weights
from rwkv_unet.timm_encoder import TimmEncoder


class RWKVUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W).

    H and W may be any multiples of `divisor`, square or not, and change from call to call; it is 16, or what another
    encoder asks for. A model of 3 channels repeats an image of 1 channel.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.divisor = self.encoder.divisor
        self.ccm = _ccm(config, self.encoder.dims)
        self.decoder = Decoder(
            self.encoder.dims,
            config.stem_dim,
            kernel_size=config.decoder_kernel_size,
            num_skips=config.num_skips,
            extra_blocks=int(math.log2(self.encoder.reductions[0])) - 1,
        )
        self.head = nn.Conv2d(config.stem_dim, config.num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.config.in_channels, divisor=self.divisor)
        *skips, deepest = self.encoder.forward_stages(x)
        skips.reverse()  # deepest first: stages III, II, I
        if self.ccm is not None:
            skips = self.ccm(skips)
        return self.head(self.decoder(deepest, skips[len(skips) - self.config.num_skips :]))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into a folder, as the Hugging Face hub wants them."""
        hub.save(self, self.config, folder)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **download: Any) -> Self:
        """A model of `save_pretrained`, in evaluation mode, from a folder or a repository of the Hugging Face hub.

        download: revision, token, cache_dir and others of `huggingface_hub.hf_hub_download`.

        Raises:
            ValueError: if the folder has no such files, or the weights are not those of the config.
        """
        try:
            model = cls(ModelConfig(**hub.read_config(str(source), **download)))
        except TypeError as error:  # a field that this version does not have
            raise ValueError(f"{source}: {error}") from None
        hub.load_weights(model, str(source), **download)
        return model.eval()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are no weights (timm's optimizer factory asks)."""
        return not_weights(self)


def create_rwkv_unet(name: str, **fields: Any) -> RWKVUNet:
    """One of `config.MODELS` with other fields of `ModelConfig`; ValueError for an unknown field or a bad value."""
    return RWKVUNet(model_config(name, **fields))


def _encoder(config: ModelConfig) -> RWKVUNetEncoder | TimmEncoder:
    if config.encoder is not None:
        return TimmEncoder(config.encoder, config.in_channels)
    return RWKVUNetEncoder(
        config.stem_dim,
        config.depths,
        config.dims,
        config.expansions,
        in_chans=config.in_channels,
        num_classes=0,
        drop_path_rate=config.drop_path,
        attention=config.attention,
        shift=config.shift,
        scan=config.scan,
        shallow_attention=config.shallow_attention,
        channel_mix=config.glsp_channel_mix,
        with_head=False,
    )


def _ccm(config: ModelConfig, dims: Sequence[int]) -> CrossChannelMix | None:
    if not config.ccm or config.num_skips == 0:
        return None
    return CrossChannelMix(
        dims[2::-1],  # stages III, II, I
        hidden_rate=config.ccm_hidden_rate,
        drop_path=config.drop_path,
        num_outputs=config.num_skips,
    )
