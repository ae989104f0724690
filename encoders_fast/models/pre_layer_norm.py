"""An encoder, or decoder, that normalizes before each sublayer: RoBERTa-PreLayerNorm and XLM-RoBERTa-XL share it.

    h = h + dropout(Wo attention(LayerNorm(h)))
    h = h + dropout(Wo' attention(LayerNorm(h), encoder))          a decoder's, where there is an encoder
    h = h + dropout(W2 act(W1 LayerNorm(h) + b1) + b2)

Every sum and the LayerNorm that follows it, which often belongs to the next layer, are one call of the op
residual_layer_norm. Where a hook wants to see what lies between, the modules are called one by one, as they stand.

The two families place and call their LayerNorms differently; the classes here leave that to them.

Source: On Layer Normalization in the Transformer Architecture (Xiong et al., 2020).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .. import _dropout
from ..ops import residual_layer_norm
from ..ops.residual_layer_norm import onnx as _onnx  # noqa: F401  torch.onnx.export finds the op's ONNX form
from .attention import Mask, attend
from .decoding import encoder_tokens, with_earlier_tokens
from .observers import is_layer_norm, unobserved
from .projections import activate, project, project_together
from .relative_positions import embedding_type, relative_scores


class Pass(NamedTuple):
    """What all layers share in one forward pass."""

    mask: Mask
    encoder_mask: Mask
    cache: Cache | None
    cache_position: Tensor | None
    earlier_tokens: int | Tensor
    """How many tokens were in the cache before these."""
    rng_state: Tensor | None
    attentions: list[Tensor] | None
    """Where each layer leaves its probabilities, if they are asked for."""
    cross_attentions: list[Tensor] | None

    def drawn_for(self, layer: int, site: int) -> Tensor | None:
        return None if self.rng_state is None else _dropout.at(self.rng_state, layer, site)


# What drops something in a layer. Attention has two: the probabilities, and what becomes of them.
_SELF_ATTENTION, _CROSS_ATTENTION, _FEED_FORWARD = 0, 2, 4


def add_and_normalize(
    x: Tensor, residual: Tensor, dropout: nn.Module | None, norm: nn.Module | None, rng_state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(s, norm(s)) of s = residual + dropout(x), and None for the second where there is no `norm`."""
    dropout_p = 0.0
    if isinstance(dropout, nn.Dropout):
        dropout_p = dropout.p if dropout.training else 0.0
    elif dropout is not None:  # somebody put another module in its place
        x = dropout(x)
    if dropout_p > 0 and rng_state is None:
        rng_state = _dropout.draw(x.device)
    if is_layer_norm(norm):
        y, s = residual_layer_norm(x, residual, norm.weight, norm.bias, norm.eps, dropout_p, rng_state)
        return s, y
    return residual + (x if rng_state is None else _dropout.dropout(x, dropout_p, rng_state)), None


# ---- attention ------------------------------------------------------------------------------------------------------


