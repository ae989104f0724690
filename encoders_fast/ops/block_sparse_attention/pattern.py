"""BlockSparsePattern: which blocks of keys each block of queries attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from . import constructors


@dataclass(frozen=True, eq=False, repr=False)
class BlockSparsePattern:
    """For every block of queries a list of blocks of keys. Immutable; equal to itself alone.

    Block i of the queries holds the tokens i * block to (i + 1) * block - 1, and the last one may be shorter; keys
    likewise. A key block with multiplicity m counts m times in the softmax: its exponentials have the weight m. Where
    `causal` holds, query q sees the key k only if k <= q + key_tokens - query_tokens, also inside a listed block.

    The lists are int32 tensors in compressed form. Head h's query block i has the entries row_starts[h, i] to
    row_starts[h, i + 1] - 1 of `columns` and `multiplicities`; key block j of the transpose has the entries
    column_starts[h, j] to column_starts[h, j + 1] - 1 of `rows` and `column_multiplicities`. Lists are in ascending
    order without repetition. A pattern of one head stands for all heads.

    For devices on which many workers share out the lists, long ones are cut into slices. A slice is (list, begin, end,
    parts): the number of the list, h * blocks + i; its entries; how many slices the list has, and 0 instead for all of
    them but the first. Those of a list follow each other, and lists in several slices come first.

    Made by `big_bird`, `big_bird_decoder`, `sliding`, `full` and `from_mask`. All but the last remember what they made
    and may be called again in every forward pass, under torch.compile too.

    Source: Big Bird: Transformers for Longer Sequences (Zaheer et al., 2020), section 2.
    """

    query_tokens: int
    key_tokens: int
    block: int
    causal: bool
    row_starts: Tensor
    """[H or 1, query blocks + 1]"""
    columns: Tensor
    """[entries]"""
    multiplicities: Tensor
    """[entries]"""
    column_starts: Tensor
    """[H or 1, key blocks + 1]"""
    rows: Tensor
    """[entries]"""
    column_multiplicities: Tensor
    """[entries]"""
    row_slices: Tensor
    """[slices, 4]"""
    column_slices: Tensor
    """[slices, 4]"""
    _copies: dict[str, BlockSparsePattern] = field(default_factory=dict)

    @classmethod
    def big_bird(
        cls,
        tokens: int,
        *,
        block: int = 64,
        heads: int = 12,
        random_blocks: int = 3,
        layer: int = 0,
        plan: str = "transformers",
        training: bool = False,
        max_positions: int = 4096,
        causal: bool = False,
        device: torch.device | str = "cpu",
    ) -> BlockSparsePattern:
        """BigBird's pattern: the first and the last block are global, every other block sees those two, itself, its
        neighbours, and `random_blocks` blocks drawn for each head.

        Args:
            tokens: T; a last block that it does not fill counts like a whole one.
            layer: the seed of the random blocks.
            plan: "transformers" draws them in training alone; in evaluation they are all block 0, which so has the
                multiplicity 1 + random_blocks in every row but the first and the last. "original", the code of the
                paper, draws the same blocks in training and in evaluation, has the paper's plan for 2048 tokens too,
                and plans for 4096 positions always.
            training: which of the two "transformers" means.
            max_positions: the longest input of the model; the plans of 1024, 3072 and 4096 tokens depend on it.
            causal: as the class says. transformers has no such thing.

        Up to (5 + 2 * random_blocks) * block tokens the pattern is full, as BigBird's attention is. A block that is
        drawn twice, or that the row has anyway, counts as often.

        Raises: ValueError for sizes below 1, an unknown plan, and more random blocks than a plan has to draw from.
        """
        blocks = constructors.blocks_of(tokens, block)
        if tokens <= (5 + 2 * random_blocks) * block:
            return cls.full(tokens, block=block, causal=causal, device=device)
        made = constructors.make(
            "big_bird", blocks, block, heads, random_blocks, layer, plan, training, max_positions, causal, device
        )
        return cls._of(tokens, tokens, block, causal, made)

    @classmethod
    def big_bird_decoder(
        cls,
        query_tokens: int,
        key_tokens: int | None = None,
        *,
        block: int = 64,
        heads: int = 12,
        random_blocks: int = 3,
        layer: int = 0,
        plan: str = "transformers",
        training: bool = False,
        device: torch.device | str = "cpu",
    ) -> BlockSparsePattern:
        """A causal BigBird in which no row depends on how many tokens follow it: what a decoder computed for a token
        stays right when it goes on. Neither transformers nor the paper has one.

        The first 5 + 2 * random_blocks blocks see all that is before them. Every other block sees the first one, the
        one before it, itself, and `random_blocks` blocks, which `big_bird` without the paper's plans would draw for it.
        No last block is global.

        Args:
            query_tokens, key_tokens: the queries are the last tokens of the keys, and begin with a block: as many
                tokens as `block` divides come before them.
            layer, plan, training: as in `big_bird`.

        Raises: ValueError for sizes below 1, an unknown plan, and queries that do not begin with a block.
        """
        key_tokens = query_tokens if key_tokens is None else key_tokens
        blocks, earlier = constructors.blocks_of(key_tokens, block), key_tokens - query_tokens
        if query_tokens < 1 or earlier < 0 or earlier % block != 0:
            raise ValueError(
                f"query_tokens {query_tokens} must be at least 1, and a multiple of block, {block}, less than"
                f" key_tokens, {key_tokens}"
            )
        made = constructors.make(
            "big_bird_decoder", earlier // block, blocks, heads, random_blocks, layer, plan, training, device
        )
        return cls._of(query_tokens, key_tokens, block, True, made)

    @classmethod
    def sliding(
        cls,
        tokens: int,
        *,
        block: int = 64,
        heads: int = 1,
        window_blocks: int = 3,
        global_blocks: Sequence[int] = (0, -1),
        extra_global_tokens: int = 0,
        random_blocks: int = 0,
        seed: int = 0,
        causal: bool = False,
        device: torch.device | str = "cpu",
    ) -> BlockSparsePattern:
        """A window around the diagonal, global blocks, and random blocks from the whole sequence.

        Args:
            tokens: T, the extra global ones included.
            window_blocks: an odd number; half of the others lies on each side.
            global_blocks: see every block and are seen by every block; negative ones count from the end. They are
                counted behind the extra global tokens.
            extra_global_tokens: so many tokens at the start are global too (BigBird-ETC puts them in front of the
                input); a multiple of `block`.
            random_blocks: for each head and row, drawn among the blocks that the row does not see otherwise (all of
                these, where there are fewer).
            seed: of the random blocks.

        Raises: ValueError for sizes below 1, an even window, a global block that is not there, and a number of extra
        tokens that is no multiple of `block`.
        """
        blocks = constructors.blocks_of(tokens, block)
        made = constructors.make(
            "sliding",
            blocks,
            block,
            heads,
            window_blocks,
            tuple(global_blocks),
            extra_global_tokens,
            random_blocks,
            seed,
            causal,
            device,
        )
        return cls._of(tokens, tokens, block, causal, made)

    @classmethod
    def full(
        cls,
        query_tokens: int,
        key_tokens: int | None = None,
        *,
        block: int = 64,
        causal: bool = False,
        device: torch.device | str = "cpu",
    ) -> BlockSparsePattern:
        """Every key for every query, or with `causal` every key that is not behind it. `key_tokens` is `query_tokens`
        unless given. Raises ValueError for sizes below 1."""
        key_tokens = query_tokens if key_tokens is None else key_tokens
        query_blocks = constructors.blocks_of(query_tokens, block)
        key_blocks = constructors.blocks_of(key_tokens, block)
        # Where the two lengths differ, which blocks lie behind the diagonal depends on the tokens.
        uneven = causal and query_tokens != key_tokens
        tokens = (constructors.blocks_of(query_tokens, 1), constructors.blocks_of(key_tokens, 1)) if uneven else None
        made = constructors.make("full", query_blocks, key_blocks, block, causal, tokens, device)
        return cls._of(query_tokens, key_tokens, block, causal, made)

    @classmethod
    def from_mask(
        cls, mask: Tensor, query_tokens: int, key_tokens: int | None = None, *, block: int = 64, causal: bool = False
    ) -> BlockSparsePattern:
        """The caller's own pattern, on the mask's device.

        Args:
            mask: [query blocks, key blocks] or [H, query blocks, key blocks]; bool, or integers: the multiplicities.

        Raises: ValueError for another shape or a negative multiplicity, TypeError for another dtype.
        """
        key_tokens = query_tokens if key_tokens is None else key_tokens
        shape = (constructors.blocks_of(query_tokens, block), constructors.blocks_of(key_tokens, block))
        made = constructors.from_mask(mask, shape, (query_tokens, key_tokens), block, causal)
        return cls._of(query_tokens, key_tokens, block, causal, made)

    @classmethod
    def _of(
        cls, query_tokens: int, key_tokens: int, block: int, causal: bool, lists: constructors.Lists
    ) -> BlockSparsePattern:
        return cls(query_tokens, key_tokens, block, causal, *lists)

    @property
    def lists(self) -> constructors.Lists:
        """The tensors, in the order in which the op takes them."""
        return constructors.Lists(
            self.row_starts,
            self.columns,
            self.multiplicities,
            self.column_starts,
            self.rows,
            self.column_multiplicities,
            self.row_slices,
            self.column_slices,
        )

    @property
    def heads(self) -> int:
        """H, or 1 where all heads share the lists."""
        return self.row_starts.shape[0]

    @property
    def device(self) -> torch.device:
        return self.columns.device

    def to(self, device: torch.device | str) -> BlockSparsePattern:
        """This pattern on `device`. Copied once, then kept."""
        if torch.device(device) == self.device:
            return self
        copy = self._copies.get(str(device))
        if copy is None:
            with torch.inference_mode(False):  # for training too
                moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.lists._asdict().items()}
            copy = self._copies[str(device)] = replace(self, **moved, _copies={})
        return copy

    def of_heads(self, heads: Sequence[int]) -> BlockSparsePattern:
        """The lists of some heads, in that order: for attention that has lost the others."""
        if self.heads == 1:
            return self
        starts = {"row_starts": self.row_starts, "column_starts": self.column_starts}
        entries = {"row_starts": ("columns", "multiplicities"), "column_starts": ("rows", "column_multiplicities")}
        chosen: dict[str, Any] = {}
        for name, ends in starts.items():
            parts = [slice(int(ends[head, 0]), int(ends[head, -1])) for head in heads]
            for entry in entries[name]:
                chosen[entry] = torch.cat([getattr(self, entry)[part] for part in parts])
            sizes = torch.stack([ends[head].diff() for head in heads])
            last = sizes.flatten().cumsum(0, dtype=torch.int32).view_as(sizes)
            chosen[name] = torch.cat((last[:, :1] - sizes[:, :1], last), dim=1)
            slices = constructors.slices(chosen[name].cpu().numpy()).astype("int32")
            chosen[name.replace("starts", "slices")] = torch.from_numpy(slices).to(self.device)
        return replace(self, **chosen, _copies={})

    def dense(self) -> Tensor:
        """How often each query counts each key: int32 [H or 1, Tq, Tk]. For tests and pictures; as large as it says."""
        return constructors.dense(self.lists, self.query_tokens, self.key_tokens, self.block, self.causal)

    def __repr__(self) -> str:
        causal = ", causal" if self.causal else ""
        return (
            f"BlockSparsePattern({self.query_tokens} x {self.key_tokens} tokens, block={self.block},"
            f" heads={self.heads}, {self.columns.numel()} blocks{causal}, device={str(self.device)!r})"
        )
