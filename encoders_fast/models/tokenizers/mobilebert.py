"""MobileBERT's tokenizers: BERT's basic tokenization, then WordPiece."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from tokenizers import decoders, normalizers
from transformers.convert_slow_tokenizer import BertConverter
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from .fast import FastTokenizer
from .files import existing_file, existing_folder
from .pairs import Token
from .slow import SlowTokenizer

__all__ = ["MobileBertTokenizer", "MobileBertTokenizerFast"]


class MobileBertTokenizer(SlowTokenizer, BertTokenizerLegacy):
    """Text -> ids by BERT's basic tokenization and WordPiece, in Python.

    Args:
        vocab_file: the path of a text file with one token per line.
        do_lower_case: whether the text is turned into lower case.
        do_basic_tokenize: whether text is split at spaces and punctuation, cleaned and turned into lower case before
            WordPiece; without it, WordPiece alone splits it at spaces.
        never_split: tokens that basic tokenization leaves as they are.
        unk_token: what stands for every word that the vocabulary cannot make.
        sep_token: what follows each sequence.
        pad_token: what short sequences of a batch are filled up with.
        cls_token: what the input begins with.
        mask_token: what stands for a masked word.
        tokenize_chinese_chars: whether every Chinese character is a word.
        strip_accents: whether letters lose their accents; None for the value of `do_lower_case`.
        clean_up_tokenization_spaces: whether `decode` takes out spaces before punctuation.
        kwargs: arguments of transformers' `PreTrainedTokenizer`.

    Raises: ValueError without a `vocab_file` or with one that is no list of tokens; FileNotFoundError.

    Source: transformers 4.57, tokenization_mobilebert.py.
    """

    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None,
        do_lower_case: bool = True,
        do_basic_tokenize: bool = True,
        never_split: Iterable[str] | None = None,
        unk_token: Token = "[UNK]",
        sep_token: Token = "[SEP]",
        pad_token: Token = "[PAD]",
        cls_token: Token = "[CLS]",
        mask_token: Token = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        clean_up_tokenization_spaces: bool = True,
        **kwargs: Any,
    ) -> None:
        path = existing_file(self, "vocab_file", vocab_file)
        try:
            super().__init__(
                vocab_file=path,
                do_lower_case=do_lower_case,
                do_basic_tokenize=do_basic_tokenize,
                never_split=None if never_split is None else list(never_split),
                unk_token=unk_token,
                sep_token=sep_token,
                pad_token=pad_token,
                cls_token=cls_token,
                mask_token=mask_token,
                tokenize_chinese_chars=tokenize_chinese_chars,
                strip_accents=strip_accents,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                **kwargs,
            )
        except UnicodeDecodeError as error:
            raise ValueError(f"{type(self).__name__}: {path!r} is not a text file in UTF-8: {error}") from error
        if not self.vocab:
            raise ValueError(f"{type(self).__name__}: {path!r} has no tokens")

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]  # as of every slow one
        """The tokens of a text.

        Args:
            text: any text.
            kwargs: `split_special_tokens` to treat special tokens in the text as any other text.
        """
        if kwargs.get("split_special_tokens", self.split_special_tokens):
            return self._tokenize(self.prepare_for_tokenization(text)[0], split_special_tokens=True)
        return super().tokenize(text, **kwargs)

    def prepare_for_tokenization(self, text: str, *args: Any, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        """As in every slow tokenizer; without basic tokenization nothing is turned into lower case."""
        return super().prepare_for_tokenization(text, *args, **kwargs) if self.do_basic_tokenize else (text, kwargs)

    def _kept_as_written(self) -> list[str]:
        return [*super()._kept_as_written(), *self.basic_tokenizer.never_split]


class MobileBertTokenizerFast(FastTokenizer):
    """Text -> ids by the library `tokenizers`: BERT's basic tokenization and WordPiece.

    Args:
        vocab_file: the path of a text file with one token per line; read if there is no `tokenizer_file`.
        tokenizer_file: the path of a file of the library `tokenizers`.
        do_lower_case, tokenize_chinese_chars, strip_accents: as for `MobileBertTokenizer`, whatever the
            `tokenizer_file` does.
        unk_token, sep_token, pad_token, cls_token, mask_token: as for `MobileBertTokenizer`.
        clean_text: whether control characters go and every kind of space becomes the usual one; None for what the
            `tokenizer_file` does, or else True.
        wordpieces_prefix: what marks pieces that continue a word; None for what the `tokenizer_file` has, or else "##".
        kwargs: arguments of transformers' `PreTrainedTokenizerFast`.

    Raises: ValueError without a file or with one that cannot be read; FileNotFoundError.

    Source: transformers 4.57, tokenization_mobilebert_fast.py.
    """

    vocab_files_names = {"vocab_file": "vocab.txt", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012
    slow_tokenizer_class: Any = MobileBertTokenizer
    converter_class: Any = BertConverter
    model_input_names = MobileBertTokenizer.model_input_names

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        do_lower_case: bool = True,
        unk_token: Token = "[UNK]",
        sep_token: Token = "[SEP]",
        pad_token: Token = "[PAD]",
        cls_token: Token = "[CLS]",
        mask_token: Token = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        clean_text: bool | None = None,
        wordpieces_prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.do_lower_case = do_lower_case
        if tokenizer_file is None:
            kwargs.setdefault("clean_up_tokenization_spaces", True)  # the slow tokenizer's
        super().__init__(
            vocab_file,
            tokenizer_file,
            options={
                "do_lower_case": do_lower_case,
                "tokenize_chinese_chars": tokenize_chinese_chars,
                "strip_accents": strip_accents,
            },
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            clean_text=clean_text,
            wordpieces_prefix=wordpieces_prefix,
            **kwargs,
        )
        if wordpieces_prefix is not None:
            self._tokenizer.model.continuing_subword_prefix = wordpieces_prefix
            self._tokenizer.decoder = decoders.WordPiece(prefix=wordpieces_prefix)

    def _apply_options(self) -> None:
        normalizer, asked = self._tokenizer.normalizer, self.init_kwargs
        state = {} if normalizer is None else json.loads(normalizer.__getstate__())
        if state.get("type") == "BertNormalizer":  # any other is somebody's own
            self._tokenizer.normalizer = normalizers.BertNormalizer(
                clean_text=state["clean_text"] if asked["clean_text"] is None else asked["clean_text"],
                handle_chinese_chars=asked["tokenize_chinese_chars"],
                strip_accents=asked["strip_accents"],
                lowercase=asked["do_lower_case"],
            )

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Save the tokens, one per line, as `[filename_prefix-]vocab.txt`.

        Args:
            save_directory: an existing folder.
            filename_prefix: put before the file's name, with a hyphen.

        Returns: the path of the file.

        Raises: NotADirectoryError if there is no such folder.
        """
        existing_folder(self, save_directory)
        return tuple(self._tokenizer.model.save(str(save_directory), filename_prefix))
