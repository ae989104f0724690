"""BigBird's model: embeddings, layers and pooler, and what an input's attention is.

Source: Big Bird: Transformers for Longer Sequences (Zaheer et al., 2020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.modeling_utils import PreTrainedModel

from .. import _dropout
from .attention import EVERYTHING, Mask, head_masks, make_mask
from .big_bird_attention import Pass, beside_encoder
from .big_bird_layers import BigBirdEmbeddings, BigBirdEncoder
from .big_bird_patterns import check_attention_type, check_pattern, longest_full, option
from .configuration import BigBirdConfig
from .decoding import as_given, cached_tokens, open_cache
from .inputs import check_keywords, check_tokens, one_of
from .language_heads import BertLanguageHead
from .other_frameworks.loading import LoadsOtherFrameworks
from .padding import removable
from .pruning import PrunesHeads
from .unused import NamesUnusedParameters


class BigBirdPreTrainedModel(LoadsOtherFrameworks, NamesUnusedParameters, PrunesHeads, PreTrainedModel):
    """Base of all BigBird models: initialization, and how checkpoints are loaded and saved."""

    config: BigBirdConfig
    config_class = BigBirdConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["BigBirdEmbeddings", "BigBirdLayer"]  # noqa: RUF012  transformers wants a list
    # A buffer of older checkpoints: 0, 1, 2, ...
    _keys_to_ignore_on_load_unexpected = [r"embeddings\.position_ids$"]  # noqa: RUF012

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BertLanguageHead):
            initialization.zeros_(module.bias)


class BigBirdModel(BigBirdPreTrainedModel):
    """The encoder, or decoder, with a pooler unless `add_pooling_layer=False`.

    `attention_type` is what `config.attention_type` says: "block_sparse" holds for inputs of more than
    (5 + 2 * num_random_blocks) * block_size tokens, cached ones included. A shorter one has full attention, as always
    with "original_full", and leaves the type as it is. A decoder that is built for cross attention begins with
    "original_full".
    """

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        check_attention_type(config.attention_type)
        check_pattern(config)
        self.attention_type = "original_full" if config.add_cross_attention else config.attention_type
        self.embeddings = BigBirdEmbeddings(config)
        self.encoder = BigBirdEncoder(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if add_pooling_layer else None
        self.activation: Any = nn.Tanh() if add_pooling_layer else None
        self.prune_as_configured()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    def set_attention_type(self, value: str) -> None:
        """Go on with "original_full" or "block_sparse" attention. Raises ValueError for any other type."""
        check_attention_type(value)
        self.attention_type = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        head_mask: Tensor | None = None,
        cache_position: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[Any, ...]:
        """Encode a batch of sequences, or as a decoder (`config.is_decoder`) the next tokens of it.

        Args:
            input_ids: [B, T], any T up to max_position_embeddings, or else
            inputs_embeds: [B, T, D], in place of the word embeddings.
            attention_mask: [B, tokens so far], 0 where one is padding. Full attention takes [B, T, tokens so far] too,
                0 where a token is hidden from another, and [B, H or 1, T, tokens so far], likewise, or in floating
                point added to the scores.
            token_type_ids: [B, T]; zeros where it is not given.
            position_ids: [B, T] or [T]; 0 and up where it is not given.
            encoder_hidden_states: [B, S, D], what a decoder with cross attention attends to; see also
                `BigBirdConfig.self_attention_beside_encoder`.
            encoder_attention_mask: [B, S], 0 where one of them is padding, or as above with T and S.
            past_key_values: of the tokens before these: a transformers Cache, which is extended in place, or for each
                layer 2 tensors [B, H, tokens, K], or 4, the last two of the encoder's tokens.
            use_cache: whether to return them, as a decoder does unless the configuration says otherwise.
            head_mask: [H] or [layers, H], a factor for each head's attention probabilities.
            cache_position: [T], the tokens' places in a cache of fixed size, where transformers does not count itself.
            output_attentions, output_hidden_states, return_dict: as the configuration says where they are not given.
            keep_padding: whether padded tokens go through the layers too, see `padding`. They do anyhow where one of
                the first two before is asked for.

        Returns: last_hidden_state [B, T, D], on the CPU zeros for padded tokens unless they are kept, pooler_output [B,
        D], and what was asked for of past_key_values (tuples to whom gave tuples), hidden_states (layers + 1 times [B,
        T, D]), attentions and cross_attentions (for each layer [B, H, T, keys]; with block_sparse a tensor that its
        attention does without, in which, as in transformers, a block that is listed twice has the weight of one).
        Without `return_dict` a tuple of what is there.

        Raises: ValueError for inputs of the wrong shape, both or neither of input_ids and inputs_embeds, more tokens
        than the model has positions for, and encoder_hidden_states beside block_sparse attention; TypeError for ids
        that are not integers and for unknown keywords; NotImplementedError for block_sparse attention with a cache of
        which only the device knows how full it is.
        """
        keep_padding = kwargs.pop("keep_padding", False)
        check_keywords(self, kwargs)
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        check_tokens(given, token_type_ids, position_ids, self.config.hidden_size, None)
        _, tokens = one_of(given)
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        factors = head_masks(head_mask, layers, heads, self.dtype)
        use_cache = self._uses_cache(use_cache, past_key_values)
        cache = self._cache(past_key_values, use_cache, encoder_hidden_states)
        positions = self._positions(position_ids, tokens, cached_tokens(cache))
        self._check_encoder(encoder_hidden_states, tokens)
        shared = self._shared_by_layers(
            tokens,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            cache,
            cache_position,
            self.config.output_attentions if output_attentions is None else output_attentions,
        )
        states: list[Tensor] | None = None
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            states = []
        h = self.embeddings(input_ids, token_type_ids, positions, inputs_embeds)
        keep = keep_padding or states is not None or shared.attentions is not None
        real = removable(self, shared.mask, h, keep=keep)
        if real is not None:
            h, shared = real.take(h), shared._replace(mask=shared.mask._replace(real=real))
        h = self.encoder(h, encoder_hidden_states, factors, shared, states)
        if real is not None:
            h = real.put_back(h)
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=h,
            pooler_output=None if self.pooler is None else self.activation(self.pooler(h[:, 0])),
            past_key_values=as_given(cache, past_key_values) if use_cache else None,
            hidden_states=None if states is None else tuple(states),
            attentions=None if shared.attentions is None else tuple(shared.attentions),
            cross_attentions=None if shared.cross_attentions is None else tuple(shared.cross_attentions),
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _uses_cache(self, use_cache: bool | None, past_key_values: Any) -> bool:
        """Whether to return what was cached: a decoder does, unless its layers will run again in the backward pass."""
        if self.training and any(layer.gradient_checkpointing for layer in self.encoder.layer):
            if past_key_values is not None:
                raise ValueError("past_key_values cannot be had together with gradient checkpointing")
            return False
        if not self.config.is_decoder:
            return False
        return self.config.use_cache if use_cache is None else use_cache

    def _cache(self, past_key_values: Any, use_cache: bool, encoder_hidden_states: Tensor | None) -> Cache | None:
        if not self.config.is_decoder:
            return None
        # As transformers computes it, there is one place for the keys of both attentions.
        two = encoder_hidden_states is not None and beside_encoder(self.config)
        return open_cache(past_key_values, use_cache, two, self.config.num_hidden_layers)

    def _positions(self, position_ids: Tensor | None, tokens: Tensor, earlier: int | Tensor) -> Tensor:
        """What to look up in the position embeddings."""
        if position_ids is not None:
            return position_ids
        T, P = tokens.shape[1], self.config.max_position_embeddings
        if isinstance(earlier, int) and earlier + T > P:
            raise ValueError(f"the sequences have {earlier + T} tokens, the model has {P} positions")
        return torch.arange(T, device=tokens.device)[None] + earlier

    def _check_encoder(self, encoder_hidden_states: Tensor | None, tokens: Tensor) -> None:
        if encoder_hidden_states is None:
            return
        if self.config.is_decoder and not self.config.add_cross_attention:
            raise ValueError(
                "encoder_hidden_states are for a decoder with config.add_cross_attention=True; this has none"
            )
        shape = tuple(encoder_hidden_states.shape)
        if len(shape) != 3 or shape[0] != tokens.shape[0] or shape[2] != self.config.hidden_size:
            raise ValueError(
                f"encoder_hidden_states {shape} must be [{tokens.shape[0]}, encoder tokens, {self.config.hidden_size}]"
            )

    def _over_blocks(self, T: int, earlier: int | Tensor) -> bool:
        """Whether this input's attention is block-sparse."""
        if self.attention_type != "block_sparse":
            return False
        if not self.config.is_decoder or not option(self.config, "causal_block_sparse"):
            # With earlier tokens the way of transformers has no meaning: these few attend to all.
            return isinstance(earlier, int) and earlier == 0 and longest_full(self.config) < T
        if not isinstance(earlier, int):
            raise NotImplementedError(
                "block_sparse attention must know on the host how many tokens are cached: use a DynamicCache, or"
                ' set_attention_type("original_full")'
            )
        return earlier + T > longest_full(self.config)

    def _shared_by_layers(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        cache: Cache | None,
        cache_position: Tensor | None,
        output_attentions: bool,
    ) -> Pass:
        earlier, T = cached_tokens(cache), tokens.shape[1]
        over_blocks = self._over_blocks(T, earlier)
        mask, encoder_mask = EVERYTHING, EVERYTHING
        if encoder_hidden_states is None or beside_encoder(self.config):
            mask = self._mask(attention_mask, tokens, earlier, over_blocks)
        if encoder_hidden_states is not None:
            if over_blocks:
                raise ValueError('encoder_hidden_states need attention_type="original_full"; it is "block_sparse"')
            S = encoder_hidden_states.shape[1]
            encoder_mask = make_mask(encoder_attention_mask, tokens, S, name="encoder_attention_mask")
        if cache is not None and cache_position is None:
            cache_position = torch.arange(T, device=tokens.device) + earlier
        drops = self.training and (self.config.hidden_dropout_prob or self.config.attention_probs_dropout_prob)
        crosses = encoder_hidden_states is not None and self.config.add_cross_attention
        return Pass(
            mask=mask,
            encoder_mask=encoder_mask,
            over_blocks=over_blocks,
            cache=cache,
            cache_position=cache_position,
            earlier_tokens=earlier,
            rng_state=_dropout.draw(tokens.device) if drops else None,
            attentions=[] if output_attentions else None,
            cross_attentions=[] if output_attentions and crosses else None,
        )

    def _mask(self, attention_mask: Tensor | None, tokens: Tensor, earlier: int | Tensor, over_blocks: bool) -> Mask:
        if over_blocks and attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(
                f"attention_mask {tuple(attention_mask.shape)} must be [batch, tokens] for block_sparse attention"
            )
        keys = earlier + tokens.shape[1] if isinstance(earlier, int) else None
        return make_mask(attention_mask, tokens, keys, earlier if self.config.is_decoder else None)
