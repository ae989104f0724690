"""How BERT's descendants put one or two sequences together: [CLS] A [SEP] and [CLS] A [SEP] B [SEP]."""

from __future__ import annotations

from typing import Any

from transformers import AddedToken
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

Token = str | AddedToken
"""A special token, as a string or with a say about the spaces beside it."""


def added_token(token: Token, **options: Any) -> AddedToken:
    """The token with its `options`, unless it says for itself what becomes of the spaces beside it."""
    return AddedToken(token, **options) if isinstance(token, str) else token


class SentencePairTokenizer(PreTrainedTokenizerBase):
    """Where special tokens go, and what `decode` cleans up.

    Source: transformers 4.57, tokenization_bert.py.
    """

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """One or two sequences with the special tokens around them: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.

        Args:
            token_ids_0: ids of the first sequence, without special tokens.
            token_ids_1: ids of the second one, if there is one.
        """
        first = [self.cls_token_id, *token_ids_0, self.sep_token_id]
        return first if token_ids_1 is None else [*first, *token_ids_1, self.sep_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for every special token, 0 for every other.

        Args:
            token_ids_0: ids of the first sequence, without special tokens unless `already_has_special_tokens`.
            token_ids_1: ids of the second one, if there is one.
            already_has_special_tokens: whether `token_ids_0` is the whole input, special tokens included; without it,
                the mask is the one for `build_inputs_with_special_tokens(token_ids_0, token_ids_1)`.

        Raises: ValueError for a second sequence beside one that has its special tokens already.
        """
        if not already_has_special_tokens:
            first = [1, *[0] * len(token_ids_0), 1]
            return first if token_ids_1 is None else [*first, *[0] * len(token_ids_1), 1]
        if token_ids_1 is not None:
            raise ValueError(
                "with already_has_special_tokens, token_ids_0 is the whole input: token_ids_1 must be None"
            )
        special = set(self.all_special_ids)
        return [int(token_id in special) for token_id in token_ids_0]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for `[CLS] A [SEP]` and 1 for `B [SEP]`.

        Args:
            token_ids_0: ids of the first sequence, without special tokens.
            token_ids_1: ids of the second one, if there is one.
        """
        first = [0] * (len(token_ids_0) + 2)
        return first if token_ids_1 is None else first + [1] * (len(token_ids_1) + 1)

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:  # static, as in transformers 4
        """The text without the spaces that tokenization leaves before punctuation and English abbreviations."""
        for ending in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
            out_string = out_string.replace(ending, ending.strip())
        return out_string
