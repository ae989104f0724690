"""What the tests of the benches share."""

import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
# At the end: the installed package goes before the one in the source tree.
sys.path.append(str(ROOT))

from bench.contender import Case, Contender, Expected  # noqa: E402

ONES = torch.ones(4)
EXPECTED = (Expected(ONES.double(), 1e-6),)


class Benchmark:
    """As much of pytest-benchmark's fixture as the harness uses."""

    def __init__(self, disabled=False):
        self.disabled = disabled
        self.extra_info = {}
        self.rounds = 0

    def pedantic(self, target, setup, rounds, iterations):
        for _ in range(rounds):
            setup()
            target()
        self.rounds = rounds


def sleeping(name, seconds, calls=None, **more):
    def call():
        if calls is not None:
            calls.append(name)
        time.sleep(seconds)
        return ONES

    return Contender(name, call, **({"expected": EXPECTED} | more))


def case(*contenders, **more):
    return Case("group", "row", contenders, "ours", **more)


def lines_of(record):
    return {line["name"]: line for line in record["contenders"]}