class PreLayerNormSelfAttention(nn.Module):
    """Queries, keys and values of a layer's own tokens, or in cross attention keys and values of the encoder's."""

    def __init__(self, config: Any, layer: int, is_cross_attention: bool = False) -> None:
        super().__init__()
        D, H = config.hidden_size, config.num_attention_heads
        if D % H != 0:
            raise ValueError(f"hidden_size {D} must be a multiple of num_attention_heads {H}")
        self.config, self.layer = config, layer
        self.attention_head_size = D // H
        self.kept_heads = list(range(H))
        self.is_cross_attention = is_cross_attention
        self.is_causal = config.is_decoder and not is_cross_attention  # for attention functions that are not ours
        self.query = nn.Linear(D, D)
        self.key = nn.Linear(D, D)
        self.value = nn.Linear(D, D)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.position_embedding_type = "absolute" if is_cross_attention else embedding_type(config)
        if self.position_embedding_type != "absolute":
            distances = 2 * config.max_position_embeddings - 1
            self.distance_embedding = nn.Embedding(distances, self.attention_head_size)

    def forward(
        self, h: Tensor, encoder_hidden_states: Tensor | None, head_mask: Tensor | None, shared: Pass
    ) -> tuple[Tensor, Tensor | None]:
        """The context [B, T, D], and the probabilities [B, H, T, Tk] where they are asked for."""
        if self.is_cross_attention:
            query = self.split(project(self.query, h))
            key, value = encoder_tokens(shared.cache, self.layer, lambda: self.keys_of(encoder_hidden_states))
            mask, asked, site = shared.encoder_mask, shared.cross_attentions, _CROSS_ATTENTION
        else:
            query, key, value = map(self.split, project_together((self.query, self.key, self.value), h))
            key, value = with_earlier_tokens(shared.cache, self.layer, key, value, shared.cache_position)
            mask, asked, site = shared.mask, shared.attentions, _SELF_ATTENTION
        scale = self.attention_head_size**-0.5
        bias = None
        if self.position_embedding_type != "absolute":
            with_keys = self.position_embedding_type == "relative_key_query"
            bias = scale * relative_scores(
                query, key, self.distance_embedding.weight, shared.earlier_tokens, with_keys=with_keys
            )
        if head_mask is not None and len(self.kept_heads) < len(head_mask):
            head_mask = head_mask[self.kept_heads]
        context, probabilities = attend(
            self,
            query,
            key,
            value,
            mask,
            scale=scale,
            dropout_p=self.dropout.p,
            head_mask=head_mask,
            bias=bias,
            rng_state=shared.drawn_for(self.layer, site),
            output_attentions=asked is not None,
        )
        if asked is not None and probabilities is not None:
            asked.append(probabilities)
        return context, probabilities

    def keys_of(self, h: Any) -> tuple[Tensor, Tensor]:
        key, value = map(self.split, project_together((self.key, self.value), h))
        return key, value

    def split(self, x: Tensor) -> Tensor:
        """[B, T, H * K] -> [B, H, T, K]"""
        return x.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)


