"""Where BigBird's random blocks are: the plans of transformers and of the original code, bit for bit.

Both plans draw from numpy's legacy generator, seeded with the layer's index, in an order that checkpoints were trained
with; the generator here is one of its own, so numpy's global one is neither read nor changed. Blocks are counted in
units of `block` tokens; the first and the last one are global and have no random blocks, so a plan has rows for the
blocks 1 to blocks - 2.

Source: Big Bird: Transformers for Longer Sequences (Zaheer et al., 2020), section 2.
"""

from __future__ import annotations

import numpy as np

# Lengths with the plan of the paper's experiments. transformers left 2048 out.
PAPER_LENGTHS = {"transformers": (1024, 3072, 4096), "original": (1024, 2048, 3072, 4096)}
# The original code plans for this length whatever the model's own is.
ORIGINAL_MAX_POSITIONS = 4096
# The paper's plan draws from the first so many tokens.
PAPER_RANGE = 1024


def plan(
    blocks: int, block: int, heads: int, random_blocks: int, layer: int, name: str, max_positions: int
) -> np.ndarray:
    """The random key blocks of every query block but the first and the last: integers [H, blocks - 2, random_blocks].

    A block may come twice in a row, or be one that the row attends to anyway.
    """
    generator = np.random.RandomState(layer)
    if blocks * block in PAPER_LENGTHS[name]:
        planned = (max_positions if name == "transformers" else ORIGINAL_MAX_POSITIONS) // block
        if planned < blocks:
            raise ValueError(f"{blocks * block} tokens are more than max_positions, {max_positions}")
        rows = [_paper_head(generator, planned, block, random_blocks) for _ in range(heads)]
        return np.stack(rows)[:, : blocks - 2]
    return _prefix_plan(generator, blocks, heads, random_blocks)


def decoder_plan(blocks: int, heads: int, random_blocks: int, layer: int) -> np.ndarray:
    """The random key blocks of every query block but the first few, whatever comes after it: integers
    [H, blocks, random_blocks]. From block 2 * random_blocks + 5 on they lie before the row's window."""
    plan = _prefix_plan(np.random.RandomState(layer), blocks + 1, heads, random_blocks)
    return np.pad(plan, ((0, 0), (1, 0), (0, 0)))


def _paper_head(generator: np.random.RandomState, blocks: int, block: int, random_blocks: int) -> np.ndarray:
    """One head, planned for the longest input: [blocks - 2, random_blocks]."""
    middle = np.arange(1, blocks - 1, dtype=np.int32)
    last = PAPER_RANGE // block - 1 if 2 * block < PAPER_RANGE else blocks - 1
    plan = np.zeros((blocks - 2, random_blocks), dtype=np.int32)
    for i in range(1, blocks - 1):
        if i <= 2:
            candidates = middle[i + 1 : last]
        elif i >= blocks - 3:
            candidates = middle[:last]  # its own window included
        elif i - 2 > last:
            candidates = middle[:last]
        elif i + 1 == last:
            candidates = middle[: i - 2]
        else:
            candidates = np.concatenate((middle[: i - 2], middle[i + 1 : last]))
        chosen = generator.permutation(candidates)[:random_blocks]
        if len(chosen) not in (1, random_blocks):  # a single one is repeated
            raise ValueError(
                f"random_blocks {random_blocks} is too many: query block {i} has {len(candidates)} candidates"
                f" (block {block}, {blocks} blocks)"
            )
        plan[i - 1] = chosen
    return plan


def _prefix_plan(generator: np.random.RandomState, blocks: int, heads: int, random_blocks: int) -> np.ndarray:
    """Every row draws from the first 2 * random_blocks + 5 blocks, the heads of a row one after another."""
    plan = np.zeros((heads, blocks - 2, random_blocks), dtype=np.int32)
    if random_blocks == 0:
        return plan
    end = 2 * random_blocks + 5
    for i in range(1, blocks - 1):
        taken = {0, i - 1, i, i + 1, end - 1}
        # What the last block but one of the range may not see from the second, the second may not see from it.
        taken |= {end - 2} if i == 1 else {1} if i == end - 2 else set()
        for h in range(heads):
            free = [j for j in generator.permutation(np.arange(end, dtype=np.int32)) if j not in taken]
            plan[h, i - 1] = free[:random_blocks]
    return plan
