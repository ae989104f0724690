"""Which blocks a BigBird of a given configuration attends to.

Source: Big Bird: Transformers for Longer Sequences (Zaheer et al., 2020), section 2.
"""

from __future__ import annotations

from typing import Any

import torch

from ..ops import BlockSparsePattern
from .configuration import BIG_BIRD_OPTIONS

ATTENTION_TYPES = ("original_full", "block_sparse")


def check_attention_type(attention_type: str) -> None:
    """Raises ValueError for a type that is neither of the two."""
    if attention_type not in ATTENTION_TYPES:
        raise ValueError(f"attention_type must be original_full or block_sparse; it is {attention_type!r}")


def check_pattern(config: Any) -> None:
    """Raises ValueError, with the values, for a configuration whose blocks cannot be told."""
    plan, r = option(config, "random_plan"), config.num_random_blocks
    if config.block_size < 1 or r < 0:
        raise ValueError(
            f"block_size must be at least 1, num_random_blocks at least 0; they are {config.block_size}, {r}"
        )
    if plan not in ("transformers", "original", "anywhere"):
        raise ValueError(f'random_plan must be "transformers", "original" or "anywhere"; it is {plan!r}')
    own = {name: option(config, name) for name in ("window_blocks", "global_blocks", "extra_global_tokens")}
    own = {name: value for name, value in own.items() if value != BIG_BIRD_OPTIONS[name]}
    if own and plan != "anywhere":
        raise ValueError(f'{own} need random_plan="anywhere"; it is {plan!r}')
    if plan == "anywhere" and config.is_decoder:
        raise ValueError('random_plan="anywhere" is for encoders: a decoder\'s blocks must not depend on what follows')


def option(config: Any, name: str) -> Any:
    """An option of `BigBirdConfig`, which transformers' own configuration does not have."""
    value = getattr(config, name, BIG_BIRD_OPTIONS[name])
    return tuple(value) if isinstance(value, list) else value


def longest_full(config: Any) -> int:
    """Up to so many tokens attention is full: all that a block sees, and room to draw the random ones from."""
    return (5 + 2 * config.num_random_blocks) * config.block_size


def pattern_of(
    config: Any, query_tokens: int, key_tokens: int, layer: int, training: bool, device: torch.device
) -> BlockSparsePattern:
    """The pattern of a layer for all heads that it was made with. A causal decoder's queries are the last of the keys;
    its pattern begins with the block of the first of them, and so may have a few queries more."""
    block, heads, r = config.block_size, config.num_attention_heads, config.num_random_blocks
    plan = option(config, "random_plan")
    if config.is_decoder and option(config, "causal_block_sparse"):
        query_tokens += (key_tokens - query_tokens) % block
        return BlockSparsePattern.big_bird_decoder(
            query_tokens,
            key_tokens,
            block=block,
            heads=heads,
            random_blocks=r,
            layer=layer,
            plan=plan,
            training=training,
            device=device,
        )
    if plan == "anywhere":
        return BlockSparsePattern.sliding(
            key_tokens,
            block=block,
            heads=heads,
            window_blocks=option(config, "window_blocks"),
            global_blocks=option(config, "global_blocks"),
            extra_global_tokens=option(config, "extra_global_tokens"),
            random_blocks=r,
            seed=layer,
            device=device,
        )
    return BlockSparsePattern.big_bird(
        key_tokens,
        block=block,
        heads=heads,
        random_blocks=r,
        layer=layer,
        plan=plan,
        training=training,
        max_positions=config.max_position_embeddings,
        device=device,
    )
