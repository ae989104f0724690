"""Configurations: transformers' own, with the options that only this library has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F

_NAMES_OF_CALLABLES: dict[Any, str] = {
    F.relu: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.mish: "mish",
    F.sigmoid: "sigmoid",
    F.tanh: "tanh",
    torch.relu: "relu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    nn.functional.leaky_relu: "leaky_relu",
}


def _validated(cls: Any) -> Any:
    """transformers' configurations became validating dataclasses between 5.0 and 5.17: then ours is one too."""
    if "__dataclass_fields__" not in vars(transformers.PreTrainedConfig):
        return cls
    from huggingface_hub.dataclasses import strict

    return strict(cls)


def _without_defaults(output: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`output` without those options that transformers' own configuration does not have and that say nothing."""
    for name, default in defaults.items():
        value = output.get(name, default)
        if (tuple(value) if isinstance(value, list) else value) == default:
            output.pop(name, None)
    return output


if TYPE_CHECKING:
    from transformers import PreTrainedConfig as _Base
else:
    _Base = object


class _CallableActivation(_Base):
    """Lets `hidden_act` be a function, as it is documented, and saves it by its name."""

    hidden_act: Any

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if not isinstance(self.hidden_act, str):
            output["hidden_act"] = _NAMES_OF_CALLABLES.get(self.hidden_act, repr(self.hidden_act))
        return output

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.hidden_act, str) and self.hidden_act not in _NAMES_OF_CALLABLES:
            raise ValueError(
                f"hidden_act {self.hidden_act!r} cannot be saved in a configuration file: set it to a name first"
            )
        return super().save_pretrained(*args, **kwargs)


@_validated
class FNetConfig(_CallableActivation, transformers.FNetConfig):
    """Configuration of the FNet models: `transformers.FNetConfig` and two options more.

    Args:
        hidden_act: a name that transformers knows, or a function of one tensor.
        fourier_norm: "backward" (no scaling, as all published checkpoints) or "ortho" (divided by sqrt(T * D)), for
            models trained from scratch: the mixing then keeps the scale of its input.
        use_tpu_fourier_optimizations, tpu_short_seq_length: accepted and of no effect on the result: the transform is
            right at every length. (transformers raises at any length but `tpu_short_seq_length`, and after
            `from_pretrained` at this one too.)
        exact_padding: mix the tokens of each row alone that attention_mask calls real, and number them from 0, so that
            a row has the same result however it is padded. It takes one transform for each length that occurs, and no
            program of torch.export. By default, as in transformers, padding is mixed like any token.
        Others: see `transformers.FNetConfig`.
    """

    model_type = "fnet"
    hidden_act: Any = "gelu_new"
    fourier_norm: str = "backward"
    exact_padding: bool = False

    def to_dict(self) -> dict[str, Any]:
        return _without_defaults(super().to_dict(), {"fourier_norm": "backward", "exact_padding": False})


class _RobertaOptions(_CallableActivation):
    """What the configurations of models of RoBERTa's kind do not save where it is as transformers has it."""

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if not output.get("pruned_heads"):
            output.pop("pruned_heads", None)
        defaults = {
            "position_embedding_type": "absolute",
            "exact_positions": False,
            "feed_forward_dropout": False,
            "keep_padding": False,
        }
        return _without_defaults(output, defaults)


@_validated
class RobertaPreLayerNormConfig(_RobertaOptions, transformers.RobertaPreLayerNormConfig):
    """Configuration of the RoBERTa-PreLayerNorm models: `transformers.RobertaPreLayerNormConfig` and some options more.

    Args:
        hidden_act: a name that transformers knows, or a function of one tensor.
        position_embedding_type: "absolute", or "relative_key" or "relative_key_query": attention scores by an embedding
            of distances in place of position embeddings. (transformers 5 takes it and ignores it.)
        exact_positions: give every token the position that it was trained with, pad_token_id + 1 and up, in all ways of
            generation. By default, as in transformers, `generate` counts from 0, a cached decoder that is given
            inputs_embeds begins anew at every call, and one whose prompt is padded on the left counts the padding.
        keep_padding: give padded tokens hidden states too, as transformers does. By default, on the CPU, an encoder
            leaves them out where attention_mask [B, T] tells which they are, and their last hidden state is zeros. A
            loss that looks at them, and hidden_states and attentions where they are asked for, are as in transformers
            either way.
        pruned_heads: layer -> heads that `prune_heads` took out.
        Others: see `transformers.RobertaPreLayerNormConfig`.
    """

    model_type = "roberta-prelayernorm"
    hidden_act: Any = "gelu"
    position_embedding_type: str = "absolute"
    exact_positions: bool = False
    keep_padding: bool = False
    pruned_heads: Any = None


