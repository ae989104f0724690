"""What a bench case is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor


class Expected(NamedTuple):
    """One output as it should be."""

    exact: Tensor
    """In float64."""
    allowed: float
    """Largest relative L2 error against it."""


@dataclass(frozen=True)
class Target:
    """A contender has to be `at_least` times as fast as the one called `against`."""

    against: str
    at_least: float


@dataclass(frozen=True)
class Limit:
    """A number of a contender's may be `at_most` so much, or so many times what it is in the case `of` of its group."""

    number: Literal["median", "extra_memory", "memory"]
    """`memory` is that and the weights'."""
    at_most: float
    """Seconds or bytes, or times."""
    of: str | None = None


@dataclass(frozen=True)
class Contender:
    """One way to do what a case asks for."""

    name: str
    call: Callable[[], Any]
    baseline: str | None = None
    """The contender that the ratio is taken to."""
    target: Target | tuple[Target | Limit, ...] | None = None
    """What it has to reach, one thing or several."""
    bytes: float = 0
    """That have to move from and to memory, whatever the algorithm."""
    flops: float = 0
    """Of the work that has to be done, whatever a contender really does: the faster has more of them per second."""
    outputs: Callable[[Any], tuple[Tensor, ...]] = lambda result: (result,)
    """What `call` returned -> the tensors to check."""
    expected: tuple[Expected, ...] = ()
    """One for each of these outputs."""
    memory: bool = False
    """Whether to measure the memory it needs beyond its arguments and its result."""
    absent: str | None = None
    """The sentence why it cannot run here."""
    check: Callable[[], Any] | None = None
    """What is checked in place of `call`, where a right answer to that would take too long to compute."""
    weights: int = 0
    """Bytes of them, where a limit counts these too."""

    @property
    def targets(self) -> tuple[Target | Limit, ...]:
        if self.target is None:
            return ()
        return self.target if isinstance(self.target, tuple) else (self.target,)


@dataclass(frozen=True)
class Case:
    """One question; its contenders answer it side by side, one after another, in every round."""

    group: str
    """Names a table: "fourier_mixing forward"."""
    name: str
    """Names a row of it: "(8, 512, 768)"."""
    contenders: tuple[Contender, ...]
    subject: str
    """The contender whose times go into pytest-benchmark's own storage."""
    grad: bool = False
    """Whether autograd records. Elsewhere it is inference mode."""
    rounds: int | None = None
    """How many, where a call takes seconds; it then has no other warm-up than its check. Elsewhere what time allows."""
    pause: float = 0.0
    """Seconds before each turn, where runtimes with threads of their own take turns: idle ones spin for a while."""
    axis: str | None = None
    """What `name` is a number of ("tokens"), where the group's cases are one curve and its table has a row for each."""
