"""The Mask2Former head: a pixel decoder and a masked transformer decoder on the features of a backbone.

Cheng et al. 2022 (arXiv 2112.01527), sec. 3.2. The modules are those of `transformers`, which agree with the published
ones to the last bit. The head predicts masks and query embeddings; how queries are classified is up to the framework.

Shapes: `B` batch, `C` channels, `h w` feature map, `Q` queries, `D` width of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as published

from ovstrans.clip.backbone import full_precision
from ovstrans.errors import InputError

FEATURES = ("res2", "res3", "res4", "res5")
"""The backbone features that the head takes, at strides 4, 8, 16 and 32."""

GROUPS = 32
"""Groups of the GroupNorms in the pixel decoder; its width is a multiple of this."""


@dataclass
class HeadOutput:
    """The predictions of the head: one before the first decoder layer and one after each, the last one final.

    Attributes:
        queries: Query embeddings [B, Q, D] of each prediction, layer-normalised.
        masks: Mask logits [B, Q, h, w] of each prediction, at stride 4.
        mask_features: Output of the pixel decoder [B, D, h, w], at stride 4.
        features: The backbone features that the head was given, res2 to res5.
    """

    queries: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    mask_features: Tensor
    features: Mapping[str, Tensor]


class MaskHead(nn.Module):
    """Pixel decoder and transformer decoder.

    Args:
        channels: Channels of the backbone features, res2 to res5.
        queries: Q, the number of queries.
        width: D, the channels of both decoders; a multiple of `GROUPS` and of `heads`.
        heads: Heads of every attention.
        encoder_layers: Deformable attention layers of the pixel decoder.
        encoder_ffn: Hidden width of their feed-forward networks.
        decoder_layers: Layers of the transformer decoder. It predicts before the first layer and after each.
        decoder_ffn: Hidden width of their feed-forward networks.

    Raises:
        InputError: A size is below 1, or `width` does not fit.
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
            decoder_layers=decoder_layers + 1,  # transformers counts the prediction before the first layer
            dim_feedforward=decoder_ffn,
            dropout=0.0,  # transformers would use any other value to skip whole layers too
            feature_strides=[4, 8, 16, 32],
            common_stride=4,
        )
        self.pixel_decoder = published.Mask2FormerPixelDecoder(config, list(channels))
        self.transformer = published.Mask2FormerTransformerModule(width, config)
        # transformers creates this parameter uninitialised, and on the CPU whatever the default device.
        self.pixel_decoder.level_embed = nn.Parameter(torch.empty(self.pixel_decoder.level_embed.shape))
        self.reset_parameters()
        self.train()

    def reset_parameters(self) -> None:
        """Initialise as the code of Mask2Former and Deformable DETR does.

        transformers initialises only inside its complete model classes. Without this, modules would start from torch's
        defaults and deformable attention from offsets of zero.
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
        """Set the mode, except where train mode would only inspect values; GPUs wait for that, meta tensors have none.

        In train mode the pixel decoder's encoder would look for infinities in every layer, and the transformer decoder
        (of transformers below 5.21) would draw layers to skip. Dropout is 0 in both, so results do not change.
        """
        super().train(mode)
        self.pixel_decoder.encoder.eval()
        self.transformer.decoder.training = False
        return self

    def forward(self, features: Mapping[str, Tensor]) -> HeadOutput:
        """Predict queries and masks.

        The pixel decoder computes in float32, also under autocast.

        Args:
            features: Backbone features [B, C, h, w] by name, at least `FEATURES`.
        """
        pyramid = [features[name] for name in FEATURES]
        with full_precision(pyramid[0]):
            pixels = self.pixel_decoder([each.float() for each in pyramid])
        output = self.transformer(
            multi_scale_features=pixels.multi_scale_features,
            mask_features=pixels.mask_features,
            output_hidden_states=True,
        )
        queries = tuple(each.transpose(0, 1) for each in output.intermediate_hidden_states)
        return HeadOutput(queries, tuple(output.masks_queries_logits), pixels.mask_features, features)


def mask_pool(features: Tensor, masks: Tensor) -> Tensor:
    """Average features inside each mask.

    Args:
        features: [B, C, h, w].
        masks: Logits [B, Q, h, w]; a position is inside if its logit is above 0. They get no gradient.

    Returns:
        [B, Q, C], float32; 0 for an empty mask.
    """
    with full_precision(features):  # a sum over a whole map would overflow half precision
        inside = (masks.detach() > 0).float()
        area = inside.sum((-2, -1))[..., None] + 1e-8
        return torch.einsum("bchw,bqhw->bqc", features.float(), inside) / area


def _reset_deformable(attention: Any) -> None:
    """Let the sampling points of each head lie in one direction, 1 to P steps away (Zhu et al. 2021, appendix A.4)."""
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
    """Initialise as torch's attention, whose three projections are one matrix [3D, D]: bound sqrt(6 / 4D), biases 0."""
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        bound = math.sqrt(6 / (4 * linear.in_features))
        nn.init.uniform_(linear.weight, -bound, bound)
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(attention.out_proj.bias)


def _reset_conv(conv: nn.Conv2d, initialise: Callable[[Tensor], object]) -> None:
    """Initialise the weight with the given function and the bias, if there is one, with 0."""
    initialise(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
