"""`python -m builder check|show|explain|probe|code|schema|report`: a model file, the overrides of a run, or a run.

Each command answers `--help` without importing torch. A config that is refused ends with exit code 2 and every problem
of the stage that refused it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.errors import BuilderError, Problem

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from builder.build import Proof
    from builder.freeze import FreezePlan
    from builder.lit_module import RunPlan

_EXAMPLES = """examples:
  python -m builder {command} conf/model/gpt.yaml
  python -m builder {command} conf/model/gpt.yaml args.d=128 args.heads=8
  python -m builder {command} model=digits_mlp init=orthogonal
  python -m builder {command} +recipes=char_gpt
"""
_EXPLAIN_EXAMPLES = """examples:
  python -m builder explain h.1.mlp.c_proj.weight conf/model/gpt.yaml
  python -m builder explain fc1.weight model=digits_mlp init=orthogonal init_seed=3
  python -m builder explain head.weight +recipes=char_gpt
"""
_SCHEMA_EXAMPLES = """examples:
  python -m builder schema > model.schema.json
A model file names it in its first line, for editors with a YAML language server:
  # yaml-language-server: $schema=model.schema.json
"""
_REPORT_EXAMPLES = """examples:
  python -m builder report runs/2026-11-21/15-54-59
  python -m builder report multirun/2026-11-21/15-31-05 --output sweep.html
