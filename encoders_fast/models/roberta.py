"""What models of RoBERTa's kind have in common: their embeddings, their arguments, and the way through their layers.

The position of a token is pad_token_id + 1 more than the number of tokens before it that are not padding, so that of
max_position_embeddings positions as many less are of use.

Source: RoBERTa: A Robustly Optimized BERT Pretraining Approach (Liu et al., 2019).
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
from .attention import EVERYTHING, head_masks, make_mask
from .decoding import as_given, cached_tokens, open_cache
from .inputs import check_keywords, check_tokens, one_of, readable
from .language_heads import RobertaLanguageHead
from .padding import removable
from .pre_layer_norm import Pass
from .pruning import PrunesHeads
from .relative_positions import embedding_type
from .unused import NamesUnusedParameters


class RobertaEmbeddings(nn.Module):
    """dropout([LayerNorm](words + token types + positions)): [B, T] -> [B, T, D]."""

    has_layer_norm: bool

    def __init__(self, config: Any) -> None:
        super().__init__()
        D = config.hidden_size
        self.padding_idx = config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, D, padding_idx=self.padding_idx)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, D)
        if self.has_layer_norm:
            self.LayerNorm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, D, padding_idx=self.padding_idx)
        self.is_absolute = embedding_type(config) == "absolute"
        self.unused = () if self.is_absolute else ("position_embeddings",)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """`position_ids` may be missing only where positions are relative; token types are zeros unless given."""
        h = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:  # one row for all tokens
            token_type_ids = torch.zeros(1, 1, dtype=torch.int64, device=h.device)
        h = h + self.token_type_embeddings(token_type_ids)
        if self.is_absolute:
            h = h + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(h) if self.has_layer_norm else h)


def count_positions(
    attention_mask: Tensor | None,
    input_ids: Tensor | None,
    tokens: Tensor,
    padding_idx: int,
    earlier: int | Tensor,
    exact: bool,
) -> Tensor:
    """[B or 1, T]: padding_idx + n for the n-th token that is not padding.

    Which ones are padding, an attention_mask [B, earlier + T] says, for earlier tokens too. Without one the ids say it,
    and earlier tokens count as if none of them had been. In embeddings padding cannot be seen; then, unless `exact`,
    counting begins anew, whatever came earlier.
    """
    if attention_mask is not None and attention_mask.dim() == 2:
        real = attention_mask.to(tokens.device) != 0
        return (real.cumsum(1) * real + padding_idx)[:, -tokens.shape[1] :]
    if input_ids is not None:
        real = input_ids != padding_idx
        return (real.cumsum(1) + earlier) * real + padding_idx
    positions = torch.arange(padding_idx + 1, padding_idx + 1 + tokens.shape[1], device=tokens.device)[None]
    return positions + earlier if exact else positions


class RobertaPooler(nn.Module):
    """tanh(dense(h of the first token)): [B, T, D] -> [B, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(self.dense(h[:, 0]))


class RobertaPreTrainedModel(NamesUnusedParameters, PrunesHeads, PreTrainedModel):
    """What the families' bases share: initialization, and the kinds of attention that they can run on."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # A buffer of older checkpoints: 0, 1, 2, ...
    _keys_to_ignore_on_load_unexpected = [r"embeddings\.position_ids$"]  # noqa: RUF012  transformers wants a list

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RobertaLanguageHead):
            initialization.zeros_(module.bias)


class RobertaEncoderModel(RobertaPreTrainedModel):
    """The way through a model whose layers normalize first; a family adds its parts and their names."""

    embeddings: RobertaEmbeddings
    encoder: Any
    pooler: RobertaPooler | None

    @property
    def final_norm(self) -> nn.Module:
        """Behind the last layer."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

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
            input_ids: [B, T], or else
            inputs_embeds: [B, T, D], in place of the word embeddings.
            attention_mask: [B, tokens so far], 0 where one is padding; [B, T, tokens so far], 0 where a token is hidden
                from another; or [B, H or 1, T, tokens so far], likewise, or in floating point added to the scores.
                The last two say everything: a decoder given them is as causal as they are.
            token_type_ids: [B, T]; zeros where it is not given.
            position_ids: [B, T] or [T]; where it is not given, pad_token_id + 1 and up, without padding.
            encoder_hidden_states: [B, S, D], what a decoder with cross attention attends to.
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
        T, D], the last of them normalized), attentions and cross_attentions (for each layer [B, H, T, keys]). Without
        `return_dict` a tuple of what is there.

        Raises: ValueError for inputs of the wrong shape, both or neither of input_ids and inputs_embeds, and more
        tokens than the model has positions for; TypeError for ids that are not integers and for unknown keywords.
        """
        keep_padding = kwargs.pop("keep_padding", False)
        check_keywords(self, kwargs)
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        check_tokens(given, token_type_ids, position_ids, self.config.hidden_size, None)
        _, tokens = one_of(given)
        check_encoder(self.config, encoder_hidden_states, tokens)
        H, layers = self.config.num_attention_heads, self.config.num_hidden_layers
        masks = head_masks(head_mask, layers, H, self.dtype)
        use_cache = self.uses_cache(use_cache, past_key_values)
        cache = open_cache(past_key_values, use_cache, encoder_hidden_states is not None, layers)
        positions = self.positions(position_ids, attention_mask, input_ids, tokens, cached_tokens(cache))
        shared = self.shared_by_layers(
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
        keep = keep_padding or states is not None or shared.attentions is not None or not self.embeddings.is_absolute
        real = removable(self, shared.mask, h, keep=keep)
        if real is not None:
            h, shared = real.take(h), shared._replace(mask=shared.mask._replace(real=real))
        h = self.encoder(h, self.final_norm, encoder_hidden_states, masks, shared, states)
        if real is not None:
            h = real.put_back(h)
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=h,
            pooler_output=None if self.pooler is None else self.pooler(h),
            past_key_values=as_given(cache, past_key_values) if use_cache else None,
        )
        # Not in the constructor: the class has hidden_states before past_key_values, the tuple has them behind.
        asked = {
            "hidden_states": states,
            "attentions": shared.attentions,
            "cross_attentions": shared.cross_attentions,
        }
        for name, tensors in asked.items():
            if tensors is not None:
                output[name] = tuple(tensors)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def uses_cache(self, use_cache: bool | None, past_key_values: Any) -> bool:
        """Whether to return what was cached: a decoder does, unless its layers will run again in the backward pass."""
        if self.training and any(layer.gradient_checkpointing for layer in self.encoder.layer):
            if past_key_values is not None:
                raise ValueError("past_key_values cannot be had together with gradient checkpointing")
            return False
        if not self.config.is_decoder:
            return False
        return self.config.use_cache if use_cache is None else use_cache

    def positions(
        self,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        input_ids: Tensor | None,
        tokens: Tensor,
        earlier: int | Tensor,
    ) -> Tensor | None:
        """What to look up in the position embeddings; None where positions are relative. Raises ValueError where there
        are more tokens than positions."""
        P, padding_idx = self.config.max_position_embeddings, self.embeddings.padding_idx
        count = tokens.shape[1] + earlier
        if not self.embeddings.is_absolute:
            if isinstance(count, int) and count > P:
                raise ValueError(f"the sequences have {count} tokens, the model has distances for {P}")
            return None
        if position_ids is None:
            exact = getattr(self.config, "exact_positions", False)
            counting = attention_mask if exact else None
            position_ids = count_positions(counting, input_ids, tokens, padding_idx, earlier, exact)
            if isinstance(count, int) and count + padding_idx < P:
                return position_ids
        if readable(position_ids) and (position_ids >= P).any():
            raise ValueError(
                f"the last position is {int(position_ids.max())}, the model has positions 0 to {P - 1}: room for"
                f" {P - 1 - padding_idx} tokens, since the first of them has position {padding_idx + 1}"
            )
        return position_ids

    def shared_by_layers(
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
        keys = earlier + T if isinstance(earlier, int) else None
        encoder_mask, crosses = EVERYTHING, encoder_hidden_states is not None and self.config.add_cross_attention
        if encoder_hidden_states is not None:
            S = encoder_hidden_states.shape[1]
            encoder_mask = make_mask(encoder_attention_mask, tokens, S, name="encoder_attention_mask")
        if cache is not None and cache_position is None:
            cache_position = torch.arange(T, device=tokens.device) + earlier
        drops = self.training and (self.config.hidden_dropout_prob or self.config.attention_probs_dropout_prob)
        return Pass(
            mask=make_mask(attention_mask, tokens, keys, earlier if self.config.is_decoder else None),
            encoder_mask=encoder_mask,
            cache=cache,
            cache_position=cache_position,
            earlier_tokens=earlier,
            rng_state=_dropout.draw(tokens.device) if drops else None,
            attentions=[] if output_attentions else None,
            cross_attentions=[] if output_attentions and crosses else None,
        )


def check_encoder(config: Any, encoder_hidden_states: Tensor | None, tokens: Tensor) -> None:
    """Raise ValueError for encoder_hidden_states that are not [B, S, D], or that a decoder has no attention for."""
    if encoder_hidden_states is None:
        return
    if config.is_decoder and not config.add_cross_attention:
        raise ValueError("encoder_hidden_states are for a decoder with config.add_cross_attention=True; this has none")
    shape = tuple(encoder_hidden_states.shape)
    if len(shape) != 3 or shape[0] != tokens.shape[0] or shape[2] != config.hidden_size:
        raise ValueError(
            f"encoder_hidden_states {shape} must be [{tokens.shape[0]}, encoder tokens, {config.hidden_size}]"
        )
