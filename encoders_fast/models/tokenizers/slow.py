"""What the slow tokenizers share: special tokens, lower case and decoding as in transformers 4."""

from __future__ import annotations

import itertools
import re
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from .pairs import SentencePairTokenizer


class SlowTokenizer(SentencePairTokenizer, PreTrainedTokenizer):
    """A tokenizer in Python, with what transformers 5 left out of its own.

    Source: transformers 4.57, tokenization_utils.py.
    """

    def _add_tokens(self, new_tokens: list[str] | list[AddedToken], special_tokens: bool = False) -> int:
        # transformers 5 adds special tokens by their strings, and forgets which of them swallow the spaces beside them.
        declared = {str(token): token for token in self._special_tokens_map.values() if isinstance(token, AddedToken)}
        tokens: Any = [declared.get(token, token) if isinstance(token, str) else token for token in new_tokens]
        return super()._add_tokens(tokens, special_tokens=special_tokens)

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """The text in lower case if the tokenizer has `do_lower_case`, so that added tokens, which are in lower case
        then, are found in it. Special tokens stay as they are.

        Args:
            text: what is about to be split into tokens.
            is_split_into_words: not used.
            kwargs: given back.
        """
        if getattr(self, "do_lower_case", False):
            kept = "|".join(re.escape(token) for token in self._kept_as_written()) or "(?!)"
            text = re.sub(rf"({kept})|(.)", lambda match: match[1] or match[2].lower(), text)
        return text, kwargs

    def _kept_as_written(self) -> list[str]:
        """The strings in a text that are never turned into lower case."""
        return self.all_special_tokens

    def _standing_alone(self) -> set[str]:
        """The tokens that `decode` sets between the pieces of text, rather than into them."""
        beyond = {token for token, i in self._added_tokens_encoder.items() if i >= self.vocab_size}
        extra = {str(token) for token in self._extra_special_tokens}
        return (set(self._added_tokens_encoder) - set(self.all_special_tokens)) | (extra & beyond)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **kwargs: Any,
    ) -> str:
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens)
        parts: list[str] = []
        for alone, run in runs_of([tokens] if isinstance(tokens, str) else tokens, self._standing_alone()):
            parts += run if alone else [self.convert_tokens_to_string(run)]
        text = self._join(parts, spaces_between_special_tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def _join(self, parts: list[str], spaces_between_special_tokens: bool) -> str:
        return (" " if spaces_between_special_tokens else "").join(part for part in parts if part)


def runs_of(tokens: list[str], chosen: set[str]) -> list[tuple[bool, list[str]]]:
    """The tokens in their order, with those that are `chosen`, and those that are not, together in runs."""
    return [(is_chosen, list(run)) for is_chosen, run in itertools.groupby(tokens, chosen.__contains__)]
