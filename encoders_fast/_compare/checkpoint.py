"""One checkpoint, loaded with this library as a user would, and a transformers model on the same weights.

Nothing in a checkpoint is executed: weights come from safetensors or through torch's weights-only unpickler, and code
that a checkpoint brings along stays where it is.
"""

from __future__ import annotations

import copy
import importlib
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .families import Family, class_name, family_of
from .refusal import RefusalError, first_line


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is known to be one, before its weights are read."""

    name: str
    family: Family
    class_name: str
    config: Any


def describe(checkpoint: str) -> Checkpoint:
    """Read the configuration and find the class."""
    path = Path(checkpoint).expanduser()
    if path.exists() and not path.is_dir():
        raise RefusalError(f"{checkpoint} is a file; a checkpoint is the folder that holds config.json")
    if path.is_dir() and not (path / "config.json").is_file():
        raise RefusalError(f"{checkpoint} has no config.json, so it is not a checkpoint")
    if not path.exists() and (checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1):
        raise RefusalError(f"there is no folder {checkpoint}")
    checkpoint = str(path) if path.is_dir() else checkpoint
    transformers, models = libraries()
    try:
        raw, _ = transformers.PreTrainedConfig.get_config_dict(checkpoint)
    except Exception as error:
        raise RefusalError(f"cannot read the configuration of {checkpoint}: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise RefusalError(f"{checkpoint}'s config.json is not a configuration: it holds no JSON object")
    family = family_of(checkpoint, raw)
    name = class_name(checkpoint, family, raw, models)
    try:
        config = getattr(transformers, family.prefix + "Config").from_pretrained(checkpoint)
    except Exception as error:
        raise RefusalError(f"{checkpoint}'s config.json is not a {family.prefix}Config: {first_line(error)}") from error
    if config.num_hidden_layers < 1:
        # Both libraries would agree on running nothing.
        raise RefusalError(f"{checkpoint}'s config.json has num_hidden_layers {config.num_hidden_layers}, less than 1")
    return Checkpoint(checkpoint, family, name, config)


def libraries() -> tuple[types.ModuleType, types.ModuleType]:
    """(transformers, encoders_fast.models), both silent about what they do while they load."""
    try:
        import transformers
    except ImportError as error:
        raise RefusalError("compare needs transformers; pip install 'encoders_fast[models]' brings it") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers, importlib.import_module("encoders_fast.models")


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    transformers, _ = libraries()
    try:
        return transformers.AutoTokenizer.from_pretrained(checkpoint.name, trust_remote_code=False)
    except Exception as error:
        # tokenizers' own errors are often no sentence, but a missing key or the place of a wrong character.
        why = f"{type(error).__name__}: {first_line(error)}"
        raise RefusalError(
            f"cannot load the tokenizer of {checkpoint.name}: its files could not be read ({why})"
        ) from error


def load(checkpoint: Checkpoint, library: types.ModuleType, dtype: torch.dtype, device: str) -> tuple[Any, list[str]]:
    """(the model in eval mode, notes on the weights that only the checkpoint or only the model has)."""
    torch.manual_seed(0)
    try:
        # Shapes that differ come back in the report: transformers' own error only points to a table in its log.
        model, report = getattr(library, checkpoint.class_name).from_pretrained(
            checkpoint.name, dtype=dtype, weights_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:
        raise RefusalError(f"cannot load the weights of {checkpoint.name}: {first_line(error)}") from error
    misshapen = [f"{name} is {[*found]}, not {[*wanted]}" for name, found, wanted in sorted(report["mismatched_keys"])]
    if misshapen:
        raise RefusalError(
            f"cannot load the weights of {checkpoint.name}: by its config.json, {len(misshapen)} of them have the wrong"
            f" shape: {first_few(misshapen)}"
        )
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing and len(missing) >= len(list(model.parameters())):
        raise RefusalError(f"{checkpoint.name} holds none of the weights of {checkpoint.class_name}")
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} weights are not in the checkpoint; both got the same random ones: {first_few(missing)}"
        )
    if unexpected:
        notes.append(
            f"{len(unexpected)} weights of the checkpoint are not in the model and were ignored:"
            f" {first_few(unexpected)}"
        )
    return model.eval().to(device), notes


def first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def stock_twin(checkpoint: Checkpoint, ours: nn.Module) -> nn.Module:
    """The transformers model of the same class whose parameters are those of `ours`, the same memory."""
    from transformers.initialization import no_init_weights

    transformers, _ = libraries()
    first = next(ours.parameters())
    default = torch.get_default_dtype()
    torch.set_default_dtype(first.dtype)
    try:
        # The parameters made here are never written, so that they never take physical memory; the buffers are made
        # as transformers makes them.
        with no_init_weights():
            stock = getattr(transformers, checkpoint.class_name)(copy.deepcopy(checkpoint.config))
    finally:
        torch.set_default_dtype(default)
    share_parameters(ours, stock)
    return stock.eval().to(first.device)


def share_parameters(source: nn.Module, target: nn.Module) -> None:
    """Put the parameters of `source` into `target`, under the same names, tied ones too."""
    mine = dict(source.named_parameters(remove_duplicate=False))
    theirs = dict(target.named_parameters(remove_duplicate=False))
    differing = sorted(mine.keys() ^ theirs.keys())
    differing += [name for name in mine.keys() & theirs.keys() if mine[name].shape != theirs[name].shape]
    if differing:
        raise RefusalError(
            f"the two libraries disagree on the weights of {type(source).__name__}: {', '.join(differing[:5])}"
        )
    for name, parameter in mine.items():
        owner, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(owner), leaf, parameter)
