"""BigBird's layers: post-LN, with full attention or attention over blocks.

    h = LayerNorm(h + dropout(Wo attention(h)))
    h = LayerNorm(h + dropout(Wo' attention(h, encoder)))          a decoder's, where there is an encoder
    h = LayerNorm(h + dropout(W2 act(W1 h + b1) + b2))

Every sum and the LayerNorm behind it are one call of the op residual_layer_norm.

Source: Big Bird: Transformers for Longer Sequences (Zaheer et al., 2020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .activations import activation
from .big_bird_attention import FEED_FORWARD, BigBirdSelfAttention, Pass, beside_encoder
from .positions import CountsPositions
from .post_layer_norm import PostLayerNormOutput
from .projections import activate, project


class BigBirdEmbeddings(CountsPositions):
    """LayerNorm(dropout(words + token types + positions)): [B, T] -> [B, T, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        P, D = config.max_position_embeddings, config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, D, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(P, D)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, D)
        self.LayerNorm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.scale = D**0.5 if config.rescale_embeddings else 1.0

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """Token types are zeros unless given. Rescaling holds for `inputs_embeds` too."""
        h = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.scale != 1:
            h = h * self.scale
        types = torch.zeros_like(position_ids[..., :1]) if token_type_ids is None else token_type_ids
        h = h + self.token_type_embeddings(types) + self.position_embeddings(position_ids)
        return self.LayerNorm(self.dropout(h))


class BigBirdOutput(PostLayerNormOutput):
    pass


class BigBirdAttention(nn.Module):
    def __init__(self, config: Any, layer: int, is_cross_attention: bool = False) -> None:
        super().__init__()
        self.self = BigBirdSelfAttention(config, layer, is_cross_attention)
        self.output = BigBirdOutput(config, config.hidden_size)

    def forward(
        self, h: Tensor, encoder_hidden_states: Tensor | None, head_mask: Tensor | None, shared: Pass
    ) -> Tensor:
        context = self.self(h, encoder_hidden_states, head_mask, shared)
        return self.output(context, h, shared.drawn_for(self.self.layer, self.self.site + 1))


# ---- layers ---------------------------------------------------------------------------------------------------------


class BigBirdIntermediate(nn.Module):
    """act(dense(h)): [B, T, D] -> [B, T, F]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = activation(config.hidden_act)

    def forward(self, h: Tensor) -> Tensor:
        return activate(self.intermediate_act_fn, self.dense, h)


class BigBirdLayer(GradientCheckpointingLayer):
    """Attention, cross attention where a decoder has it, and the feed-forward block: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.chunk_size_feed_forward = config.chunk_size_feed_forward
        self.attention = BigBirdAttention(config, layer)
        if config.add_cross_attention:
            if not config.is_decoder:
                raise ValueError("add_cross_attention=True is for a decoder: is_decoder must be True too")
            self.crossattention = BigBirdAttention(config, layer, is_cross_attention=True)
        self.intermediate = BigBirdIntermediate(config)
        self.output = BigBirdOutput(config, config.intermediate_size)

    def forward(
        self, h: Tensor, encoder_hidden_states: Tensor | None, head_mask: Tensor | None, shared: Pass
    ) -> Tensor:
        """Tensors that may need gradients come by position: reentrant checkpointing finds them there only."""
        h = self.attention(h, None if beside_encoder(self.config) else encoder_hidden_states, head_mask, shared)
        if encoder_hidden_states is not None and self.config.add_cross_attention:
            h = self.crossattention(h, encoder_hidden_states, head_mask, shared)
        rng_state = shared.drawn_for(self.layer, FEED_FORWARD)
        if self.chunk_size_feed_forward <= 0:
            return self.output(self.intermediate(h), h, rng_state)
        # The last chunk may be shorter; transformers raises there.
        parts = [
            project(self.output.dense, self.intermediate(part)) for part in h.split(self.chunk_size_feed_forward, dim=1)
        ]
        return self.output.add(torch.cat(parts, dim=1), h, rng_state)


class BigBirdEncoder(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList([BigBirdLayer(config, i) for i in range(config.num_hidden_layers)])

    def forward(
        self,
        h: Tensor,
        encoder_hidden_states: Tensor | None,
        head_masks: list[Tensor | None],
        shared: Pass,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """The last hidden state; `states` gets all of them, the embeddings' first, where it is a list."""
        for layer, head_mask in zip(self.layer, head_masks, strict=True):
            if states is not None:
                states.append(h)
            h = layer(h, encoder_hidden_states, head_mask, shared)
        if states is not None:
            states.append(h)
        return h