@_validated
class XLMRobertaXLConfig(_RobertaOptions, transformers.XLMRobertaXLConfig):
    """Configuration of the XLM-RoBERTa-XL models: `transformers.XLMRobertaXLConfig` and some options more.

    Args:
        hidden_act, position_embedding_type, exact_positions, keep_padding, pruned_heads: see
            `RobertaPreLayerNormConfig`.
        feed_forward_dropout: whether hidden_dropout_prob holds behind the feed-forward block too, as in the training of
            the published checkpoints. (transformers: no.)
        Others: see `transformers.XLMRobertaXLConfig`.
    """

    model_type = "xlm-roberta-xl"
    hidden_act: Any = "gelu"
    position_embedding_type: str = "absolute"
    exact_positions: bool = False
    feed_forward_dropout: bool = False
    keep_padding: bool = False
    pruned_heads: Any = None


@_validated
class BigBirdConfig(_CallableActivation, transformers.BigBirdConfig):
    """Configuration of the BigBird models: `transformers.BigBirdConfig` and some options more.

    Args:
        hidden_act: a name that transformers knows, or a function of one tensor.
        causal_block_sparse: whether a decoder with block_sparse attention is causal. False is transformers' behaviour:
            every token sees those behind it.
        random_plan: where the random blocks are. "transformers" draws them in training, and in evaluation takes the
            first block num_random_blocks times; "original", as the paper's code and the published checkpoints, has them
            in both; "anywhere", for models trained from scratch, draws them from the whole sequence, in both, where the
            two others draw from its beginning.
        window_blocks: how many blocks around its own one each block sees, an odd number. (transformers: 3.)
        global_blocks: the blocks that see all and are seen by all, counted from 0, or from the end by negative numbers.
            (transformers: the first and the last.)
        extra_global_tokens: so many tokens at the start are global too; a multiple of block_size.
            Each of these three needs random_plan="anywhere" and an encoder.
        block_sparse_dropout: whether attention_probs_dropout_prob holds for block_sparse too. (transformers: no.)
        self_attention_beside_encoder: what a decoder with cross attention does where encoder_hidden_states are given.
            False is transformers' behaviour: its self-attention attends to the encoder as well, so that no token sees
            another one, its cross attention ignores encoder_attention_mask, and with a cache takes the other's keys and
            values. True is attention to the tokens before, then to the encoder's.
        keep_padding: see `RobertaPreLayerNormConfig`.
        pruned_heads: layer -> heads that `prune_heads` took out.
        Others: see `transformers.BigBirdConfig`. num_random_blocks may be 0.
    """

    model_type = "big_bird"
    hidden_act: Any = "gelu_new"
    causal_block_sparse: bool = True
    random_plan: str = "transformers"
    window_blocks: int = 3
    global_blocks: Any = (0, -1)
    extra_global_tokens: int = 0
    block_sparse_dropout: bool = False
    self_attention_beside_encoder: bool = False
    keep_padding: bool = False
    pruned_heads: Any = None

    def to_dict(self) -> dict[str, Any]:
        return _without_defaults(super().to_dict(), BIG_BIRD_OPTIONS)


BIG_BIRD_OPTIONS: dict[str, Any] = {
    "causal_block_sparse": True,
    "random_plan": "transformers",
    "window_blocks": 3,
    "global_blocks": (0, -1),
    "extra_global_tokens": 0,
    "block_sparse_dropout": False,
    "self_attention_beside_encoder": False,
    "keep_padding": False,
    "pruned_heads": None,
}
"""The options of `BigBirdConfig` that transformers' own does not have, and their defaults."""


@_validated
class MobileBertConfig(_CallableActivation, transformers.MobileBertConfig):
    """Configuration of the MobileBERT models: `transformers.MobileBertConfig` and some options more.

    Args:
        hidden_act: a name that transformers knows, or a function of one tensor.
        key_query_shared_bottleneck: False, without use_bottleneck_attention, makes query, key and value of the wide
            stream, as in Google's own code. (transformers builds such a model and raises in its first forward.)
        exact_padding: give the tokens of a row that attention_mask [B, T] calls real what they have without padding:
            the words beside it have zeros for a neighbour, positions count no padding, and the pooler reads the first
            real token. By default, as in transformers, a word beside padding is made of the padding's embedding too.
        keep_padding: see `RobertaPreLayerNormConfig`.
        pruned_heads: layer -> heads that `prune_heads` took out.
        Others: see `transformers.MobileBertConfig`.
    """

    model_type = "mobilebert"
    hidden_act: Any = "relu"
    exact_padding: bool = False
    keep_padding: bool = False
    pruned_heads: Any = None

    def to_dict(self) -> dict[str, Any]:
        return _without_defaults(
            super().to_dict(), {"exact_padding": False, "keep_padding": False, "pruned_heads": None}
        )
