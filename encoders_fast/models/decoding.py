"""What a decoder keeps between calls: the keys and values of the tokens that it has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from .inputs import readable

Tuples = tuple[tuple[Tensor, ...], ...]
"""A cache as caches were before they were classes: for each layer its keys and values [B, H, tokens, K], and with
cross attention the encoder's too."""


def open_cache(past_key_values: Any, use_cache: bool, cross_attention: bool, layers: int) -> Cache | None:
    """The cache for this call: the one that is given, one made of given tuples, or a new one where one is wanted.

    Raises: ValueError for tuples that are not one of 2 or 4 tensors for each layer, TypeError for anything else.
    """
    if past_key_values is None:
        if not use_cache:
            return None
        return EncoderDecoderCache(DynamicCache(), DynamicCache()) if cross_attention else DynamicCache()
    if isinstance(past_key_values, Cache):
        return past_key_values
    if not isinstance(past_key_values, (tuple, list)):
        raise TypeError(f"past_key_values must be a Cache or tuples; they are {type(past_key_values).__name__}")
    sizes = [len(layer) for layer in past_key_values]
    if sizes not in ([2] * layers, [4] * layers):
        raise ValueError(
            f"past_key_values must be a Cache or hold 2 or 4 tensors for each of the {layers} layers; they hold {sizes}"
        )
    cache = _filled([layer[:2] for layer in past_key_values])
    if sizes[0] == 4:
        return EncoderDecoderCache(cache, _filled([layer[2:] for layer in past_key_values]))
    return EncoderDecoderCache(cache, DynamicCache()) if cross_attention else cache


def _filled(layers: list[tuple[Tensor, Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for i, (key, value) in enumerate(layers):
        cache.update(key, value, i)
    return cache


def as_given(cache: Cache | None, past_key_values: Any) -> Any:
    """`cache` in the form that `past_key_values` had: to whom gives tuples, tuples are returned."""
    if cache is None or past_key_values is None or isinstance(past_key_values, Cache):
        return cache
    if not isinstance(cache, EncoderDecoderCache):
        return _tuples(cache)
    own, cross = _tuples(cache.self_attention_cache), _tuples(cache.cross_attention_cache)
    return tuple(map(tuple.__add__, own, cross)) if cross else own


def _tuples(cache: Any) -> Tuples:
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def cached_tokens(cache: Cache | None) -> int | Tensor:
    """How many tokens the cache holds. A tensor where only the device knows: that of a cache of fixed size on a GPU, or
    under torch.compile."""
    tokens: Any = 0 if cache is None else cache.get_seq_length()
    if not isinstance(tokens, Tensor):
        return tokens
    return int(tokens) if readable(tokens) else tokens.clone()  # the cache goes on counting in the tensor that it gave


def with_earlier_tokens(
    cache: Cache | None, layer: int, key: Tensor, value: Tensor, cache_position: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Put a layer's new keys and values into the cache; returns all that it holds."""
    if cache is None:
        return key, value
    own: Any = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    # Later versions of transformers count for themselves and let this pass.
    return own.update(key, value, layer, {"cache_position": cache_position})


def encoder_tokens(
    cache: Cache | None, layer: int, project: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """A layer's keys and values of the encoder's tokens: `project()`, called once for a cache that can keep them."""
    if not isinstance(cache, EncoderDecoderCache):
        return project()
    if not cache.is_updated.get(layer):
        key, value = project()
        cache.is_updated[layer] = True
        return cache.cross_attention_cache.update(key, value, layer)
    kept: Any = cache.cross_attention_cache.layers[layer]
    return kept.keys, kept.values
