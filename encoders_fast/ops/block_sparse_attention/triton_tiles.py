"""What block_sparse_attention's Triton kernels share on the device: who does what, and which tokens a list names.

A program has a tile of the tokens of one block, up to 64 of them, and walks along a slice of that block's list. It goes
in steps of as many tokens, whatever a block is: several small blocks make one step, a large block takes several. What
it meets is counted by positions, which are the list's tokens from the slice's first entry on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_language import kept, kept_in_fours


@triton.jit
def assignment(slices, items, PIECES: tl.constexpr):
    """This program's list, its first entry and the one behind its last, the slices of its list (0 if it has not the
    first of them), its slice, its number among the copies of all lists, and the piece of the block that is its tile."""
    program = tl.program_id(0)
    item = program // PIECES % items
    at = slices + item * 4
    copy = program // PIECES // items
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), item, copy, program % PIECES


@triton.jit
def sample_and_head(of_list, copy, share, blocks):
    """Of a copy of a list, where `share` heads have each list of `blocks` to a head; 64 bits, for offsets."""
    return (copy // share).to(tl.int64), (of_list // blocks + copy % share).to(tl.int64)


@triton.jit
def slot_of(copy, item, piece, slots, PIECES: tl.constexpr):
    """Where the sums of a slice's tile are stored."""
    return ((copy * slots + item) * PIECES + piece).to(tl.int64)


@triton.jit
def own(block, piece, T, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """The tokens of a piece of a block, and which of them exist."""
    inside = piece * TILE + tl.arange(0, TILE)
    token = block.to(tl.int64) * BLOCK + inside
    return token, (inside < BLOCK) & (token < T)


@triton.jit
def entries(of_list, position, end, other, BLOCK: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr):
    """What a list says at TILE positions, from `position` on and STEP apart: one number where all are of one block.

    Kernels ask for it one step ahead: so the loads of keys and values, which depend on it, can be started ahead too.
    """
    if BLOCK % (TILE * STEP) == 0:
        found = tl.load(of_list + position // BLOCK, position < end, other)
    else:
        place = position + tl.arange(0, TILE) * STEP
        found = tl.load(of_list + place // BLOCK, place < end, other)
    return found


@triton.jit
def listed(block, position, end, T, BLOCK: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr):
    """The tokens at these positions, and which of them exist; `block`: what `entries` found."""
    steps = tl.arange(0, TILE) * STEP
    if BLOCK % (TILE * STEP) == 0:
        token = block.to(tl.int64) * BLOCK + position % BLOCK + steps
        there = token < T
    else:
        place = position + steps
        token = block.to(tl.int64) * BLOCK + place % BLOCK
        there = (place < end) & (token < T)
    return token, there


@triton.jit
def key_bonus(multiplicity, key_real, token, there, RAGGED: tl.constexpr):
    """What is added to the scores of listed keys: log2 of their multiplicities, and -inf where no key counts.

    key_real: of the sample, or None. RAGGED: not all tokens of all tiles exist.
    """
    added = tl.log2(multiplicity.to(tl.float32))
    if key_real is not None:
        added = tl.where(tl.load(key_real + token, there, 0) != 0, added, float("-inf"))
    elif RAGGED:
        added = tl.where(there, added, float("-inf"))
    return added


@triton.jit
def rows(base, token, there, step, K: tl.constexpr, WIDTH: tl.constexpr, RAGGED: tl.constexpr):
    """A tile [tokens, WIDTH] of a [T, K] with `step` between its rows; zeros outside."""
    width = tl.arange(0, WIDTH)
    at = base + token[:, None] * step + width[None, :]
    if RAGGED:
        tile = tl.load(at, there[:, None] & (width < K)[None, :], 0.0)
    elif WIDTH != K:
        tile = tl.load(at, (width < K)[None, :], 0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def keep_of_listed_keys(
    rng_state, row, token, columns, position, end, Tk, threshold,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """Dropout's mask [ROWS, TILE]; `row`: the number of each query's first element. FOURS: no four neighbours of one
    random block are of two blocks of keys or two rows."""
    if FOURS:
        block = entries(columns, position, end, 0, BLOCK, TILE // 4, 4)
        fourth, _ = listed(block, position, end, Tk, BLOCK, TILE // 4, 4)
        keep = kept_in_fours(rng_state, (row // 4)[:, None] + (fourth // 4)[None, :], threshold, ROWS, TILE)
    else:
        keep = kept(rng_state, row[:, None] + token[None, :], threshold)
    return keep


@triton.jit
def keep_of_own_keys(
    rng_state, row, token, first, threshold, QUERIES: tl.constexpr, TILE: tl.constexpr, FOURS: tl.constexpr
):
    """The same for the keys from `first` on and listed queries, transposed: [TILE, QUERIES]."""
    if FOURS:
        fourth = first // 4 + tl.arange(0, TILE // 4)
        keep = kept_in_fours(rng_state, (row // 4)[:, None] + fourth[None, :], threshold, QUERIES, TILE)
        keep = tl.trans(keep)
    else:
        keep = kept(rng_state, row[None, :] + token[:, None], threshold)
    return keep
