"""Every constructor of BlockSparsePattern against what its docstring says, written out block by block."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders_fast.ops import BlockSparsePattern


def blocks(pattern: BlockSparsePattern) -> Tensor:
    """Multiplicities [H or 1, query blocks, key blocks] of a pattern that is not causal."""
    return pattern.dense()[:, :: pattern.block, :: pattern.block]


def test_evaluation_sees_block_0_once_more_for_every_random_block():
    n, r = 12, 3
    expected = torch.zeros(n, n, dtype=torch.int32)
    for i in range(n):
        expected[i, [0, n - 1, *(j for j in (i - 1, i, i + 1) if 0 <= j < n)]] = 1
    expected[0] = expected[-1] = 1
    expected[1:-1, 0] = 1 + r
    pattern = BlockSparsePattern.big_bird(n * 16, block=16, heads=4, random_blocks=r)
    assert torch.equal(blocks(pattern), expected[None])
    assert pattern.heads == 1


def test_original_draws_in_evaluation_too():
    of = {
        (plan, training): BlockSparsePattern.big_bird(2048, heads=2, layer=5, plan=plan, training=training)
        for plan in ("transformers", "original")
        for training in (True, False)
    }
    assert torch.equal(of["original", True].dense(), of["original", False].dense())
    # 2048 tokens have the paper's plan there, which reaches behind the first 2 r + 5 blocks.
    assert blocks(of["original", True])[:, 2:12, 11:15].any()
    assert not blocks(of["transformers", True])[:, 2:9, 11:15].any()
    for tokens in (1024, 3072, 4096, 1280):
        pair = [BlockSparsePattern.big_bird(tokens, plan=plan, training=True) for plan in ("transformers", "original")]
        assert torch.equal(pair[0].dense(), pair[1].dense())


@pytest.mark.parametrize("plan", ["transformers", "original"])
def test_without_random_blocks(plan):
    for training in (True, False):
        pattern = BlockSparsePattern.big_bird(1024, random_blocks=0, plan=plan, training=training)
        window = BlockSparsePattern.sliding(1024)
        assert torch.equal(pattern.dense(), window.dense())


def test_short_input_is_full():
    limit = (5 + 2 * 3) * 16
    assert BlockSparsePattern.big_bird(limit, block=16).dense().eq(1).all()
    assert not BlockSparsePattern.big_bird(limit + 1, block=16).dense().all()
    assert torch.equal(
        BlockSparsePattern.big_bird(limit, block=16, causal=True).dense()[0], torch.ones(limit, limit).tril()
    )


@pytest.mark.parametrize("tokens", [177, 191, 192])
def test_a_ragged_length_has_the_pattern_of_the_whole_blocks(tokens):
    whole = BlockSparsePattern.big_bird(192, block=16, heads=2, training=True)
    ragged = BlockSparsePattern.big_bird(tokens, block=16, heads=2, training=True)
    assert ragged.dense().shape == (2, tokens, tokens)
    assert torch.equal(ragged.dense(), whole.dense()[:, :tokens, :tokens])


def test_numpy_global_generator_is_left_alone():
    np.random.seed(11)
    before = np.random.get_state()[1].copy()
    BlockSparsePattern.big_bird(4096, heads=3, layer=77, training=True)
    BlockSparsePattern.sliding(1000, heads=3, random_blocks=2, seed=77)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize(("window", "global_blocks"), [(1, ()), (3, (0, -1)), (5, (3,)), (7, (0, 1, -2))])
def test_sliding(window, global_blocks):
    n = 9
    expected = torch.zeros(n, n, dtype=torch.int32)
    for i in range(n):
        for j in range(n):
            seen = abs(i - j) <= window // 2 or any(g % n in (i, j) for g in global_blocks)
            expected[i, j] = int(seen)
    pattern = BlockSparsePattern.sliding(n * 8, block=8, window_blocks=window, global_blocks=global_blocks)
    assert torch.equal(blocks(pattern)[0], expected)


def test_extra_global_tokens_stand_in_front():
    """The rest of the sequence has the pattern that it would have alone."""
    alone = BlockSparsePattern.sliding(70, block=8, global_blocks=(1,), window_blocks=3)
    pattern = BlockSparsePattern.sliding(86, block=8, global_blocks=(1,), window_blocks=3, extra_global_tokens=16)
    dense = pattern.dense()[0]
    assert dense[:16].eq(1).all()
    assert dense[:, :16].eq(1).all()
    # Across the border block 2 has a neighbour in front, which is global anyway.
    assert torch.equal(dense[16:, 16:], alone.dense()[0])


def test_random_blocks_over_the_whole_sequence():
    plain = blocks(BlockSparsePattern.sliding(320, block=8))[0]
    drawn = blocks(BlockSparsePattern.sliding(320, block=8, heads=3, random_blocks=2, seed=1))
    extra = drawn - plain
    assert extra.min() == 0
    assert extra[:, 1:-1].sum(-1).eq(2).all()
    assert extra[:, 0].sum() == extra[:, -1].sum() == 0
    assert not torch.equal(extra[0], extra[1])
    assert extra.nonzero()[:, 2].max() > 30
    again = BlockSparsePattern.sliding(320, block=8, heads=3, random_blocks=2, seed=2)
    assert not torch.equal(blocks(again), drawn)
    crowded = BlockSparsePattern.sliding(40, block=8, random_blocks=9)
    assert crowded.dense().eq(1).all(), "where there are fewer candidates, all of them"


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 63, 64, 65, 200])
def test_causal(tokens):
    """What is left of the pattern without `causal`, element by element; and no block is listed in vain."""
    for make in (
        lambda causal: BlockSparsePattern.big_bird(
            tokens, block=8, heads=2, random_blocks=1, training=True, causal=causal
        ),
        lambda causal: BlockSparsePattern.sliding(tokens, block=8, global_blocks=(0,), causal=causal),
        lambda causal: BlockSparsePattern.full(tokens, block=8, causal=causal),
    ):
        causal = make(True)
        assert torch.equal(causal.dense(), make(False).dense().tril())
        last_query = torch.arange(causal.row_starts.shape[1] - 1) * 8 + 7
        lengths = causal.row_starts.diff().flatten()
        assert (causal.columns * 8 <= last_query.repeat(causal.heads).repeat_interleave(lengths)).all()
    drawn = BlockSparsePattern.sliding(tokens, block=8, heads=2, random_blocks=2, causal=True).dense()
    assert torch.equal(drawn, drawn.tril())


@pytest.mark.parametrize(("query_tokens", "key_tokens"), [(5, 30), (30, 5), (8, 16), (17, 16), (16, 17), (1, 9)])
def test_full_of_two_lengths(query_tokens, key_tokens):
    assert BlockSparsePattern.full(query_tokens, key_tokens, block=8).dense().eq(1).all()
    dense = BlockSparsePattern.full(query_tokens, key_tokens, block=8, causal=True).dense()
    q, k = torch.arange(query_tokens)[:, None], torch.arange(key_tokens)
    assert torch.equal(dense[0], (k <= q + key_tokens - query_tokens).int())


@pytest.mark.parametrize("training", [True, False])
def test_rows_of_a_decoder_do_not_depend_on_what_follows(training):
    def make(*tokens: int) -> Tensor:
        args = {"block": 8, "heads": 3, "random_blocks": 2, "layer": 4, "training": training}
        return BlockSparsePattern.big_bird_decoder(*tokens, **args).dense()

    long = make(200)
    assert torch.equal(long, long.tril())
    for tokens in (1, 8, 72, 73, 150, 199):
        assert torch.equal(make(tokens), long[:, :tokens, :tokens] if tokens > 72 else long[:1, :tokens, :tokens])
    for query_tokens in (200 - 96, 200 - 8 * 20, 200 - 8 * 24):
        assert torch.equal(make(query_tokens, 200).expand(long[:, -query_tokens:].shape), long[:, -query_tokens:])
    counts = long[0, 7::8, ::8]
    assert counts[:9].eq(torch.ones(9, 25).tril()).all(), "the first 5 + 2 * random_blocks blocks see all before them"
    for i in range(9, 25):
        assert counts[i, [i - 1, i]].eq(1).all()
        assert counts[i].sum() == 3 + 2
        assert counts[i, 0] == (1 if training else 3)


def test_some_heads():
    pattern = BlockSparsePattern.sliding(100, block=8, heads=4, random_blocks=2)
    some = pattern.of_heads([3, 1])
    assert torch.equal(some.dense(), pattern.dense()[[3, 1]])
    twin = BlockSparsePattern.from_mask(blocks(some), 100, block=8)
    assert all(torch.equal(a, b) for a, b in zip(some.lists, twin.lists, strict=True)), "its transpose too"
    shared = BlockSparsePattern.sliding(100)
    assert shared.of_heads([2]) is shared


def test_from_mask():
    mask = torch.tensor([[[1, 0, 3], [0, 0, 0]], [[0, 2, 1], [1, 1, 1]]])
    pattern = BlockSparsePattern.from_mask(mask, 7, 10, block=4)
    expected = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :7, :10]
    assert torch.equal(pattern.dense(), expected.int())
    shared = BlockSparsePattern.from_mask(mask[0].bool(), 7, 10, block=4)
    assert torch.equal(shared.dense(), expected[:1].bool().int())
    both = BlockSparsePattern.from_mask(torch.stack([mask[0], mask[0]]), 7, 10, block=4)
    assert both.heads == 1, "equal heads share one list"


def test_lists_and_their_transpose():
    mask = torch.randint(0, 3, (3, 5, 4), generator=torch.Generator().manual_seed(0))
    mask[1, 2], mask[:, :, 1] = 0, 0  # a row and a column without entries
    pattern = BlockSparsePattern.from_mask(mask, 20, 16, block=4)
    assert all(tensor.dtype == torch.int32 and tensor.is_contiguous() for tensor in pattern.lists)
    assert pattern.row_starts.shape == (3, 6)
    assert pattern.column_starts.shape == (3, 5)
    by_row, by_column = torch.zeros_like(mask), torch.zeros_like(mask)
    for h in range(3):
        for i in range(5):
            entries = slice(pattern.row_starts[h, i], pattern.row_starts[h, i + 1])
            assert pattern.columns[entries].diff().gt(0).all()
            by_row[h, i, pattern.columns[entries].long()] = pattern.multiplicities[entries].long()
        for j in range(4):
            entries = slice(pattern.column_starts[h, j], pattern.column_starts[h, j + 1])
            assert pattern.rows[entries].diff().gt(0).all()
            by_column[h, pattern.rows[entries].long(), j] = pattern.column_multiplicities[entries].long()
    assert torch.equal(by_row, mask)
    assert torch.equal(by_column, mask)


def test_is_made_once_and_stays_as_it_is():
    first = BlockSparsePattern.big_bird(1000, heads=2, training=True)
    again = BlockSparsePattern.big_bird(1010, heads=2, training=True)
    assert again.columns is first.columns, "both lengths have 16 blocks"
    assert BlockSparsePattern.big_bird(1000, heads=2, training=True, layer=1).columns is not first.columns
    with pytest.raises(AttributeError):
        first.block = 32
    assert first.to("cpu") is first
    assert first.to("meta") is first.to("meta")
    assert first.to("meta").columns.is_meta
    for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert torch.equal(twin.dense(), first.dense())
    assert repr(BlockSparsePattern.sliding(100, causal=True)) == (
        "BlockSparsePattern(100 x 100 tokens, block=64, heads=1, 3 blocks, causal, device='cpu')"
    )


def test_a_bounded_number_is_kept(monkeypatch):
    from encoders_fast.ops.block_sparse_attention import constructors

    monkeypatch.setattr(constructors, "_KEPT", 3)
    made = [BlockSparsePattern.full(tokens, block=1) for tokens in range(1, 9)]
    assert len(vars(constructors._kept)) == 3
    assert [pattern.dense().numel() for pattern in made] == [tokens**2 for tokens in range(1, 9)]


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda p: p.big_bird(0), ValueError, "at least one token and blocks of at least one; they are 0, 64"),
        (lambda p: p.full(3, 4, block=0), ValueError, "they are 3, 0"),
        (lambda p: p.big_bird(1024, plan="google"), ValueError, '"transformers" or "original"; it is \'google\''),
        (lambda p: p.big_bird(1024, heads=0), ValueError, "heads must be at least 1, .* they are 0, 3, 0"),
        (lambda p: p.big_bird(1024, layer=-1), ValueError, "they are 12, 3, -1"),
        (lambda p: p.big_bird(4096, training=True, max_positions=2048), ValueError, "4096 .*max_positions, 2048"),
        (
            lambda p: p.big_bird(4096, block=256, random_blocks=2, training=True),
            ValueError,
            "random_blocks 2 is too many: query block 2 has 0 candidates",
        ),
        (
            lambda p: p.big_bird_decoder(60, 64, block=8),
            ValueError,
            "query_tokens 60 must be .* a multiple of block, 8",
        ),
        (lambda p: p.sliding(64, block=8, window_blocks=4), ValueError, "window_blocks must be odd; it is 4"),
        (
            lambda p: p.sliding(64, block=8, global_blocks=(8,)),
            ValueError,
            r"global_blocks \(8,\) must be in \[-8, 7\]",
        ),
        (lambda p: p.sliding(64, block=8, extra_global_tokens=9), ValueError, "a multiple of block, 8, .* it is 9"),
        (lambda p: p.sliding(64, block=8, extra_global_tokens=72), ValueError, "at most all tokens; it is 72"),
        (lambda p: p.sliding(64, random_blocks=-1), ValueError, "they are 1, -1, 0"),
        (lambda p: p.from_mask(torch.ones(2, 2), 4, block=2), TypeError, "bool or integers; it is torch.float32"),
        (lambda p: p.from_mask([[True]], 4), TypeError, "it is list"),
        (lambda p: p.from_mask(torch.ones(2, 3).bool(), 4, block=2), ValueError, r"mask \(2, 3\) must be \(2, 2\) or"),
        (lambda p: p.from_mask(torch.tensor([[-1]]), 4), ValueError, "must not be negative; mask has -1"),
    ],
)
def test_bad_arguments(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make(BlockSparsePattern)


def test_slices():
    mask = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[1, 5:9], mask[2, :, 3:30] = False, False
    pattern = BlockSparsePattern.from_mask(mask, 40, 50, block=1)
    for starts, slices in ((pattern.row_starts, pattern.row_slices), (pattern.column_starts, pattern.column_slices)):
        ends = torch.stack((starts[:, :-1].flatten(), starts[:, 1:].flatten()), dim=1).tolist()
        lengths = [last - first for first, last in ends]
        assert max(lengths) >= 32
        assert min(lengths) == 0
        whole, i = [], 0
        slices = slices.tolist()
        while i < len(slices):
            row, begin, _, parts = slices[i]
            pieces = slices[i : i + parts]
            assert [piece[0] for piece in pieces] == [row] * parts
            assert [piece[3] for piece in pieces[1:]] == [0] * (parts - 1)
            assert [piece[2] for piece in pieces[:-1]] == [piece[1] for piece in pieces[1:]]
            assert [begin, pieces[-1][2]] == ends[row]
            assert all(16 <= last - first < 32 for _, first, last, _ in pieces) or parts == 1
            assert parts == max(lengths[row] // 16, 1)
            whole.append((parts == 1, row))
            i += parts
        assert whole == sorted(whole), "long lists first"
        assert sorted(row for _, row in whole) == list(range(len(lengths)))
