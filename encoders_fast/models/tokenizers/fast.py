"""What the fast tokenizers share: where the backend comes from, and which files are saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .files import existing_file
from .pairs import SentencePairTokenizer, Token, added_token


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
    converter_class: Any = None
    """transformers' converter from the slow tokenizer."""
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
            named = {name: kwargs[name] for name in self.SPECIAL_TOKENS_ATTRIBUTES if name in kwargs}
            self._tokenizer = self._converted(vocab_file, **options, **named)
        elif tokenizer_file is not None:
            self._tokenizer = _read(existing_file(self, "tokenizer_file", tokenizer_file))
        backend = kwargs.get("tokenizer_object", self._tokenizer)
        has_format = not from_vocabulary and backend.post_processor is not None
        of_file = {str(token): token for token in backend.get_added_tokens_decoder().values()}
        super().__init__(**options, **kwargs)
        self.vocab_file = None if vocab_file is None else os.fspath(vocab_file)
        self._apply_options()
        # transformers 5 leaves the special tokens that a file has as they are there: "[MASK]" would swallow no space.
        # Of the extra ones it adds an AddedToken as it is: `decode` would not skip it.
        extra = [of_file.get(token, token) if isinstance(token, str) else token for token in self._extra_special_tokens]
        declared = [token for token in of_file.values() if token.special] + extra + [*self._special_tokens_map.values()]
        as_written = {name for name, token in of_file.items() if not token.normalized}
        last_counts = {str(token): token for token in declared if token is not None}
        self.add_tokens([_special(token, name in as_written) for name, token in last_counts.items()])
        if not has_format:
            self._put_special_tokens_around()

    def _apply_options(self) -> None:
        """Clean the text up as the arguments ask for, whatever the file does."""

    def _add_tokens(self, new_tokens: Sequence[Token], special_tokens: bool = False) -> int:
        # The library may spell a token as it looks for it: a special one in lower case would be neither found nor
        # skipped by its own name.
        normalizer = self._tokenizer.normalizer
        tokens: Any = [
            _special(token, as_written=normalizer is not None and normalizer.normalize_str(str(token)) != str(token))
            if isinstance(token, AddedToken) and (special_tokens or token.special)
            else token
            for token in new_tokens
        ]
        added = super()._add_tokens(tokens, special_tokens=special_tokens)
        self._tokenizer.normalizer = normalizer  # by this the library spells anew what it had already
        return added

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        # Without transformers' own clean-up: asked for it, transformers 5 leaves out models of byte pairs.
        text = super()._decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces=False, **kwargs)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def _converted(self, vocab_file: str | os.PathLike[str] | None, **options: Any) -> tokenizers.Tokenizer:
        if vocab_file is None:
            names = " or ".join(f"{argument} (a {name})" for argument, name in self.vocab_files_names.items())
            raise ValueError(f"{type(self).__name__} needs {names}, and got neither")
        path = existing_file(self, "vocab_file", vocab_file)
        slow = self.slow_tokenizer_class(path, **options)
        try:
            return self.converter_class(slow).converted()
        except ImportError:  # of what a converter needs: the file is not to blame
            raise
        except Exception as error:  # the converters raise nothing more precise
            raise ValueError(f"{type(self).__name__}: {path!r} cannot be converted: {error}") from error

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


def _special(token: Token, as_written: bool) -> AddedToken:
    """The token as a special one, looked for in the text as written, or else in the cleaned-up text if it says so."""
    state = added_token(token, special=True).__getstate__()
    return AddedToken(**{**state, "special": True, "normalized": state["normalized"] and not as_written})
