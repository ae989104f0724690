"""FNet's tokenizers: a SentencePiece model, after a clean-up of the text that can be chosen."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from typing import Any

from tokenizers import normalizers
from transformers.convert_slow_tokenizer import AlbertConverter

from .pairs import Token, added_token
from .sentence_piece import FastSentencePieceTokenizer, Merges, SentencePieceTokenizer

__all__ = ["FNetTokenizer", "FNetTokenizerFast"]

logger = logging.getLogger(__name__)

SPACE = "▁"  # as SentencePiece writes it


class FNetTokenizer(SentencePieceTokenizer):
    """Text -> ids by SentencePiece, after a clean-up.

    Args:
        vocab_file: the path of a SentencePiece model.
        do_lower_case: whether the text is turned into lower case.
        remove_space: whether spaces around the text go, and runs of them become one.
        keep_accents: whether letters keep their accents.
        unk_token: what stands for everything that the model does not know.
        sep_token: what follows each sequence.
        pad_token: what short sequences of a batch are filled up with.
        cls_token: what the input begins with.
        mask_token: what stands for a masked word; it takes the spaces before it with it.
        sp_model_kwargs: passed to `SentencePieceProcessor`. With `enable_sampling`, a text is cut into other pieces
            every time: one of the `nbest_size` best ways, or of all if that is negative, with probabilities sharpened
            by `alpha`.
        kwargs: arguments of transformers' `PreTrainedTokenizer`.

    Raises: ValueError without a `vocab_file` or with one that is not a SentencePiece model; FileNotFoundError.

    Source: transformers 4.57, tokenization_fnet.py.
    """

    model_input_names = ["input_ids", "token_type_ids"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None,
        do_lower_case: bool = False,
        remove_space: bool = True,
        keep_accents: bool = True,
        unk_token: Token = "<unk>",
        sep_token: Token = "[SEP]",
        pad_token: Token = "<pad>",
        cls_token: Token = "[CLS]",
        mask_token: Token = "[MASK]",
        sp_model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.do_lower_case = do_lower_case
        self.remove_space = remove_space
        self.keep_accents = keep_accents
        super().__init__(
            vocab_file,
            sp_model_kwargs,
            do_lower_case=do_lower_case,
            remove_space=remove_space,
            keep_accents=keep_accents,
            unk_token=unk_token,
            sep_token=added_token(sep_token, special=True),
            pad_token=pad_token,
            cls_token=added_token(cls_token, special=True),
            mask_token=added_token(mask_token, special=True, lstrip=True),
            **kwargs,
        )

    def preprocess_text(self, inputs: str) -> str:
        """The text as SentencePiece gets it: spaces, quotation marks, accents and capitals as the options say."""
        text = " ".join(inputs.split()) if self.remove_space else inputs
        text = text.replace("``", '"').replace("''", '"')
        if not self.keep_accents:
            text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        return text.lower() if self.do_lower_case else text

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        pieces = self.sp_model.encode(self.preprocess_text(text), out_type=str)
        return [part for piece in pieces for part in self._without_comma(piece)]

    def _without_comma(self, piece: str) -> list[str]:
        """A piece that ends in a digit and a comma in two or more, the comma by itself; any other as it is."""
        if len(piece) < 2 or piece[-1] != "," or not piece[-2].isdigit():
            return [piece]
        number = self.sp_model.encode(piece[:-1].replace(SPACE, ""), out_type=str)
        if not piece.startswith(SPACE) and number[0].startswith(SPACE):  # a space that the text does not have
            number = number[1:] if number[0] == SPACE else [number[0][1:], *number[1:]]
        return [*number, ","]

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = False,
        **kwargs: Any,
    ) -> str:
        text = super()._decode(
            token_ids, skip_special_tokens, clean_up_tokenization_spaces, spaces_between_special_tokens, **kwargs
        )
        # As the fast tokenizer writes it: no space after <unk>.
        return text if spaces_between_special_tokens else text.replace("<unk> ", "<unk>")

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """The usual files, and `tokenizer.json`: without it transformers 5 does not get along with FNet's model."""
        file_names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        try:
            fast = FNetTokenizerFast(
                next(path for path in file_names if path.endswith(self.vocab_files_names["vocab_file"])),
                added_tokens_decoder=self.added_tokens_decoder,
                extra_special_tokens=self._extra_special_tokens,
                **{name: getattr(self, name) for name in ("do_lower_case", "remove_space", "keep_accents")},
                **{name: token for name, token in self._special_tokens_map.items() if token is not None},
            )
        except ValueError as error:  # a model of words or characters: only this tokenizer can use it
            logger.warning("FNetTokenizer is saved without tokenizer.json: %s", error)
            return file_names
        return fast._save_pretrained(save_directory, file_names, legacy_format=False, filename_prefix=filename_prefix)


