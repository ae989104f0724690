"""BigBird's tokenizers, for a SentencePiece model as it is."""

from __future__ import annotations

import os
import re
from typing import Any

from transformers.convert_slow_tokenizer import BigBirdConverter as StockConverter

from .pairs import Token, added_token
from .sentence_piece import FastSentencePieceTokenizer, Merges, SentencePieceTokenizer

__all__ = ["BigBirdTokenizer", "BigBirdTokenizerFast"]


class BigBirdTokenizer(SentencePieceTokenizer):
    """Text -> ids by SentencePiece.

    Args:
        vocab_file: the path of a SentencePiece model.
        unk_token: what stands for everything that the model does not know.
        bos_token: the begin of a sequence, to the model; inputs begin with `cls_token`.
        eos_token: the end of a sequence, to the model; inputs end with `sep_token`.
        pad_token: what short sequences of a batch are filled up with.
        sep_token: what follows each sequence.
        mask_token: what stands for a masked word; it takes the spaces before it with it.
        cls_token: what the input begins with.
        sp_model_kwargs: passed to `SentencePieceProcessor`. With `enable_sampling`, a text is cut into other pieces
            every time: one of the `nbest_size` best ways, or of all if that is negative, with probabilities sharpened
            by `alpha`.
        kwargs: arguments of transformers' `PreTrainedTokenizer`.

    Raises: ValueError without a `vocab_file` or with one that is not a SentencePiece model; FileNotFoundError.

    Source: transformers 4.57, tokenization_big_bird.py.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    prefix_tokens: list[int] = []  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None,
        unk_token: Token = "<unk>",
        bos_token: Token = "<s>",
        eos_token: Token = "</s>",
        pad_token: Token = "<pad>",
        sep_token: Token = "[SEP]",
        mask_token: Token = "[MASK]",
        cls_token: Token = "[CLS]",
        sp_model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocab_file,
            sp_model_kwargs,
            unk_token=added_token(unk_token),
            bos_token=added_token(bos_token),
            eos_token=added_token(eos_token),
            pad_token=added_token(pad_token),
            sep_token=added_token(sep_token),
            mask_token=added_token(mask_token, lstrip=True),
            cls_token=added_token(cls_token),
            **kwargs,
        )

    def _standing_alone(self) -> set[str]:
        return set(self._added_tokens_encoder)

    def _join(self, parts: list[str], spaces_between_special_tokens: bool) -> str:
        # As the fast tokenizer writes it: no space before [MASK] and [SEP].
        return re.sub(r" (\[(MASK|SEP)\])", r"\1", " ".join(parts)) if spaces_between_special_tokens else "".join(parts)


class BigBirdConverter(StockConverter):
    """BigBird's slow tokenizer -> one of the library `tokenizers`."""

    SpmExtractor: Any = Merges


class BigBirdTokenizerFast(FastSentencePieceTokenizer):
    """Text -> ids by the library `tokenizers`. Sampling is for `BigBirdTokenizer` alone.

    Args:
        vocab_file: the path of a SentencePiece model; read if there is no `tokenizer_file`.
        tokenizer_file: the path of a file of the library `tokenizers`.
        unk_token, bos_token, eos_token, pad_token, sep_token, mask_token, cls_token: as for `BigBirdTokenizer`.
        kwargs: arguments of transformers' `PreTrainedTokenizerFast`.

    Raises: ValueError without a file or with one that cannot be read; FileNotFoundError.

    Source: transformers 4.57, tokenization_big_bird_fast.py.
    """

    slow_tokenizer_class: Any = BigBirdTokenizer
    converter_class: Any = BigBirdConverter
    model_input_names = BigBirdTokenizer.model_input_names
    prefix_tokens = BigBirdTokenizer.prefix_tokens

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        unk_token: Token = "<unk>",
        bos_token: Token = "<s>",
        eos_token: Token = "</s>",
        pad_token: Token = "<pad>",
        sep_token: Token = "[SEP]",
        mask_token: Token = "[MASK]",
        cls_token: Token = "[CLS]",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocab_file,
            tokenizer_file,
            options={},
            unk_token=added_token(unk_token),
            bos_token=added_token(bos_token),
            eos_token=added_token(eos_token),
            pad_token=added_token(pad_token),
            sep_token=added_token(sep_token),
            mask_token=added_token(mask_token, lstrip=True),
            cls_token=added_token(cls_token),
            **kwargs,
        )
