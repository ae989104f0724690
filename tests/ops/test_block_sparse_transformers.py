"""BigBird's patterns and the attention over them against the block-sparse attention of transformers."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders_fast.ops import BlockSparsePattern, attention_probabilities, block_sparse_attention

big_bird = pytest.importorskip("transformers.models.big_bird.modeling_big_bird")


def module(heads: int, random_blocks: int, block: int, layer: int, max_positions: int, training: bool):
    config = big_bird.BigBirdConfig(
        hidden_size=8 * heads,
        num_attention_heads=heads,
        num_random_blocks=random_blocks,
        block_size=block,
        max_position_embeddings=max_positions,
        attention_type="block_sparse",
    )
    return big_bird.BigBirdBlockSparseAttention(config, seed=layer).train(training)


def planned(tokens: int, heads: int, random_blocks: int, block: int, layer: int, max_positions: int) -> np.ndarray:
    """transformers' random blocks in training, [H, blocks - 2, random_blocks], by its own functions."""
    theirs = module(heads, random_blocks, block, layer, max_positions, training=True)
    before = np.random.get_state()
    np.random.seed(layer)
    if tokens in (1024, 3072, 4096):
        args = (max_positions, max_positions, block, block, random_blocks)
        plans = [theirs._bigbird_block_rand_mask(*args, last_idx=1024)[: tokens // block - 2] for _ in range(heads)]
    else:
        plan = theirs._get_rand_attn_plan(tokens, block, random_blocks)
        plans = theirs._bigbird_block_rand_mask_with_head(tokens, tokens, block, block, heads, *plan)
    np.random.set_state(before)
    return np.stack(plans)


@pytest.mark.parametrize(
    ("tokens", "block", "max_positions"),
    [
        (1024, 64, 4096),  # the paper's plan; the last block is drawn beside being global
        (1024, 64, 1024),
        (3072, 64, 4096),
        (4096, 64, 4096),
        (4096, 128, 4096),  # draws from 8 blocks
        (1024, 32, 2048),
        (1024, 128, 1024),
        (2048, 64, 4096),  # no length of the paper's for transformers
        (768, 64, 4096),  # the shortest
        (256, 16, 4096),
        (5120, 64, 8192),
    ],
)
@pytest.mark.parametrize("random_blocks", [1, 2, 3, 4])
def test_plan(tokens, block, max_positions, random_blocks):
    if tokens <= (5 + 2 * random_blocks) * block:
        pytest.skip("full attention")
    n = tokens // block
    for heads, layer in ((1, 0), (3, 5), *((2, layer) for layer in range(6, 12))):
        expected = np.zeros((heads, n, n), dtype=np.int32)
        for i in range(n):
            expected[:, i, [0, n - 1, *(j for j in (i - 1, i, i + 1) if 0 <= j < n)]] = 1
        expected[:, [0, n - 1]] = 1
        for h, plan in enumerate(planned(tokens, heads, random_blocks, block, layer, max_positions)):
            for i, row in enumerate(plan, start=1):
                np.add.at(expected[h, i], row, 1)
        pattern = BlockSparsePattern.big_bird(
            tokens,
            block=block,
            heads=heads,
            random_blocks=random_blocks,
            layer=layer,
            training=True,
            max_positions=max_positions,
        )
        counts = pattern.dense()[:, ::block, ::block]
        assert torch.equal(counts.expand(heads, n, n), torch.from_numpy(expected))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize(
    ("tokens", "block", "heads"),
    [
        (1024, 64, 3),
        (2048, 64, 2),
        (3072, 64, 1),
        (4096, 64, 1),
        (1000, 64, 2),
        (2500, 64, 1),
        (192, 16, 3),
        (185, 16, 3),
    ],
)
def test_attention(tokens, block, heads, masked, training):
    """With padding of whole blocks and of parts of one; lengths off the block are padded by transformers, not by us."""
    layer, padded = 4, -tokens % block + tokens
    B = 2 if tokens <= 1024 else 1  # theirs takes seconds
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, heads, padded, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    q[:, 0] *= 4
    real = torch.ones(B, padded, dtype=torch.float64)
    real[:, tokens:] = 0
    if masked:
        real[-1, tokens - 2 * block - 5 :] = 0
    theirs = module(heads, 3, block, layer, 4096, training)
    blocked, band, of_queries, of_keys = big_bird.BigBirdModel.create_masks_for_block_sparse_attn(real, block)
    attention = theirs.bigbird_block_sparse_attention
    # Versions with this parameter cannot write the probabilities in float64.
    silent = [False] if "output_attentions" in inspect.signature(attention).parameters else []
    before = np.random.get_state()
    context, probabilities = attention(
        q, k, v, band, of_queries, of_keys, blocked, blocked, heads, 3, 8, block, block, B, padded, padded, layer,
        None, None, *silent,
    )  # fmt: skip
    np.random.set_state(before)

    def unpadded(tensor: Tensor) -> Tensor:
        return tensor[:, :, :tokens]

    context = context.transpose(1, 2)[:, :, :tokens]
    q, k, v, real = unpadded(q), unpadded(k), unpadded(v), real[:, :tokens]
    pattern = BlockSparsePattern.big_bird(tokens, block=block, heads=heads, layer=layer, training=training)
    masks = {"key_padding_mask": real, "query_padding_mask": real} if masked else {}
    out = block_sparse_attention(q, k, v, pattern, **masks)
    assert (out - context).abs().max() < 1e-13
    # On the kernel of this machine: a key too many or too few would show in the second digit.
    narrow = block_sparse_attention(q.float(), k.float(), v.float(), pattern, **masks)
    assert (narrow - context).abs().max() < 1e-5
    if tokens > 1024:  # the probabilities of all pairs take too long
        return
    if probabilities is not None:
        ours = attention_probabilities(q, k, pattern, sum_duplicates=False, **masks)
        same = real.bool()[:, None, :, None]  # theirs of padded queries are neither zeros nor probabilities
        assert ((ours - probabilities[:, :, :tokens, :tokens]) * same).abs().max() < 1e-14
    whole = attention_probabilities(q, k, pattern, **masks)
    assert torch.allclose(whole.sum(-1), real[:, None].expand(B, heads, tokens), atol=1e-14)
    assert torch.allclose(whole @ v, out, atol=1e-13)
