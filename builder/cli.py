"""`python -m builder check|show|code`, on a model file or on the overrides of a run.

Each command answers `--help` without importing torch. A config that is refused ends with exit code 2 and every problem
of the stage that refused it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from builder.errors import BuilderError, Problem

if TYPE_CHECKING:
    from builder.build import Proof

_EXAMPLES = """examples:
  python -m builder {command} conf/model/gpt.yaml
  python -m builder {command} conf/model/gpt.yaml args.d=128 args.heads=8
  python -m builder {command} model=digits_mlp init=orthogonal
  python -m builder {command} +recipes=char_gpt
"""
_COMMANDS = {
    "check": "prove that a model, or a whole run, builds; nothing is allocated",
    "show": "print the parameter table",
    "code": "print the PyTorch source that the model stands for",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 where the config is refused."""
    given = _parser().parse_args(arguments)
    try:
        {"check": _check, "show": _show, "code": _code}[given.command](given)
    except BuilderError as err:
        print(err, file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0  # the reader, such as `head`, has gone
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m builder", description="YAML to ordinary PyTorch, with every parameter accounted for."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=what,
            description=what,
            epilog=_EXAMPLES.format(command=name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "target",
            nargs="*",
            metavar="MODEL.yaml | OVERRIDE",
            help="a model file with key=value overrides, or Hydra overrides",
        )
        if name == "show":
            command.add_argument("--json", action="store_true", help="print the table as JSON")
    return parser


def _is_file(target: Sequence[str]) -> bool:
    return bool(target) and "=" not in target[0] and not target[0].startswith(("~", "+"))


def _prove(target: Sequence[str]) -> Proof:
    if _is_file(target):
        from builder.build import prove  # here and below: `--help` needs no torch
        from builder.load import read_file

        data, places = read_file(target[0], target[1:])
        return prove(data, places=places, name=places.file.removesuffix(".yaml"))
    from builder.config import composed
    from builder.lit_module import plan_run

    config, origin = composed(target)
    return plan_run(config, places=origin.places, name=origin.name, scheme_name=origin.scheme_name).proof


def _check(given: argparse.Namespace) -> None:
    proof = _prove(given.target)
    from builder.table import rows, totals

    counts = totals(rows(proof))
    frozen = f", {counts['frozen']:,} of them frozen" if counts["frozen"] else ""
    unchecked = (
        ""
        if all(spec.shape is not None for spec in proof.loaded.spec.inputs.values())
        else "; shapes not checked: an input declares none"
    )
    print(
        f"{proof.loaded.places.file or proof.loaded.name}: ok, {counts['parameters']:,} parameters{frozen}{unchecked}"
    )


def _show(given: argparse.Namespace) -> None:
    proof = _prove(given.target)
    from rich.console import Console

    from builder.table import as_data, render_table, rows

    table = rows(proof)
    if given.json:
        print(json.dumps(as_data(table), indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(render_table(table, proof.source.class_name))


def _code(given: argparse.Namespace) -> None:
    from builder.code import code

    if _is_file(given.target):
        from builder.load import read_file

        data, places = read_file(given.target[0], given.target[1:])
        print(code(data, places=places, name=places.file.removesuffix(".yaml")), end="")
        return
    from builder.config import composed

    config, origin = composed(given.target)
    if config.get("model") is None:
        raise BuilderError("config", [Problem("model", "is missing", "give model=NAME")])
    print(code(config.model, places=origin.places, name=origin.name), end="")
