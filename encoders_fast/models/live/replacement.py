"""What takes the place of a module of transformers: the same object, with a class that computes the same otherwise.

A replacement derives from the class that it stands for. Its instances are not built but made of live modules, by giving
them another `__class__`, so parameters, hooks, names and the object itself stay what they are, and there is nothing to
keep in step. It is called as before and returns what was returned before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from ..observers import change_class, is_layer_norm, plain, unobserved

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object  # a replacement gets it from transformers' class


class Replacement(_Module):
    """Base of all replacements: `class Layer(Replacement, transformers' Layer)`."""

    stock: ClassVar[type[nn.Module]]
    """transformers' class."""
    work: ClassVar[str]
    """What it runs on, for people to read."""
    whole: ClassVar[bool] = True
    """False where replacements stand in it: then it stands for no more than what is between them."""

    kept: ClassVar[tuple[str, ...]] = ()
    """The names of attributes that it keeps beside transformers'."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stock = [base for base in cls.__mro__ if issubclass(base, nn.Module) and not issubclass(base, Replacement)]
        if stock:  # what several families share derives from none of transformers' classes
            cls.stock = stock[0]

    def bypassed(self) -> dict[str, type[nn.Module]]:
        """The submodules whose work it does itself, without a call, and their types."""
        return {}

    def obstacle(self) -> str | None:
        """Why a call runs transformers' own forward at present; None where it does not."""
        for name, kind in self.bypassed().items():
            module: Any = self
            for part in name.split("."):
                module = module._modules[part]
            if type(module) is not kind:
                return f"{name} is a {full_name(type(module))}"
            if kind is nn.LayerNorm and not is_layer_norm(module):
                return f"{name} has no weight, or no bias, or is not for the last dimension"
            if not unobserved(module):
                return f"{name} has hooks, or another forward, which want to see it called"
            if not all(map(plain, module._parameters.values())):
                return f"{name} has parameters that are not plain tensors"
        return None

    def put_back(self) -> None:
        """Make this module again what it was."""
        for name in self.kept:
            vars(self).pop(name, None)
        change_class(self, self.stock)


def full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def check_module(model: object) -> None:
    """Raise TypeError for what is not a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a model is a torch.nn.Module; this is a {full_name(type(model))}")
