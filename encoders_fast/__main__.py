"""`python -m encoders_fast info | compare`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ._compare.refusal import RefusalError


class Parser(argparse.ArgumentParser):
    """Complains in one sentence, where argparse prints its usage too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0 done, 1 the outputs differ, 2 refused with a sentence, 130 interrupted."""
    options = parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except RefusalError as refusal:
        if getattr(options, "traceback", False):
            raise
        print(f"encoders_fast: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nencoders_fast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> Parser:
    top = Parser(prog="python -m encoders_fast", description=__doc__)
    commands = top.add_subparsers(title="commands", required=True, metavar="info | compare", parser_class=Parser)

    info = commands.add_parser("info", help="versions, processor, and which backends run here and why others do not")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=run_info)

    compare = commands.add_parser(
        "compare", help="one checkpoint through transformers and through this library: time, memory, difference"
    )
    add_compare_arguments(compare)
    compare.set_defaults(run=run_compare)
    return top


def add_compare_arguments(compare: Parser) -> None:
    compare.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT_DIR_OR_HUB_ID",
        help="without one, a model of each family with seeded weights, and a tokenizer trained on the spot; no network",
    )
    compare.add_argument("--text", metavar="FILE", help="UTF-8 text; without one, Python's own English documentation")
    compare.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    compare.add_argument(
        "--batch", type=whole_number, metavar="N", help="texts at a time (default: 4, or what suits a demonstration)"
    )
    compare.add_argument(
        "--length",
        type=whole_number,
        metavar="T",
        help="tokens per text (default: 512, or what the model has room for)",
    )
    compare.add_argument(
        "--repeats", type=whole_number, metavar="R", help="timed rounds (default: 5, or 3 of each demonstration)"
    )
    compare.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    compare.add_argument(
        "--against-float32", action="store_true", help="let transformers run in float32 whatever --dtype is"
    )
    compare.add_argument("--json", metavar="OUT", help="write the result to this file too")
    compare.add_argument("--traceback", action="store_true", help="show where a refusal comes from")


def whole_number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more; it is {text!r}")
    return number


def run_info(options: argparse.Namespace) -> int:
    from . import _info

    info = _info.collect()
    print(json.dumps(info, indent=2) if options.json else _info.render(info))
    return 0


def run_compare(options: argparse.Namespace) -> int:
    from ._compare import command

    return command.run(
        command.Options(
            checkpoint=options.checkpoint,
            text=options.text,
            dtype=options.dtype,
            batch=options.batch,
            length=options.length,
            repeats=options.repeats or (5 if options.checkpoint else 3),
            device=options.device,
            against_float32=options.against_float32,
            json=options.json,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
