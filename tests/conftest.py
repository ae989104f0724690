"""What every test stands on."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Inputs drawn without a generator of their own are the same in each run: a test's result is the code's."""
    torch.manual_seed(0)
