"""Class names of transformers 4 that no longer stand for anything. Needs no transformers."""

from __future__ import annotations

import sys

_FRAMEWORKS = {
    "TF": ("TensorFlow", "tf_model.h5", ("mobilebert", "roberta_prelayernorm")),
    "Flax": ("Flax", "flax_model.msgpack", ("big_bird", "roberta_prelayernorm")),
}
"""How a class name begins -> framework, its checkpoints, and the families that transformers had in it."""


def refuse(name: str, families: dict[str, tuple[str, ...]]) -> None:
    """Raise an error that names the PyTorch class if `name` is that of a TensorFlow or Flax class of transformers 4.

    Args:
        name: what a module was asked for.
        families: module of this library -> the public names in it.

    Raises: AttributeError, or ImportError where `from module import name` asks.
    """
    for prefix, (framework, file, modules) in _FRAMEWORKS.items():
        # What MobileBertModel is in PyTorch was a layer of its own in Keras.
        replacement = name.removeprefix(prefix).replace("MainLayer", "Model")
        if name.startswith(prefix) and any(replacement in families[module] for module in modules):
            message = (
                f"{name} was a class for {framework}, which transformers has dropped: use {replacement}, whose"
                f" from_pretrained reads {file} too (pip install 'encoders-fast[checkpoints]')"
            )
            raise ImportError(message) if _asked_by_import() else AttributeError(message)


def _asked_by_import() -> bool:
    """Whether the attribute is asked for by `from package import name`: Python would drop an AttributeError's text and
    say that it cannot import the name."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("encoders_fast"):
        frame = frame.f_back
    return frame.f_globals.get("__name__") == "importlib._bootstrap"
