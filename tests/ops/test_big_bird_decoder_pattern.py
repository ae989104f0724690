"""BlockSparsePattern.big_bird_decoder and of_heads: lists of blocks, looked at as dense multiplicities."""

import pytest
import torch

from encoders_fast import BlockSparsePattern

OPTIONS = {"block": 4, "heads": 3, "random_blocks": 2, "layer": 1}
SPARSE = 9  # 5 + 2 * random_blocks: from this block on rows are sparse


def _decoder(*tokens, **options):
    return BlockSparsePattern.big_bird_decoder(*tokens, **{**OPTIONS, **options})


def _blocks(pattern):
    """The multiplicities between blocks, [H, blocks, blocks]: those of the last query in each block."""
    dense = pattern.dense()
    rows = torch.arange(3, dense.shape[1], 4)
    return dense[:, rows, ::4]


@pytest.mark.parametrize("plan", ["transformers", "original"])
@pytest.mark.parametrize("training", [False, True])
def test_which_blocks(plan, training):
    counts = _blocks(_decoder(80, plan=plan, training=training))
    i, j = torch.arange(20)[:, None], torch.arange(20)
    always = ((j <= i) & ((i < SPARSE) | (j == 0) | (j >= i - 1))).int()
    drawn = counts - always
    assert (drawn >= 0).all()
    assert (drawn[:, :SPARSE] == 0).all()
    assert (drawn[:, SPARSE:].sum(-1) == 2).all()
    if plan == "original" or training:
        # As transformers' plan: other blocks for each head, once each, from the first 2 * 2 + 5 but those at its ends.
        assert drawn.shape[0] == 3
        assert drawn.max() == 1
        assert not torch.equal(drawn[0], drawn[1])
        assert (drawn[..., 0] == 0).all()
        assert (drawn[..., 8:] == 0).all()
        other = BlockSparsePattern.big_bird(84, **OPTIONS, plan=plan, training=training)
        assert torch.equal(_blocks(other)[:, SPARSE:19, 1:8], drawn[:, SPARSE:19, 1:8])
    else:
        assert (drawn[:, SPARSE:, 0] == 2).all()


@pytest.mark.parametrize("training", [False, True])
def test_what_follows_changes_nothing(training):
    whole = _decoder(83, training=training).dense()
    for tokens in (1, 36, 37, 40, 60, 82):
        assert torch.equal(
            _decoder(tokens, training=training).dense().expand_as(whole[:, :tokens, :tokens]),
            whole[:, :tokens, :tokens],
        )


@pytest.mark.parametrize("training", [False, True])
def test_last_queries(training):
    whole = _decoder(81, training=training).dense()
    for earlier in (4, 36, 40, 80):
        part = _decoder(81 - earlier, 81, training=training)
        assert (part.query_tokens, part.key_tokens) == (81 - earlier, 81)
        assert torch.equal(part.dense().expand(whole.shape[0], -1, -1), whole[:, earlier:])


def test_wrong_sizes():
    for tokens in ((0, 4), (5, 4), (3, 5)):
        with pytest.raises(
            ValueError, match=f"query_tokens {tokens[0]} must be at least 1, and a multiple of block, 4"
        ):
            _decoder(*tokens)
    with pytest.raises(ValueError, match='plan must be "transformers" or "original"; it is \'mine\''):
        _decoder(80, plan="mine")
    with pytest.raises(ValueError, match="heads must be at least 1"):
        _decoder(80, heads=0)


@pytest.mark.parametrize("heads", [[0], [2, 0], [1, 2, 0]], ids=str)
def test_of_heads(heads):
    """Lists and their transpose."""
    pattern = _decoder(80, training=True)
    chosen = pattern.of_heads(heads)
    assert chosen.heads == len(heads)
    assert torch.equal(chosen.dense(), pattern.dense()[heads])
    counts = _blocks(chosen)
    for h in range(len(heads)):
        for j in range(20):
            entries = slice(int(chosen.column_starts[h, j]), int(chosen.column_starts[h, j + 1]))
            assert torch.equal(chosen.rows[entries].long(), counts[h, :, j].nonzero().squeeze(1))
            assert torch.equal(chosen.column_multiplicities[entries], counts[h, counts[h, :, j] > 0, j])
    shared = _decoder(80)
    assert shared.of_heads(heads) is shared
