"""What the fast tokenizers share: where the backend comes from, and which files are saved."""

from __future__ import annotations

import os
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import convert_slow_tokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .files import existing_file
from .pairs import SentencePairTokenizer, added_token


class FastTokenizer(SentencePairTokenizer, PreTrainedTokenizerFast):
    """A tokenizer of the library `tokenizers`, read from that library's file or converted from the slow tokenizer.

    Args:
        vocab_file: the slow tokenizer's file; read if there is no `tokenizer_file`.
        tokenizer_file: the library's file.
        options: arguments of the slow tokenizer.
        kwargs: passed to transformers' `PreTrainedTokenizerFast`: the special tokens among them.

    Raises: ValueError without a file or with one that cannot be read; FileNotFoundError.

    Source: transformers 4.57, tokenization_utils_fast.py.
    """

    slow_tokenizer_class: Any = None
    _tokenizer: Any

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None,
        tokenizer_file: str | os.PathLike[str] | None,
        options: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        from_vocabulary = tokenizer_file is None and "tokenizer_object" not in kwargs
        if from_vocabulary:
            special_tokens = {name: kwargs[name] for name in self.SPECIAL_TOKENS_ATTRIBUTES if name in kwargs}
            self._tokenizer = self._converted(vocab_file, **options, **special_tokens)
        elif tokenizer_file is not None:
            self._tokenizer = _read(existing_file(self, "tokenizer_file", tokenizer_file))
        backend = kwargs.get("tokenizer_object", self._tokenizer)
        has_format = not from_vocabulary and backend.post_processor is not None
        as_written = {str(token) for token in backend.get_added_tokens_decoder().values() if not token.normalized}
        super().__init__(**options, **kwargs)
        self.vocab_file = None if vocab_file is None else os.fspath(vocab_file)
        # transformers 5 leaves the special tokens that a file has as they are there: "[MASK]" would swallow no space.
        declared = [
            added_token(token, special=True) for token in self._special_tokens_map.values() if token is not None
        ]
        self.add_tokens([_special(token, token.normalized and str(token) not in as_written) for token in declared])
        if not has_format:
            self._put_special_tokens_around()

    def _converted(self, vocab_file: str | os.PathLike[str] | None, **options: Any) -> tokenizers.Tokenizer:
        if vocab_file is None:
            names = " or ".join(f"{argument} (a {name})" for argument, name in self.vocab_files_names.items())
            raise ValueError(f"{type(self).__name__} needs {names}, and got neither")
        return convert_slow_tokenizer(
            self.slow_tokenizer_class(existing_file(self, "vocab_file", vocab_file), **options)
        )

    def _put_special_tokens_around(self) -> None:
        first = [f"{self.cls_token}:0", "$A:0", f"{self.sep_token}:0"]
        self._tokenizer.post_processor = TemplateProcessing(
            single=first,
            pair=[*first, "$B:1", f"{self.sep_token}:1"],
            special_tokens=[(self.cls_token, self.cls_token_id), (self.sep_token, self.sep_token_id)],
        )

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """What `from_pretrained` passes on: the files themselves, which `__init__` reads."""
        return kwargs

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """`tokenizer.json`, and what the slow tokenizer needs as far as that is at hand; with `legacy_format` one of
        the two."""
        if not legacy_format:
            file_names = super()._save_pretrained(save_directory, file_names, filename_prefix=filename_prefix)
        if legacy_format or (legacy_format is None and self.can_save_slow_tokenizer):
            file_names = PreTrainedTokenizerBase._save_pretrained(
                self, save_directory, file_names, filename_prefix=filename_prefix
            )
        return file_names


def _read(tokenizer_file: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(tokenizer_file)
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{tokenizer_file!r} is not a file of the library tokenizers: {error}") from error


def _special(token: AddedToken, normalized: bool) -> AddedToken:
    """The token as a special one, looked for in the cleaned-up text if `normalized`, or else in the text as written."""
    return AddedToken(**{**token.__getstate__(), "special": True, "normalized": normalized})
