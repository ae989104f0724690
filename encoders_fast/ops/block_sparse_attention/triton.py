"""block_sparse_attention in Triton: what is launched, and in which tiles.

A program takes one slice of one block's list, see BlockSparsePattern. Results of lists in several slices are stored in
float32 and added up by a second kernel, in the slices' order.

Two products for every listed block forward, and backward three along the rows' lists and four along the columns': with
blocks of 64 and heads as wide 1.05, 1.57 and 2.10 MFLOP, for 16 KiB that are read in a half type. With BigBird's lists
these are five times what the tensors have; the rest comes from the cache, where a sample's heads stay while it is their
turn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..._dropout import scale as scale_of_kept
from .._triton import INTERPRETED, launch, precision
from .checks import Options, new_result
from .constructors import Lists
from .triton_backward import backward_keys, backward_queries, combine_keys, combine_queries
from .triton_forward import combine, forward

LOG_2_E = 1.4426950408889634


class _Tiles(NamedTuple):
    tile: int
    """Tokens of a program, of which a small block has fewer."""
    step: int
    """Tokens of the list that it takes at a time."""
    warps: int
    stages: int


# By kernel, by half types (2 bytes) and float32, and by the heads' width. A tile of 64 is what a warp group multiplies
# on Hopper and a block of BigBird; 4 warps share 64 rows without any row on two of them. Where registers do not
# suffice, steps become shorter first and then tiles, by which what is read grows; 8 warps share the columns of wide
# heads. float32 in three products of TF32 has every factor in two parts: its kernels spill even in the smallest tiles
# there are, 60 to 750 bytes at a width of 256 and 60 for the keys at 128. Heads so wide are rare in float32.
_TILES = {
    (forward, 2): {64: _Tiles(64, 64, 4, 3), 128: _Tiles(64, 64, 4, 3), 256: _Tiles(64, 32, 8, 2)},
    (backward_queries, 2): {64: _Tiles(64, 64, 4, 3), 128: _Tiles(64, 64, 4, 2), 256: _Tiles(64, 16, 8, 2)},
    (backward_keys, 2): {64: _Tiles(64, 64, 4, 3), 128: _Tiles(64, 32, 8, 3), 256: _Tiles(32, 32, 8, 2)},
    (forward, 4): {64: _Tiles(64, 32, 4, 3), 128: _Tiles(32, 32, 4, 2), 256: _Tiles(16, 16, 4, 2)},
    (backward_queries, 4): {64: _Tiles(32, 16, 4, 3), 128: _Tiles(16, 32, 4, 2), 256: _Tiles(16, 16, 8, 2)},
    (backward_keys, 4): {64: _Tiles(32, 32, 4, 3), 128: _Tiles(16, 32, 4, 2), 256: _Tiles(16, 16, 4, 2)},
}


def _tiles(kernel: Any, query: Tensor, options: Options) -> _Tiles:
    size = 2 if INTERPRETED else query.element_size()  # the interpreter has no registers, but takes its time for a step
    tiles = _TILES[kernel, size][max(64, _width(query))]
    if options.dropout_p > 0 and kernel is not forward:  # random words take registers
        tiles = tiles._replace(step=max(tiles.step // 2, 16))
    if torch.version.hip is not None:  # AMD's GPUs have 64 KB of shared memory
        tiles = tiles._replace(stages=min(tiles.stages, 2))
    return tiles


def _width(query: Tensor) -> int:
    return max(16, triton.next_power_of_2(query.shape[3]))


class _Share(NamedTuple):
    """How programs share out the lists of one side, rows or columns."""

    slices: Tensor
    items: int
    """Slices of all lists."""
    slots: int
    """No fewer than the slices of lists in several, which come first."""
    copies: int
    """Of the lists: samples, and heads where these share one list."""
    heads: int
    """That share a list."""
    blocks: int
    """Lists of a head."""
    pieces: int
    """Tiles of a block."""
    constants: dict[str, int]

    @property
    def programs(self) -> int:
        return self.copies * self.items * self.pieces

    @property
    def parts(self) -> int:
        return self.copies * self.slots * self.pieces


def _share(slices: Tensor, starts: Tensor, query: Tensor, block: int, tile: int) -> _Share:
    (B, H, _, K), (pattern_heads, ends) = query.shape, starts.shape
    further = len(slices) - pattern_heads * (ends - 1)  # a list in n slices has n - 1 of them
    heads = H // pattern_heads
    tile = min(tile, max(16, triton.next_power_of_2(block)))
    pieces = triton.cdiv(block, tile)
    constants = {"K": K, "WIDTH": _width(query), "BLOCK": block, "PIECES": pieces, "TILE": tile}
    return _Share(slices, len(slices), min(len(slices), 2 * further), B * heads, heads, ends - 1, pieces, constants)


def _walk(query: Tensor, options: Options, share: _Share, tiles: _Tiles, tokens: tuple[int, int], Tk: int) -> Any:
    """The constants of a kernel that walks along lists. tokens: on its own side and on the listed one."""
    (own, listed), block = tokens, options.block
    step = min(tiles.step, max(16, triton.next_power_of_2(listed)))
    return share.constants | {
        "STEP": step,
        "RAGGED": block % share.constants["TILE"] != 0 or own % block != 0,
        "LISTED_RAGGED": block % step != 0 or listed % block != 0,
        "CAUSAL": options.causal,
        "FOURS": block % 4 == 0 and Tk % 4 == 0,
        "PRECISION": precision(query.dtype),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def _dense(tensor: Tensor) -> Tensor:
    """With neighbouring elements in a row; a copy only where strides leave no other way."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(step for tensor in tensors for step in tensor.stride()[:3])


