"""What the SentencePiece tokenizers share: the model's file, pieces -> text, and sampling that survives a pickle."""

from __future__ import annotations

import os
import shutil
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers.convert_slow_tokenizer import generate_merges
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from .fast import FastTokenizer
from .files import existing_file, existing_folder
from .slow import SlowTokenizer, runs_of


class SentencePieceTokenizer(SlowTokenizer, SentencePieceBackend):
    """A tokenizer that asks SentencePiece for everything.

    Args:
        vocab_file: the path of a SentencePiece model.
        sp_model_kwargs: passed to `SentencePieceProcessor`, for sampling for example.
        kwargs: passed to transformers' `SentencePieceBackend`: the special tokens among them.

    Raises: ValueError without a `vocab_file` or with one that is not a SentencePiece model; FileNotFoundError.
    """

    vocab_files_names = {"vocab_file": "spiece.model"}  # noqa: RUF012  transformers' own way

    def __init__(
        self, vocab_file: str | os.PathLike[str] | None, sp_model_kwargs: dict[str, Any] | None, **kwargs: Any
    ) -> None:
        path = existing_file(self, "vocab_file", vocab_file)
        try:
            super().__init__(vocab_file=path, sp_model_kwargs=_sampling(sp_model_kwargs or {}), **kwargs)
        except RuntimeError as error:  # SentencePiece's only kind
            raise ValueError(f"{type(self).__name__}: {path!r} is not a SentencePiece model: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # SentencePieceProcessor's own pickle leaves the sampling out.
        return self.__dict__ | {"sp_model": self.sp_model.serialized_model_proto()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.sp_model = SentencePieceProcessor(model_proto=state["sp_model"], **self.sp_model_kwargs)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text that a list of tokens stands for. Special tokens are not SentencePiece's, and stay as they are."""
        runs = runs_of(tokens, set(self.all_special_tokens))
        text = ""
        for i, (special, run) in enumerate(runs, start=1):
            # A space comes before text that a special token follows, and nowhere else.
            text += "".join(run) if special else (" " if i < len(runs) else "") + self.sp_model.decode(run)
        return text.strip()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Save the SentencePiece model as `[filename_prefix-]spiece.model`.

        Args:
            save_directory: an existing folder.
            filename_prefix: put before the file's name, with a hyphen.

        Returns: the path of the file.

        Raises: NotADirectoryError if there is no such folder.
        """
        existing_folder(self, save_directory)
        return super().save_vocabulary(save_directory, filename_prefix)


class Merges:
    """What transformers' converters ask about a model of byte pairs: its pieces' ids, and which pieces become one.

    transformers 5 asks its own `SentencePieceExtractor` in a way that this one no longer knows.

    Args:
        vocab_file: not used, the converters having read it.

    Source: transformers 4.57, convert_slow_tokenizer.py.
    """

    def __init__(self, vocab_file: str) -> None:
        pass

    def extract(self, vocab_scores: list[tuple[str, float]]) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """The id of each piece, and the pairs of pieces that are merged, those of the best scores first."""
        ids = {piece: i for i, (piece, _) in enumerate(vocab_scores)}
        return ids, generate_merges(ids, vocab_scores)


class FastSentencePieceTokenizer(FastTokenizer):
    """One that can also be saved as the SentencePiece model that it was made from."""

    vocab_files_names = {"vocab_file": "spiece.model", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Save the SentencePiece model that the tokenizer was made from as `[filename_prefix-]spiece.model`.

        Args:
            save_directory: an existing folder.
            filename_prefix: put before the file's name, with a hyphen.

        Returns: the path of the file.

        Raises: NotADirectoryError if there is no such folder; ValueError if there is no such model, or no more.
        """
        existing_folder(self, save_directory)
        if self.vocab_file is None or not os.path.isfile(self.vocab_file):
            raise ValueError(
                f"{type(self).__name__} has no SentencePiece model to save: its vocab_file is {self.vocab_file!r}"
            )
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = os.path.join(save_directory, prefix + self.vocab_files_names["vocab_file"])
        if os.path.abspath(self.vocab_file) != os.path.abspath(path):
            shutil.copyfile(self.vocab_file, path)
        return (path,)


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    """The options with no sampling asked for where `nbest_size` leaves nothing to draw: SentencePiece would refuse."""
    return {**options, "enable_sampling": False} if options.get("nbest_size") in (0, 1) else {**options}
