"""Configurations: transformers' own, with the options that only this library has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F

_NAMES_OF_CALLABLES: dict[Any, str] = {
    F.relu: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.mish: "mish",
    F.sigmoid: "sigmoid",
    F.tanh: "tanh",
    torch.relu: "relu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    nn.functional.leaky_relu: "leaky_relu",
}


def _validated(cls: Any) -> Any:
    """transformers' configurations became validating dataclasses between 5.0 and 5.17: then ours is one too."""
    if "__dataclass_fields__" not in vars(transformers.PreTrainedConfig):
        return cls
    from huggingface_hub.dataclasses import strict

    return strict(cls)


if TYPE_CHECKING:
    from transformers import PreTrainedConfig as _Base
else:
    _Base = object


class _CallableActivation(_Base):
    """Lets `hidden_act` be a function, as it is documented, and saves it by its name."""

    hidden_act: Any

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if not isinstance(self.hidden_act, str):
            output["hidden_act"] = _NAMES_OF_CALLABLES.get(self.hidden_act, repr(self.hidden_act))
        return output

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.hidden_act, str) and self.hidden_act not in _NAMES_OF_CALLABLES:
            raise ValueError(
                f"hidden_act {self.hidden_act!r} cannot be saved in a configuration file: set it to a name first"
            )
        return super().save_pretrained(*args, **kwargs)


@_validated
class FNetConfig(_CallableActivation, transformers.FNetConfig):
    """Configuration of the FNet models: `transformers.FNetConfig` and one option more.

    Args:
        hidden_act: a name that transformers knows, or a function of one tensor.
        fourier_norm: "backward" (no scaling, as all published checkpoints) or "ortho" (divided by sqrt(T * D)), for
            models trained from scratch: the mixing then keeps the scale of its input.
        use_tpu_fourier_optimizations, tpu_short_seq_length: accepted and of no effect on the result: the transform is
            right at every length. (transformers raises at any length but `tpu_short_seq_length`, and after
            `from_pretrained` at this one too.)
        Others: see `transformers.FNetConfig`.
    """

    model_type = "fnet"
    hidden_act: Any = "gelu_new"
    fourier_norm: str = "backward"

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if output.get("fourier_norm") == "backward":  # transformers' own configuration has no such key
            del output["fourier_norm"]
        return output