def _steps(head_mask: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if head_mask is None else head_mask.stride()


def _state(options: Options) -> Tensor | None:
    return options.rng_state.contiguous() if options.dropout_p > 0 and options.rng_state is not None else None


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, lists: Lists, options: Options
) -> tuple[Tensor, Tensor]:
    query, key, value = _dense(query), _dense(key), _dense(value)
    (B, H, Tq, _), Tk = query.shape, key.shape[2]
    tiles = _tiles(forward, query, options)
    share = _share(lists.row_slices, lists.row_starts, query, options.block, tiles.tile)
    out, log_sum_exp = new_result(query), query.new_empty((B, H, Tq), dtype=torch.float32)
    tile, width = share.constants["TILE"], share.constants["WIDTH"]
    part_sums = query.new_empty((share.parts, tile, width), dtype=torch.float32)
    part_totals = query.new_empty((share.parts, 2, tile), dtype=torch.float32)
    query_real, kept_factor = _bytes(options.query_padding_mask), scale_of_kept(options.dropout_p)
    launch(
        query.device,
        forward,
        [share.programs],
        *(query, key, value, _bytes(options.key_padding_mask), query_real, options.head_mask, _state(options)),
        *(out, log_sum_exp, part_sums, part_totals, share.slices, lists.columns, lists.multiplicities),
        *(share.items, share.slots, share.heads, H, share.blocks, Tq, Tk),
        *(*_strides(query, key, value), *_steps(options.head_mask)),
        *(options.scale * LOG_2_E, round(options.dropout_p * 2**32), kept_factor),
        **_walk(query, options, share, tiles, (Tq, Tk), Tk),
    )
    if share.parts > 0:
        launch(
            query.device,
            combine,
            [share.parts],
            *(query_real, options.head_mask, out, log_sum_exp, part_sums, part_totals, share.slices),
            *(share.slots, share.heads, H, share.blocks, Tq, *_steps(options.head_mask), kept_factor),
            **share.constants,
            num_warps=8,
        )
    return out, log_sum_exp