class FNetConverter(AlbertConverter):
    """FNet's slow tokenizer -> one of the library `tokenizers`."""

    SpmExtractor: Any = Merges


class FNetTokenizerFast(FastSentencePieceTokenizer):
    """Text -> ids by the library `tokenizers`, after a clean-up. Sampling is for `FNetTokenizer` alone.

    Args:
        vocab_file: the path of a SentencePiece model; read if there is no `tokenizer_file`.
        tokenizer_file: the path of a file of the library `tokenizers`.
        do_lower_case, remove_space, keep_accents: as for `FNetTokenizer`, whatever the `tokenizer_file` does.
        unk_token, sep_token, pad_token, cls_token, mask_token: as for `FNetTokenizer`.
        kwargs: arguments of transformers' `PreTrainedTokenizerFast`.

    Raises: ValueError without a file or with one that cannot be read; FileNotFoundError.

    Source: transformers 4.57, tokenization_fnet_fast.py.
    """

    slow_tokenizer_class: Any = FNetTokenizer
    converter_class: Any = FNetConverter
    model_input_names = FNetTokenizer.model_input_names

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        do_lower_case: bool = False,
        remove_space: bool = True,
        keep_accents: bool = True,
        unk_token: Token = "<unk>",
        sep_token: Token = "[SEP]",
        pad_token: Token = "<pad>",
        cls_token: Token = "[CLS]",
        mask_token: Token = "[MASK]",
        **kwargs: Any,
    ) -> None:
        self.do_lower_case = do_lower_case
        self.remove_space = remove_space
        self.keep_accents = keep_accents
        super().__init__(
            vocab_file,
            tokenizer_file,
            options={"do_lower_case": do_lower_case, "remove_space": remove_space, "keep_accents": keep_accents},
            unk_token=unk_token,
            sep_token=added_token(sep_token),
            pad_token=pad_token,
            cls_token=added_token(cls_token),
            mask_token=added_token(mask_token, lstrip=True),
            **kwargs,
        )

    def _apply_options(self) -> None:
        self._tokenizer.normalizer = self._with_options(self._tokenizer.normalizer)

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        # Spaces before a text leave no token behind; one after it would, and goes here: no offset changes by that.
        if self.remove_space:
            text, text_pair = _without_spaces_behind(text), _without_spaces_behind(text_pair)
        return super()._encode_plus(text, text_pair, **kwargs)

    def _with_options(self, normalizer: normalizers.Normalizer | None) -> normalizers.Normalizer:
        """The clean-up with those steps that the options ask for, and without those that they do not."""
        steps = [] if normalizer is None else _steps(json.loads(normalizer.__getstate__()))
        steps = [step for step in steps if step["type"] not in ("NFKD", "StripAccents", "Lowercase")]
        asked = [] if self.keep_accents else ["NFKD", "StripAccents"]
        if self.do_lower_case:
            asked.append("Lowercase")
        at = 0  # quotation marks come first, and SentencePiece's own normalization follows
        while at < len(steps) and "String" in steps[at].get("pattern", ()):
            at += 1
        steps[at:at] = [{"type": step} for step in asked]
        changed = normalizers.Sequence([])
        changed.__setstate__(json.dumps({"type": "Sequence", "normalizers": steps}).encode())
        return changed


def _steps(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a normalizer, those of sequences among them."""
    if state["type"] != "Sequence":
        return [state]
    return [step for part in state["normalizers"] for step in _steps(part)]


def _without_spaces_behind(text: Any) -> Any:
    """A text, or each in a list of texts, pairs or words, without the spaces at its end."""
    if isinstance(text, (list, tuple)):
        return type(text)(map(_without_spaces_behind, text))
    return text.rstrip() if isinstance(text, str) else text
