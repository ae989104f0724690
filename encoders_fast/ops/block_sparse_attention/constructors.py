"""How the lists of a BlockSparsePattern are made, and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import big_bird

_KEPT = 1024
SLICE = 16
"""Entries of a list's slices, at the least: by count, sums that are stored and added up then move an eighth of the
bytes that the entries do. BigBird's lists have 8, the global ones one for every block."""


class Lists(NamedTuple):
    """The int32 tensors of a BlockSparsePattern, which says what they mean."""

    row_starts: Tensor
    columns: Tensor
    multiplicities: Tensor
    column_starts: Tensor
    rows: Tensor
    column_multiplicities: Tensor
    row_slices: Tensor
    column_slices: Tensor


def blocks_of(tokens: int, block: int) -> int:
    """How many blocks hold `tokens` tokens."""
    if block < 1 or tokens < 1:
        raise ValueError(f"a pattern needs at least one token and blocks of at least one; they are {tokens}, {block}")
    # A length that torch.compile left open becomes a constant here: a pattern is one for one number of blocks.
    return len(range(0, tokens, block))


# ---- what was made is kept


class _Kept:
    """Holds Lists as attributes. Not in a dict: torch.compile would know a dict as it was when it first met it."""


_kept = _Kept()


def make(constructor: str, *args: Any) -> Lists:
    """The lists that `constructor` makes of `args`, the last of which is their device; at the second call, the same."""
    return getattr(_kept, _ensure(constructor, *args))


@torch.compiler.assume_constant_result
def _ensure(constructor: str, *args: Any) -> str:
    """The name under which `_kept` has the lists. A function of its own because torch.compile runs it as it is."""
    name = f"{constructor}{args}"
    if not hasattr(_kept, name):
        while len(vars(_kept)) >= _KEPT:
            delattr(_kept, next(iter(vars(_kept))))
        # What is kept serves later calls: no fake tensor, which torch.export would leave here, and none of inference
        # mode, which no backward pass may use.
        with torch.inference_mode(False), _disable_current_modes():
            *sizes, device = args
            setattr(_kept, name, _lists_of(_CONSTRUCTORS[constructor](*sizes), device))
    return name


def _lists_of(counts: np.ndarray, device: torch.device | str) -> Lists:
    """Compresses multiplicities [H, query blocks, key blocks]; one head is enough where all are equal."""
    if len(counts) > 1 and (counts == counts[:1]).all():
        counts = counts[:1]
    rows, columns = _compress(counts), _compress(counts.swapaxes(1, 2))
    arrays = (*rows, *columns, slices(rows[0]), slices(columns[0]))
    return Lists(*(torch.from_numpy(array.astype(np.int32)).to(device) for array in arrays))