def block_sparse_attention_backward(
    dy: Tensor,
    dlog_sum_exp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum_exp: Tensor,
    lists: Lists,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    dy, query, key, value = _dense(dy), _dense(query), _dense(key), _dense(value)
    log_sum_exp = log_sum_exp.contiguous()
    inverses, means = query.new_empty((2, *log_sum_exp.shape), dtype=torch.float32).unbind()
    dquery = _backward_queries(
        dy, dlog_sum_exp, query, key, value, _dense(out), log_sum_exp, inverses, means, lists, options
    )
    return dquery, *_backward_keys(dy, query, key, value, log_sum_exp, inverses, means, lists, options)


def _backward_queries(
    dy: Tensor,
    dlog_sum_exp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum_exp: Tensor,
    inverses: Tensor,
    means: Tensor,
    lists: Lists,
    options: Options,
) -> Tensor:
    """dquery. Fills inverses and means, [B, H, Tq] as log_sum_exp, with what `_backward_keys` needs."""
    H, Tq, Tk = query.shape[1], query.shape[2], key.shape[2]
    tiles = _tiles(backward_queries, query, options)
    share = _share(lists.row_slices, lists.row_starts, query, options.block, tiles.tile)
    dquery = new_result(query)
    tile, width = share.constants["TILE"], share.constants["WIDTH"]
    exact = query.dtype == torch.float32 or query.shape[3] < 16
    part_sums = query.new_empty((share.parts, 1 + exact, tile, width), dtype=torch.float32)
    part_totals = query.new_empty((share.parts, 2, tile), dtype=torch.float32)
    dlog_sum_exp = None if dlog_sum_exp is None else dlog_sum_exp.contiguous()
    launch(
        query.device,
        backward_queries,
        [share.programs],
        *(dy, dlog_sum_exp, query, key, value, out, log_sum_exp),
        *(_bytes(options.key_padding_mask), options.head_mask, _state(options), dquery, inverses, means),
        *(part_sums, part_totals, share.slices, lists.columns, lists.multiplicities),
        *(share.items, share.slots, share.heads, H, share.blocks, Tq, Tk),
        *(*_strides(dy, query, key, value, out), *_steps(options.head_mask), options.scale, options.scale * LOG_2_E),
        *(round(options.dropout_p * 2**32), scale_of_kept(options.dropout_p)),
        **_walk(query, options, share, tiles, (Tq, Tk), Tk),
        EXACT=exact,
    )
    if share.parts > 0:
        launch(
            query.device,
            combine_queries,
            [share.parts],
            *(dlog_sum_exp, dquery, inverses, means, part_sums, part_totals, share.slices),
            *(share.slots, share.heads, H, share.blocks, Tq, options.scale),
            **share.constants,
            EXACT=exact,
            num_warps=8,
        )
    return dquery


def _backward_keys(
    dy: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_sum_exp: Tensor,
    inverses: Tensor,
    means: Tensor,
    lists: Lists,
    options: Options,
) -> tuple[Tensor, Tensor]:
    H, Tq, Tk = query.shape[1], query.shape[2], key.shape[2]
    tiles = _tiles(backward_keys, query, options)
    share = _share(lists.column_slices, lists.column_starts, query, options.block, tiles.tile)
    dkey, dvalue = new_result(key), new_result(value)
    tile, width = share.constants["TILE"], share.constants["WIDTH"]
    part_sums = query.new_empty((share.parts, 2, tile, width), dtype=torch.float32)
    launch(
        query.device,
        backward_keys,
        [share.programs],
        *(dy, query, key, value, log_sum_exp, inverses, means),
        *(_bytes(options.key_padding_mask), options.head_mask, _state(options), dkey, dvalue),
        *(part_sums, share.slices, lists.rows, lists.column_multiplicities),
        *(share.items, share.slots, share.heads, H, share.blocks, Tq, Tk),
        *(*_strides(dy, query, key, value), *_steps(options.head_mask), options.scale, options.scale * LOG_2_E),
        *(round(options.dropout_p * 2**32), scale_of_kept(options.dropout_p)),
        **_walk(query, options, share, tiles, (Tk, Tq), Tk),
    )
    if share.parts > 0:
        launch(
            query.device,
            combine_keys,
            [share.parts],
            *(dkey, dvalue, part_sums, share.slices, share.slots, share.heads, H, share.blocks, Tk),
            **share.constants,
            num_warps=8,
        )
    return dkey, dvalue
