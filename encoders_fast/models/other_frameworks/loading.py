"""`from_pretrained` for TensorFlow's and Flax's checkpoints: they become a state dict, the rest is transformers'."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from transformers import GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from . import flax, tensorflow
from .completeness import check_complete
from .state_dict import convert, settle_ties

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel as _Base
else:
    _Base = object


Read = Callable[[str], Iterator[tuple[str, Tensor]]]

_FORMATS: dict[str, tuple[str, Read]] = {
    "from_tf": ("tf_model.h5", tensorflow.read),
    "from_flax": ("flax_model.msgpack", flax.read),
}
"""The option of `from_pretrained` that asks for a format -> its file, and what reads one."""

_FOR_PYTORCH = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)

_WHERE = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
"""The options of `from_pretrained` that say where files are."""


class Checkpoint(NamedTuple):
    files: list[str]
    read: Read
    folder: Any
    """Where the configuration is: a folder or a hub id."""


class LoadsOtherFrameworks(_Base):
    """A model that can be loaded from TensorFlow's and Flax's checkpoints."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        from_tf: bool = False,
        from_flax: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers'. Where there are no weights for PyTorch, those in `tf_model.h5` or `flax_model.msgpack` are
        read, whole or in shards. Nothing in them is executed, and neither framework is needed.

        Args:
            pretrained_model_name_or_path: a folder, a hub id, or a file of one of these kinds, whose `config` is in its
                folder if none is given.
            from_tf, from_flax: read that framework's weights, whatever others there are.
            kwargs: transformers' own.

        Raises: ImportError without h5py or msgpack; OSError for a file that is missing or broken; ValueError for a
        weight that is none, that no model of the family with this configuration has (one of a layer more, say), or that
        is missing from the backbone, and for a file without weights.
        """
        path = pretrained_model_name_or_path
        if from_tf and from_flax:
            raise ValueError("from_tf and from_flax are both True: a model is loaded from one checkpoint")
        option = "from_tf" if from_tf else "from_flax" if from_flax else None
        checkpoint = _asked_for(path, option, kwargs)
        if checkpoint is None:
            try:
                return super().from_pretrained(path, *model_args, **kwargs)
            except OSError as error:
                nothing_for_pytorch = error
            checkpoint = _instead(path, kwargs)
            if checkpoint is None:
                raise nothing_for_pytorch
        return cls._from_checkpoint(checkpoint, model_args, kwargs)

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, model_args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model, and its loading report if `output_loading_info` asks for it."""
        files, read, folder = checkpoint
        where = _where(kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in where}
        config = kwargs.pop("config", None)
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)  # for settle_ties
        else:
            # A configuration would take the dtype for its own, and what "auto" means depends on the weights.
            dtypes: dict[str, Any] = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config_class: Any = cls.config_class
            config, kwargs = config_class.from_pretrained(
                folder if config is None else config, return_unused_kwargs=True, **where, **kwargs
            )
            kwargs |= dtypes
        if cls.can_generate() and "generation_config" not in kwargs:
            with contextlib.suppress(OSError):  # there need not be one
                kwargs["generation_config"] = GenerationConfig.from_pretrained(folder, **where)
        state, sources = convert((weight for file in files for weight in read(file)), f"{cls.base_model_prefix}.")
        if not state:
            raise ValueError(
                f"there are no weights in {', '.join(files) or f'the shards that the index of {folder} names'}"
            )
        settle_ties(state, cls._tied_weights_keys or {}, config)
        wants_report = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            None, *model_args, config=config, state_dict=state, output_loading_info=True, **kwargs
        )
        model, report = loaded
        check_complete(report, state, sources, model)
        model.name_or_path = model.config.name_or_path = str(folder)
        return (model, report) if wants_report else model


def _where(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in _WHERE if name in kwargs}


def _asked_for(path: Any, option: str | None, kwargs: dict[str, Any]) -> Checkpoint | None:
    """What was explicitly named, as a file or by an option; None where nothing was. Raises OSError where it is not
    there."""
    if path is not None and os.path.isfile(path):
        file, suffix = os.fspath(path), os.path.splitext(path)[1]
        for name, read in _FORMATS.values():
            if name.endswith(suffix) and suffix:
                return Checkpoint([file], read, os.path.dirname(file) or os.curdir)
    if option is None:
        return None
    checkpoint = _find(option, path, kwargs)
    if checkpoint is None:
        name = _FORMATS[option][0]
        raise OSError(f"{path} has no {name} and no {name}.index.json, which {option}=True asks for")
    return checkpoint


def _instead(path: Any, kwargs: dict[str, Any]) -> Checkpoint | None:
    """What there is where there is nothing for PyTorch, and nothing was asked for that only PyTorch's files have."""
    if any(kwargs.get(option) for option in ("use_safetensors", "variant", "gguf_file")):
        return None
    if any(_cached(name, path, kwargs) for name in _FOR_PYTORCH):
        return None
    return next(filter(None, (_find(option, path, kwargs) for option in _FORMATS)), None)


def _find(option: str, path: Any, kwargs: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint of that format in a folder or on the hub, whole or in shards."""
    name, read = _FORMATS[option]
    whole = _cached(name, path, kwargs)
    if whole is not None:
        return Checkpoint([whole], read, path)
    index = _cached(f"{name}.index.json", path, kwargs)
    if index is None:
        return None
    return Checkpoint(get_checkpoint_shard_files(path, index, **_where(kwargs))[0], read, path)


def _cached(file: str, path: Any, kwargs: dict[str, Any]) -> str | None:
    return cached_file(
        path,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        **_where(kwargs),
    )