class PreLayerNormSelfOutput(nn.Module):
    """residual + dropout(dense(x)): what follows attention."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self.dropout(project(self.dense, x))


class PreLayerNormAttention(nn.Module):
    """h + dropout(Wo attention(LayerNorm(h))). A family gives the LayerNorm its name, `norm_name`."""

    norm_name: str

    def __init__(self, config: Any, layer: int, is_cross_attention: bool = False) -> None:
        super().__init__()
        self.self = PreLayerNormSelfAttention(config, layer, is_cross_attention)
        self.output = PreLayerNormSelfOutput(config)
        self.add_module(self.norm_name, nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps))
        self.layer, self.site = layer, _CROSS_ATTENTION if is_cross_attention else _SELF_ATTENTION

    @property
    def norm(self) -> nn.Module:
        return self.get_submodule(self.norm_name)

    def forward(
        self, h: Tensor, encoder_hidden_states: Tensor | None, head_mask: Tensor | None, shared: Pass
    ) -> tuple[Tensor, Tensor | None]:
        context, probabilities = self.self(self.norm(h), encoder_hidden_states, head_mask, shared)
        return self.output(context, h), probabilities

    def add(
        self,
        h: Tensor,
        normalized: Tensor | None,
        following: nn.Module,
        encoder_hidden_states: Tensor | None,
        head_mask: Tensor | None,
        shared: Pass,
    ) -> tuple[Tensor, Tensor | None]:
        """(s, following(s)) of the sum s; the second may be None, and so may `normalized`, LayerNorm(h)."""
        if not unobserved(self, self.output, self.output.dropout, following):
            return self(h, encoder_hidden_states, head_mask, shared)[0], None
        if normalized is None:
            normalized = self.norm(h)
        context, _ = self.self(normalized, encoder_hidden_states, head_mask, shared)
        x = project(self.output.dense, context)
        rng_state = shared.drawn_for(self.layer, self.site + 1)
        return add_and_normalize(x, h, self.output.dropout, following, rng_state)


# ---- layers ---------------------------------------------------------------------------------------------------------


class PreLayerNormLayer(GradientCheckpointingLayer):
    """Attention, cross attention where a decoder has it, and the feed-forward block: [B, T, D] -> [B, T, D]."""

    attention_class: type[PreLayerNormAttention]
    attention: PreLayerNormAttention
    intermediate: Any
    output: Any

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.chunk_size_feed_forward = config.chunk_size_feed_forward
        self.layer = layer
        self.attention = self.attention_class(config, layer)
        if config.add_cross_attention:
            if not config.is_decoder:
                raise ValueError("add_cross_attention=True is for a decoder: is_decoder must be True too")
            self.crossattention = self.attention_class(config, layer, is_cross_attention=True)

    @property
    def feed_forward_norm(self) -> nn.Module:
        raise NotImplementedError

    def feed_forward(self, h: Tensor) -> Tensor:
        """The block with its sum, module by module."""
        raise NotImplementedError

    def forward(
        self,
        h: Tensor,
        normalized: Tensor | None,
        encoder_hidden_states: Tensor | None,
        head_mask: Tensor | None,
        shared: Pass,
        following: nn.Module | None = None,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """The next h; with `following`, the LayerNorm behind this layer, both h and following(h).

        Tensors that may need gradients come by position: reentrant checkpointing finds them there only.
        """
        cross: Any = getattr(self, "crossattention", None) if encoder_hidden_states is not None else None
        norm = self.feed_forward_norm if cross is None else cross.norm
        h, normalized = self.attention.add(h, normalized, norm, None, head_mask, shared)
        if cross is not None:
            norm = self.feed_forward_norm
            h, normalized = cross.add(h, normalized, norm, encoder_hidden_states, head_mask, shared)
        h, normalized = self.add_feed_forward(h, normalized, following, shared)
        return h if following is None else (h, normalized)

    def add_feed_forward(
        self, h: Tensor, normalized: Tensor | None, following: nn.Module | None, shared: Pass
    ) -> tuple[Tensor, Tensor | None]:
        chunk = self.chunk_size_feed_forward
        dropout = getattr(self.output, "dropout", None)
        between = [self.intermediate, self.output, *([] if dropout is None else [dropout])]
        if not unobserved(*between, *([] if following is None else [following])):
            parts = [h] if chunk <= 0 else h.split(chunk, dim=1)
            return _joined([self.feed_forward(part) for part in parts]), None
        if normalized is None:
            normalized = self.feed_forward_norm(h)
        parts = [normalized] if chunk <= 0 else normalized.split(chunk, dim=1)
        x = _joined([self.expand_and_project(part) for part in parts])
        return add_and_normalize(x, h, dropout, following, shared.drawn_for(self.layer, _FEED_FORWARD))

    def expand_and_project(self, normalized: Tensor) -> Tensor:
        expanded = activate(self.intermediate.intermediate_act_fn, self.intermediate.dense, normalized)
        return project(self.output.dense, expanded)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class PreLayerNormEncoder(nn.Module):
    """All layers, and a LayerNorm behind them, which may belong to the encoder or to the model around it."""

    layer_class: type[PreLayerNormLayer]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList([self.layer_class(config, i) for i in range(config.num_hidden_layers)])

    def forward(
        self,
        h: Tensor,
        final_norm: nn.Module,
        encoder_hidden_states: Tensor | None,
        head_masks: list[Tensor | None],
        shared: Pass,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """final_norm of the last layer's h; `states` gets what every layer was given, and this, where it is a list."""
        normalized = None
        layers: list[Any] = list(self.layer)
        for layer, next_layer, head_mask in zip(layers, [*layers[1:], None], head_masks, strict=True):
            if states is not None:
                states.append(h)
            arguments = (h, normalized, encoder_hidden_states, head_mask, shared)
            following = final_norm if next_layer is None else next_layer.attention.norm
            if _border_skippable(layer, next_layer, following, h.device):
                h, normalized = layer(*arguments, following)
            else:
                h, normalized = layer(*arguments), None
        h = final_norm(h) if normalized is None else normalized
        if states is not None:
            states.append(h)
        return h


def _border_skippable(layer: Any, next_layer: Any, following: Any, device: torch.device) -> bool:
    """Whether a layer may compute the LayerNorm behind it too."""
    if layer.gradient_checkpointing and layer.training:
        return False  # what crosses the border is kept until the backward pass: it had better be one tensor than two
    if next_layer is not None and not unobserved(next_layer, next_layer.attention):
        return False
    return unobserved(layer, following) and is_layer_norm(following) and following.weight.device == device