"""
_COMMANDS = {
    "check": "prove that a model, or a whole run, builds; nothing is allocated",
    "show": "print the parameter table",
    "explain": "print what decides one parameter, and its scale in theory and as drawn",
    "probe": "send one batch forward and back through the model as it starts, and judge its scales",
    "code": "print the PyTorch source that the model stands for",
    "schema": "print the JSON Schema of the model file, for editors",
    "report": "write a run, or a sweep, as one HTML file that needs no network",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 where the config is refused."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)  # argparse takes no part of `target` after an option
    rest = [part for part in rest if part != "--"]
    if rest and ("target" not in given or any(part.startswith("-") for part in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        given.target = [*given.target, *rest]
    try:
        {
            "check": _check, "show": _show, "explain": _explain, "probe": _probe, "code": _code, "schema": _schema,
            "report": _report,
        }[given.command](given)  # fmt: skip
    except BuilderError as err:
        print(err, file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0  # the reader, such as `head`, has gone
    except Exception as err:
        from omegaconf.errors import OmegaConfBaseException

        from builder.config import unresolved

        if not isinstance(err, OmegaConfBaseException):  # a section that was taken out is missed where it is read
            raise
        print(unresolved(err), file=sys.stderr)
        return 2
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
            epilog={"explain": _EXPLAIN_EXAMPLES, "schema": _SCHEMA_EXAMPLES, "report": _REPORT_EXAMPLES}.get(name)
            or _EXAMPLES.format(command=name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == "schema":
            continue
        if name == "report":
            command.add_argument("directory", metavar="DIR", help="the directory of a run or of a multirun")
            command.add_argument("--output", metavar="FILE", help="where to write; DIR/report.html when not given")
            continue
        if name == "explain":
            command.add_argument("name", metavar="NAME", help="dotted name of a parameter, as in the state_dict")
        command.add_argument(
            "--allow",
            action="append",
            default=[],
            metavar="PREFIX",
            help="a package whose classes and functions the file may name; may be given several times",
        )
        command.add_argument(
            "target",
            nargs="*",
            metavar="MODEL.yaml | OVERRIDE",
            help="a model file with key=value overrides, or Hydra overrides",
        )
        if name == "check":
            command.add_argument(
                "--batch", action="store_true", help="build the model and run it on a tiny batch of made values"
            )
        if name in ("show", "probe"):
            command.add_argument("--json", action="store_true", help="print it as JSON")
        if name == "probe":
            command.add_argument("--html", type=Path, metavar="FILE", help="also write it as a page with figures")
    return parser


def _is_file(target: Sequence[str]) -> bool:
    return bool(target) and "=" not in target[0] and not target[0].startswith(("~", "+"))


def _prove(target: Sequence[str], allow: Sequence[str]) -> Proof:
    if _is_file(target):
        from builder.build import prove  # here and below: `--help` needs no torch
        from builder.load import read_file

        data, places = read_file(target[0], target[1:])
        return prove(data, allow=allow, places=places, name=places.file.removesuffix(".yaml"))
    return _plan(target, allow)[0].proof


def _plan(target: Sequence[str], allow: Sequence[str]) -> tuple[RunPlan, DictConfig]:
    from builder.config import composed
    from builder.lit_module import plan_run

    config, origin = composed(target)
    try:
        found = plan_run(config, allow=allow, places=origin.places, name=origin.name, scheme_name=origin.scheme_name)
        return found, config
    except BuilderError as err:
        raise origin.locate(err) from err


def _check(given: argparse.Namespace) -> None:
    proof = _prove(given.target, given.allow)
    from builder.table import rows, totals

    counts = totals(rows(proof))
    frozen = f", {counts['frozen']:,} of them frozen" if counts["frozen"] else ""
    frozen += _idle(proof.freeze)
    shapes = f"; shapes not checked: {proof.unchecked} (--batch runs a tiny batch)" if proof.unchecked else ""
    if given.batch:
        from builder.build import materialise
        from builder.shapes import run_on_tiny_batch

        run_on_tiny_batch(proof.loaded, proof.expansion, proof.source, materialise(proof))
        shapes = "; ran on a tiny batch"
    print(f"{proof.loaded.places.file or proof.loaded.name}: ok, {counts['parameters']:,} parameters{frozen}{shapes}")
    for report in proof.pretrained:
        print(report)


def _idle(plan: FreezePlan) -> str:
    """Until when nothing of a model trains: a model may be so, and a training of it is refused."""
    from builder.freeze import is_idle

    if not plan.shapes or not is_idle(plan, 0, 0):
        return ""
    if not plan.scheduled:
        return "; nothing trains"
    epoch = next((f"epoch {time}" for time in plan.times("epoch") if not is_idle(plan, time, 0)), None)
    step = next((f"step {time}" for time in plan.times("step") if not is_idle(plan, 0, time)), None)
    ends = " or ".join(end for end in (epoch, step) if end)
    return f"; nothing trains before {ends}" if ends else "; nothing trains at the start"


def _show(given: argparse.Namespace) -> None:
    proof = _prove(given.target, given.allow)
    from rich.console import Console

    from builder.table import as_data, render_table, rows

    table = rows(proof)
    if given.json:
        print(json.dumps(as_data(table), indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(render_table(table, proof.source.class_name))


def _explain(given: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from builder.explain import explain, lines
    from builder.groups import group_of

    if _is_file(given.target):
        found = lines(explain(_prove(given.target, given.allow), given.name))
    else:
        plan, _ = _plan(given.target, given.allow)
        seed = plan.config.get("init_seed", plan.config.get("seed", 0))
        explanation = explain(plan.proof, given.name, seed=seed, rng=plan.config.get("rng", "keyed"))
        found = lines(explanation, group_of(plan.groups, explanation.owner))
    grid = Table.grid(padding=(0, 2))
    for label, text in found:
        grid.add_row(f"[bold]{label}[/]", text)
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(grid)


def _probe(given: argparse.Namespace) -> None:
    from rich.console import Console

    from builder.probe import probe_model, probe_run, render

    if _is_file(given.target):
        found = probe_model(_prove(given.target, given.allow))
    else:
        found = probe_run(*_plan(given.target, given.allow))
    if given.html:
        from builder.export import write_text
        from builder.report.probe import probe_page

        write_text(given.html, probe_page(found, " ".join(given.target)))
    if given.json:
        print(json.dumps(found.as_data(), indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(render(found))


def _schema(given: argparse.Namespace) -> None:
    from builder.schema import schema

    print(json.dumps(schema(), indent=2))


def _report(given: argparse.Namespace) -> None:
    from builder.report.write import write_report

    print(write_report(given.directory, given.output))


def _code(given: argparse.Namespace) -> None:
    from builder.code import code

    if _is_file(given.target):
        from builder.load import read_file

        data, places = read_file(given.target[0], given.target[1:])
        print(code(data, places=places, name=places.file.removesuffix(".yaml")), end="")
        return
    from omegaconf import OmegaConf

    from builder.config import composed

    config, origin = composed(given.target)
    if config.get("model") is None:
        raise BuilderError("config", [Problem("model", "is missing", "give model=NAME")])
    freeze: Any = OmegaConf.to_container(config.freeze, resolve=True) if config.get("freeze") else None
    print(code(config.model, freeze=freeze, places=origin.places, name=origin.name), end="")
