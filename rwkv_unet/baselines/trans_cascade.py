"""TransCASCADE: TransUNet's encoder, a ResNet-50 and a ViT-B/16, with the decoder of PVT-CASCADE.

M. M. Rahman, R. Marculescu, "Medical Image Segmentation via Cascaded Attention Decoding", WACV 2023, Section 3.3. The
logits are the sum of those of the four scales. In the authors' code every forward pass draws the projection of the
patches and the position embeddings anew; here they are weights like all others.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_unet.baselines.pvt_cascade import Cascade
from rwkv_unet.baselines.transunet import HYBRIDS, SKIP_DIMS, hybrid_features, hybrid_transformer


class TransCascade(Cascade):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W).

    Args:
        deep_supervision: in training mode give the logits of all four scales, of the image's size, the deepest first.
    """

    divisor = 16
    align_corners = True
    dropout = 0.1

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = HYBRIDS[0],
        deep_supervision: bool = False,
    ) -> None:
        vit = hybrid_transformer(encoder, in_channels)
        dims = [*reversed(SKIP_DIMS), vit.embed_dim]
        super().__init__(num_classes, in_channels, vit, dims, deep_supervision=deep_supervision)

    def _features(self, x: Tensor) -> list[Tensor]:
        return hybrid_features(self.encoder, x)