def _compress(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    heads, rows, _ = counts.shape
    h, i, j = np.nonzero(counts)
    ends = np.cumsum(np.bincount(h * rows + i, minlength=heads * rows)).reshape(heads, rows)
    starts = np.concatenate((np.zeros((1, 1), dtype=ends.dtype), ends[:-1, -1:]))
    return np.concatenate((starts, ends), axis=1), j, counts[h, i, j]


def slices(starts: np.ndarray) -> np.ndarray:
    """How lists are shared out, as BlockSparsePattern says: starts [H, blocks + 1] -> [slices, 4]."""
    lengths, first = np.diff(starts).ravel(), starts[:, :-1].ravel()
    parts = np.maximum(lengths // SLICE, 1)
    order = np.argsort(parts == 1, kind="stable")
    lists = np.repeat(order, parts[order])
    number = np.arange(len(lists)) - np.repeat(parts[order].cumsum() - parts[order], parts[order])
    begin, end = (first[lists] + lengths[lists] * n // parts[lists] for n in (number, number + 1))
    return np.stack((lists, begin, end, np.where(number == 0, parts[lists], 0)), axis=1)


# ---- the constructors: multiplicities [H, query blocks, key blocks]


def _drop_future(counts: np.ndarray, block: int, query_tokens: int, key_tokens: int) -> np.ndarray:
    """Without the blocks of which no query of the row may see a key."""
    last_query = np.minimum(np.arange(1, counts.shape[1] + 1) * block, query_tokens) - 1
    first_key = np.arange(counts.shape[2]) * block
    return counts * (first_key <= last_query[:, None] + key_tokens - query_tokens)


def _big_bird(
    blocks: int,
    block: int,
    heads: int,
    random_blocks: int,
    layer: int,
    plan: str,
    training: bool,
    max_positions: int,
    causal: bool,
) -> np.ndarray:
    if plan not in big_bird.PAPER_LENGTHS:
        raise ValueError(f'plan must be "transformers" or "original"; it is {plan!r}')
    if heads < 1 or random_blocks < 0 or layer < 0:
        raise ValueError(
            f"heads must be at least 1, random_blocks and layer at least 0; they are {heads}, {random_blocks}, {layer}"
        )
    if plan == "original" or training:
        drawn = big_bird.plan(blocks, block, heads, random_blocks, layer, plan, max_positions)
    else:
        drawn = np.zeros((1, blocks - 2, random_blocks), dtype=np.int32)
    counts = np.repeat(_window(blocks, 3, (0, blocks - 1)), len(drawn), axis=0)
    h, i, _ = np.indices(drawn.shape)
    np.add.at(counts, (h, i + 1, drawn), 1)
    return _drop_future(counts, block, blocks * block, blocks * block) if causal else counts


def _big_bird_decoder(
    first: int, blocks: int, heads: int, random_blocks: int, layer: int, plan: str, training: bool
) -> np.ndarray:
    if plan not in big_bird.PAPER_LENGTHS:
        raise ValueError(f'plan must be "transformers" or "original"; it is {plan!r}')
    if heads < 1 or random_blocks < 0 or layer < 0:
        raise ValueError(
            f"heads must be at least 1, random_blocks and layer at least 0; they are {heads}, {random_blocks}, {layer}"
        )
    row, column = np.arange(blocks)[:, None], np.arange(blocks)
    sparse = 5 + 2 * random_blocks
    seen = (column <= row) & ((row < sparse) | (column == 0) | (column >= row - 1))
    if plan == "original" or training:
        drawn = big_bird.decoder_plan(blocks, heads, random_blocks, layer)[:, sparse:]
    else:
        drawn = np.zeros((1, max(blocks - sparse, 0), random_blocks), dtype=np.int32)
    counts = np.repeat(seen.astype(np.int32)[None], len(drawn), axis=0)
    h, i, _ = np.indices(drawn.shape)
    np.add.at(counts, (h, i + sparse, drawn), 1)
    return counts[:, first:]


def _window(blocks: int, width: int, global_blocks: tuple[int, ...]) -> np.ndarray:
    """A window and global blocks: [1, blocks, blocks]."""
    i = np.arange(blocks)
    counts = (abs(i[:, None] - i) <= width // 2).astype(np.int32)
    counts[list(global_blocks)] = 1
    counts[:, list(global_blocks)] = 1
    return counts[None]


def _sliding(
    blocks: int,
    block: int,
    heads: int,
    window_blocks: int,
    global_blocks: tuple[int, ...],
    extra_global_tokens: int,
    random_blocks: int,
    seed: int,
    causal: bool,
) -> np.ndarray:
    if heads < 1 or random_blocks < 0 or seed < 0:
        raise ValueError(
            f"heads must be at least 1, random_blocks and seed at least 0; they are {heads}, {random_blocks}, {seed}"
        )
    if window_blocks < 1 or window_blocks % 2 == 0:
        raise ValueError(f"window_blocks must be odd; it is {window_blocks}")
    prefix, rest = divmod(extra_global_tokens, block)
    if rest or not 0 <= prefix <= blocks:
        raise ValueError(
            f"extra_global_tokens must be a multiple of block, {block}, and at most all tokens; it is"
            f" {extra_global_tokens}"
        )
    body = blocks - prefix
    if not all(-body <= j < body for j in global_blocks):
        raise ValueError(f"global_blocks {global_blocks} must be in [{-body}, {body - 1}]")
    everywhere = (*range(prefix), *(prefix + j % body for j in global_blocks))
    counts = np.repeat(_window(blocks, window_blocks, everywhere), heads if random_blocks else 1, axis=0)
    if causal:
        counts = _drop_future(counts, block, blocks * block, blocks * block)
    if random_blocks == 0:
        return counts
    generator = np.random.RandomState(seed)
    for lists in counts:
        for i, row in enumerate(lists):
            free = np.flatnonzero(row[: i + 1 if causal else blocks] == 0)
            row[generator.permutation(free)[:random_blocks]] = 1
    return counts


def _full(query_blocks: int, key_blocks: int, block: int, causal: bool, tokens: tuple[int, int] | None) -> np.ndarray:
    counts = np.ones((1, query_blocks, key_blocks), dtype=np.int32)
    query_tokens, key_tokens = tokens or (query_blocks * block, key_blocks * block)
    return _drop_future(counts, block, query_tokens, key_tokens) if causal else counts


_CONSTRUCTORS: dict[str, Callable[..., np.ndarray]] = {
    "big_bird": _big_bird,
    "big_bird_decoder": _big_bird_decoder,
    "sliding": _sliding,
    "full": _full,
}


def from_mask(mask: Tensor, shape: tuple[int, int], tokens: tuple[int, int], block: int, causal: bool) -> Lists:
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        raise TypeError(
            f"mask must be a tensor of bool or integers; it is {getattr(mask, 'dtype', type(mask).__name__)}"
        )
    if mask.dim() not in (2, 3) or mask.shape[-2:] != shape or mask.shape[0] == 0:
        raise ValueError(f"mask {tuple(mask.shape)} must be {shape} or (heads, {shape[0]}, {shape[1]})")
    counts = mask.cpu().numpy().reshape(-1, *shape)
    counts = counts.astype(np.int32)
    if (counts < 0).any():
        raise ValueError(f"multiplicities must not be negative; mask has {counts.min()}")
    return _lists_of(_drop_future(counts, block, *tokens) if causal else counts, mask.device)


def dense(lists: Lists, query_tokens: int, key_tokens: int, block: int, causal: bool) -> Tensor:
    """The multiplicity of every query and key: int32 [H or 1, Tq, Tk]."""
    heads, query_blocks = lists.row_starts.shape[0], lists.row_starts.shape[1] - 1
    key_blocks = lists.column_starts.shape[1] - 1
    lengths = lists.row_starts.diff().flatten().long()
    row = torch.arange(heads * query_blocks, device=lengths.device).repeat_interleave(lengths)
    counts = lists.columns.new_zeros(heads * query_blocks, key_blocks)
    counts[row, lists.columns.long()] = lists.multiplicities
    counts = counts.view(heads, query_blocks, key_blocks)
    counts = counts.repeat_interleave(block, 1)[:, :query_tokens].repeat_interleave(block, 2)[:, :, :key_tokens]
    return counts.tril(key_tokens - query_tokens) if causal else counts
