"""Real text, cut into batches of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .refusal import RefusalError

BUILT_IN = "Python's own English documentation (pydoc_data.topics)"


def read(path: str | None) -> str:
    """The text of a file, or without one the English text that every Python carries."""
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics.values())
    try:
        # A byte order mark is no part of the text. "utf-8-sig" would drop it too, but then miscount a wrong byte.
        text = Path(path).read_text(encoding="utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise RefusalError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RefusalError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    if not text.strip():
        raise RefusalError(f"{path} is empty")
    return text


class Windows:
    """A text's tokens as batches of [batch, length] ids, each row with the tokenizer's special tokens around it."""

    def __init__(self, tokenizer: Any, text: str, batch: int, length: int, vocabulary: int) -> None:
        self.batch, self.length = batch, length
        self.tokens = self._encode(tokenizer, text, special=False)
        if not self.tokens:
            raise RefusalError("the tokenizer makes no tokens of this text")
        unknown = getattr(tokenizer, "unk_token_id", None)
        if all(token == unknown for token in self.tokens):
            # transformers makes an empty tokenizer where a checkpoint has no files for one.
            raise RefusalError("the tokenizer knows no word of this text; has the checkpoint a tokenizer's files?")
        if max(self.tokens) >= vocabulary:
            raise RefusalError(
                f"the tokenizer makes token {max(self.tokens)}, but the model's vocabulary has {vocabulary}"
            )
        self.before, self.after = self._special_tokens(tokenizer)
        self.body = length - len(self.before) - len(self.after)
        if self.body < 1:
            raise RefusalError(
                f"--length {length} leaves no room for text: the tokenizer adds {len(self.before) + len(self.after)}"
                " tokens of its own"
            )

    @staticmethod
    def _encode(tokenizer: Any, text: str, special: bool) -> list[int]:
        return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    def _special_tokens(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text, found by looking: not every kind of tokenizer tells."""
        word = self._encode(tokenizer, "the", special=False)
        wrapped = self._encode(tokenizer, "the", special=True)
        for start in range(len(wrapped) - len(word) + 1):
            if wrapped[start : start + len(word)] == word:
                return wrapped[:start], wrapped[start + len(word) :]
        return [], []

    def repeats_text(self, rounds: int) -> bool:
        """Whether so many batches need more text than there is, so that it starts over."""
        return rounds * self.batch * self.body > len(self.tokens)

    def __getitem__(self, index: int) -> Tensor:
        rows = [self._row(index * self.batch + row) for row in range(self.batch)]
        return torch.tensor(rows)

    def _row(self, index: int) -> list[int]:
        total = len(self.tokens)
        first = index * self.body
        return [*self.before, *(self.tokens[(first + i) % total] for i in range(self.body)), *self.after]
