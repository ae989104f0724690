"""Parameters that checkpoints have, though nothing is computed with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class NamesUnusedParameters(_Base):
    """For a PreTrainedModel. A module in it whose configuration, or whose head, leaves a part without a use has an
    attribute `unused`, the names of such parts."""

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What torch's DistributedDataParallel asks a model for: these have no gradient that it could wait for. They
        are parameters like any other to all else: `requires_grad` would not outlast `from_pretrained`, and somebody
        may use the backbone alone, pooler and all."""
        names = []
        for path, module in self.named_modules():
            for part in getattr(module, "unused", ()):
                prefix = f"{path}.{part}" if path else part
                names += [f"{prefix}.{name}" for name, _ in module.get_submodule(part).named_parameters()]
        return names
