"""What the slow tokenizers share: special tokens, lower case and decoding as in transformers 4."""

from __future__ import annotations

import itertools
import logging
import re
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy

from .pairs import SentencePairTokenizer

logger = logging.getLogger(__name__)


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

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str | TruncationStrategy = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], Any, list[int]]:
        """One or two sequences without the tokens that are too many. A sequence that "only_first" or "only_second"
        names, and that has no token to spare, stays whole, with an error in the log.

        Args:
            ids: ids of the first sequence, without special tokens.
            pair_ids: ids of the second one, if there is one.
            num_tokens_to_remove: how many are too many.
            truncation_strategy: which sequence they are taken from, as in a call of the tokenizer.
            stride: how many of the tokens that stay come with those that go.

        Returns: the first sequence, the second one, and the tokens that went.
        """
        strategy = TruncationStrategy(truncation_strategy)
        named = {TruncationStrategy.ONLY_FIRST: ids, TruncationStrategy.ONLY_SECOND: pair_ids}.get(strategy)
        if named is not None and 0 < num_tokens_to_remove >= len(named):
            logger.error(
                "%d tokens are too many, and the sequence that %r names has %d: it stays as it is",
                num_tokens_to_remove,
                strategy.value,
                len(named),
            )
            return ids, pair_ids, []
        return super().truncate_sequences(ids, pair_ids, num_tokens_to_remove, strategy, stride)

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
