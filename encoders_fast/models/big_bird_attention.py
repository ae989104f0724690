"""BigBird's attention: full, over blocks, or over an encoder's tokens.

Source: Big Bird: Transformers for Longer Sequences (Zaheer et al., 2020).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, EncoderDecoderCache

from .. import _dropout
from ..ops import attention_probabilities, block_sparse_attention
from .attention import EVERYTHING, Mask, attend
from .big_bird_patterns import pattern_of
from .decoding import encoder_tokens, with_earlier_tokens
from .projections import project, project_together


class Pass(NamedTuple):
    """What all layers share in one forward pass."""

    mask: Mask
    encoder_mask: Mask
    over_blocks: bool
    """Whether self-attention is block-sparse."""
    cache: Cache | None
    cache_position: Tensor | None
    earlier_tokens: int | Tensor
    rng_state: Tensor | None
    attentions: list[Tensor] | None
    """Where each layer leaves its probabilities, if they are asked for."""
    cross_attentions: list[Tensor] | None

    def drawn_for(self, layer: int, site: int) -> Tensor | None:
        return None if self.rng_state is None else _dropout.at(self.rng_state, layer, site)


# What drops something in a layer. Attention has two: the probabilities, and what becomes of them.
SELF_ATTENTION, CROSS_ATTENTION, FEED_FORWARD = 0, 2, 4


class BigBirdSelfAttention(nn.Module):
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
        self.query = nn.Linear(D, D, bias=config.use_bias)
        self.key = nn.Linear(D, D, bias=config.use_bias)
        self.value = nn.Linear(D, D, bias=config.use_bias)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, h: Tensor, encoder_hidden_states: Tensor | None, head_mask: Tensor | None, shared: Pass
    ) -> Tensor:
        """The context [B, T, D]."""
        if head_mask is not None and len(self.kept_heads) < len(head_mask):
            head_mask = head_mask[self.kept_heads]
        asked = shared.cross_attentions if self.is_cross_attention else shared.attentions
        over_blocks = False
        if encoder_hidden_states is None:
            query, key, value = map(self.split, project_together((self.query, self.key, self.value), h))
            key, value = with_earlier_tokens(shared.cache, self.layer, key, value, shared.cache_position)
            mask, over_blocks = shared.mask, shared.over_blocks
        else:
            query = self.split(project(self.query, h))
            key, value, mask = self.of_encoder(encoder_hidden_states, shared)
        if over_blocks:
            real = mask.real
            if real is not None:
                query, key, value = map(real.put_back_heads, (query, key, value))
            context, probabilities = self.over_blocks(query, key, value, head_mask, shared, asked is not None)
            if real is not None:
                context = real.take(context)
        else:
            context, probabilities = attend(
                self,
                query,
                key,
                value,
                mask,
                scale=self.attention_head_size**-0.5,
                dropout_p=self.dropout.p,
                head_mask=head_mask,
                rng_state=shared.drawn_for(self.layer, self.site),
                output_attentions=asked is not None,
            )
        if asked is not None and probabilities is not None:
            asked.append(probabilities)
        return context

    @property
    def site(self) -> int:
        return CROSS_ATTENTION if self.is_cross_attention else SELF_ATTENTION

    def of_encoder(self, encoder_hidden_states: Tensor, shared: Pass) -> tuple[Tensor, Tensor, Mask]:
        """Keys and values of the encoder's tokens, and which of them are visible."""
        cache: Any = shared.cache
        if beside_encoder(self.config):
            key, value = encoder_tokens(cache, self.layer, lambda: self.keys_of(encoder_hidden_states))
            return key, value, shared.encoder_mask
        # As transformers computes it, see `BigBirdConfig.self_attention_beside_encoder`.
        mask = EVERYTHING if self.is_cross_attention else shared.encoder_mask
        if isinstance(cache, EncoderDecoderCache):
            cache = cache.self_attention_cache
        if cache is not None and cache.get_seq_length(self.layer) > 0:
            return cache.layers[self.layer].keys, cache.layers[self.layer].values, mask
        key, value = self.keys_of(encoder_hidden_states)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        return key, value, mask

    def over_blocks(
        self, query: Tensor, key: Tensor, value: Tensor, head_mask: Tensor | None, shared: Pass, asked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The context [B, T, D], zeros for padded tokens, and the probabilities [B, H, T, Tk] if they are asked for."""
        assert isinstance(shared.earlier_tokens, int)  # the model sees to it
        T, Tk = query.shape[2], query.shape[2] + shared.earlier_tokens
        key, value = key[:, :, :Tk], value[:, :, :Tk]  # a cache of fixed size has room behind the last key
        pattern = pattern_of(self.config, T, Tk, self.layer, self.training, query.device)
        if pattern.heads > len(self.kept_heads):
            pattern = pattern.of_heads(self.kept_heads)
        keys = shared.mask.keys
        queries = None if keys is None else keys[:, Tk - T :]
        before = pattern.query_tokens - T  # tokens of the first query's block that have had their turn
        if before > 0:
            query = F.pad(query, (0, 0, before, 0))
            queries = None if queries is None else F.pad(queries, (before, 0))
        masks: dict[str, Any] = {"key_padding_mask": keys, "query_padding_mask": queries}
        drops = self.training and getattr(self.config, "block_sparse_dropout", False)
        context = block_sparse_attention(
            query,
            key,
            value,
            pattern,
            **masks,
            head_mask=head_mask,
            dropout_p=self.dropout.p if drops else 0.0,
            rng_state=shared.drawn_for(self.layer, self.site),
        )
        context = context[:, :, before:].transpose(1, 2).flatten(2)
        if not asked:
            return context, None
        # As transformers: of a block that is listed more than once, the weight of one copy.
        probabilities = attention_probabilities(query, key, pattern, **masks, sum_duplicates=False)[:, :, before:]
        return context, probabilities if head_mask is None else probabilities * head_mask[:, None, None]

    def keys_of(self, h: Tensor) -> tuple[Tensor, Tensor]:
        key, value = map(self.split, project_together((self.key, self.value), h))
        return key, value

    def split(self, x: Tensor) -> Tensor:
        """[B, T, H * K] -> [B, H, T, K]"""
        return x.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)


def beside_encoder(config: Any) -> bool:
    return getattr(config, "self_attention_beside_encoder", False)
