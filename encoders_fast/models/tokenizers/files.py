"""What is wrong with a vocabulary file, said before anything is built from it."""

from __future__ import annotations

import os
from typing import Any


def existing_file(tokenizer: Any, argument: str, path: str | os.PathLike[str] | None) -> str:
    """The path as a string.

    Args:
        tokenizer: the tokenizer that reads the file, for the message.
        argument: the name of its argument, "vocab_file" or "tokenizer_file".
        path: what was passed for it.

    Raises: ValueError where nothing was passed; FileNotFoundError where there is no such file.
    """
    name, file_name = type(tokenizer).__name__, tokenizer.vocab_files_names[argument]
    if path is None:
        raise ValueError(f"{name} needs {argument}, the path of a {file_name}, and got none")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name}: {argument} {os.fspath(path)!r} is not a file")
    return os.fspath(path)


def existing_folder(tokenizer: Any, path: str | os.PathLike[str]) -> None:
    """Raises: NotADirectoryError where `path` is not a folder that a vocabulary can be saved in."""
    if not os.path.isdir(path):
        raise NotADirectoryError(f"{type(tokenizer).__name__}.save_vocabulary: {os.fspath(path)!r} is not a folder")
