"""The Mask2Former head: pixel decoder and masked transformer decoder over a trunk's four stages.

Cheng et al. 2022 (arXiv 2112.01527), sec. 3.2; the modules are those of `transformers`, which agree
with the published ones to the last bit. Frameworks differ in how they name what a query found; what
is common to them is here.

Shapes: `B` batch, `C` channels, `h w` feature map, `Q` queries, `D` width of the head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as published

from ovstrans.clip.backbone import full_precision
from ovstrans.errors import InputError

FEATURES = ("res2", "res3", "res4", "res5")
"""The stages a head reads, at strides 4, 8, 16 and 32."""

GROUPS = 32
"""Groups of the pixel decoder's GroupNorms: its width is a multiple of this."""


@dataclass
class HeadOutput:
    """What the head found, before the first decoder layer and after each: L + 1 entries, the last one final.

    queries: [B, Q, D] each, normalised.  masks: logits [B, Q, h, w] each, at stride 4.
    mask_features: [B, D, h, w], at stride 4.  features: res2 to res5, what the head read.
    """

    queries: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    mask_features: Tensor
    features: Mapping[str, Tensor]


class MaskHead(nn.Module):
    """Pixel decoder and transformer decoder.

    channels: of res2 to res5.  queries: Q.  width: D.  heads: of every attention.
    encoder_layers, encoder_ffn: of the pixel decoder.  decoder_layers, decoder_ffn: of the transformer
    decoder; there is a prediction before its first layer and after each.

    Raises InputError for sizes that do not fit each other.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        queries: int,
        width: int,
        heads: int,
        encoder_layers: int,
        encoder_ffn: int,
        decoder_layers: int,
        decoder_ffn: int,
    ) -> None:
        super().__init__()
        for name, value in (
            ("queries", queries),
            ("encoder_layers", encoder_layers),
            ("encoder_ffn", encoder_ffn),
            ("decoder_layers", decoder_layers),
            ("decoder_ffn", decoder_ffn),
        ):
            if value < 1:
                raise InputError(f"mask head: {name} = {value}; at least 1 is needed")
        if width < 1 or width % GROUPS or heads < 1 or width % heads:
            raise InputError(
                f"mask head: width = {width}, heads = {heads}; "
                f"the width must be a multiple of {GROUPS} and of the heads"
            )
        config = Mask2FormerConfig(
            num_queries=queries,
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            num_attention_heads=heads,
            encoder_layers=encoder_layers,
            encoder_feedforward_dim=encoder_ffn,
            decoder_layers=decoder_layers + 1,  # it counts the prediction before the first layer
            dim_feedforward=decoder_ffn,
            dropout=0.0,  # anything else would also skip whole layers at random
            feature_strides=[4, 8, 16, 32],
            common_stride=4,
        )
        self.pixel_decoder = published.Mask2FormerPixelDecoder(config, list(channels))
        self.transformer = published.Mask2FormerTransformerModule(width, config)
        # The library leaves this one uninitialised, on the CPU whatever the device.
        self.pixel_decoder.level_embed = nn.Parameter(torch.empty(self.pixel_decoder.level_embed.shape))
        self.reset_parameters()
        self.train()

    def reset_parameters(self) -> None:
        """Initialise as the published models do (Mask2Former's and Deformable DETR's code).

        The library's own initialisation happens only inside its own model classes, so bare modules
        would start from torch's defaults, and deformable attention from offsets of zero.
        """
        decoder = self.pixel_decoder
        for parameter in decoder.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in decoder.modules():
            if isinstance(module, published.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
                _reset_deformable(module)
        for projection in decoder.input_projections:
            _reset_conv(cast(Any, projection)[0], nn.init.xavier_uniform_)
        convs = [cast(Any, layer)[0] for layer in (*decoder.lateral_convolutions, *decoder.output_convolutions)]
        for conv in (*convs, decoder.mask_projection):
            _reset_conv(conv, lambda weight: nn.init.kaiming_uniform_(weight, a=1))
        nn.init.normal_(decoder.level_embed)
        for layer in self.transformer.decoder.layers:
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
            _reset_attention(layer.self_attn)

    def train(self, mode: bool = True) -> MaskHead:
        """Train mode, but where it would only look at values: for those a GPU waits, and meta tensors have none.

        The pixel decoder's encoder would look for infinities in every layer, and the transformer decoder
        (of transformers below 5.21) for layers to drop; dropout is 0 in both.
        """
        super().train(mode)
        self.pixel_decoder.encoder.eval()
        self.transformer.decoder.training = False
        return self

    def forward(self, features: Mapping[str, Tensor]) -> HeadOutput:
        """features: res2 to res5, [B, C, h, w] each. The pixel decoder computes in float32 whatever autocast says."""
        pyramid = [features[name] for name in FEATURES]
        with full_precision(pyramid[0]):
            pixels = self.pixel_decoder([each.float() for each in pyramid])
        found = self.transformer(
            multi_scale_features=pixels.multi_scale_features,
            mask_features=pixels.mask_features,
            output_hidden_states=True,
        )
        queries = tuple(each.transpose(0, 1) for each in found.intermediate_hidden_states)
        return HeadOutput(queries, tuple(found.masks_queries_logits), pixels.mask_features, features)


def mask_pool(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of the features inside each mask, [B, Q, C]; 0 for an empty mask.

    features: [B, C, h, w].  masks: logits [B, Q, h, w]; inside is above 0, without a gradient.
    """
    with full_precision(features):  # a sum over a whole map overflows half precision
        inside = (masks.detach() > 0).float()
        area = inside.sum((-2, -1))[..., None] + 1e-8
        return torch.einsum("bchw,bqhw->bqc", features.float(), inside) / area


def _reset_deformable(attention: Any) -> None:
    """Offsets that point along one direction a head, 1 to P steps far (Zhu et al. 2021, appendix A.4)."""
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1)
    offsets = directions[:, None, None, :] * steps[None, None, :, None]
    with torch.no_grad():
        attention.sampling_offsets.weight.zero_()
        attention.sampling_offsets.bias.copy_(offsets.expand(heads, levels, points, 2).reshape(-1))
        attention.attention_weights.weight.zero_()
        attention.attention_weights.bias.zero_()
    for linear in (attention.value_proj, attention.output_proj):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)


def _reset_attention(attention: Any) -> None:
    """As torch's attention, which holds the three projections as one matrix [3D, D]: bound sqrt(6 / 4D), no biases."""
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        bound = math.sqrt(6 / (4 * linear.in_features))
        nn.init.uniform_(linear.weight, -bound, bound)
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(attention.out_proj.bias)


def _reset_conv(conv: nn.Conv2d, weight: Any) -> None:
    weight(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
