"""The dry run on meta: forward in train and in eval mode, before any memory is spent.

Each symbolic dimension of `inputs` gets a prime of its own, so that two that differ cannot agree by accident. A
mismatch is reported at the statement's file and line, with the layers in it and the shapes of their parameters. A
forward that looks at values cannot run on meta; it can be run on a tiny real batch instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from builder.errors import Problem
from builder.evaluate import evaluate
from builder.expand import Expansion
from builder.language import LanguageError, is_expression
from builder.load import Loaded
from builder.meta import on_meta
from builder.module import is_continuous, origin_of, problem_of, too_large
from builder.repeats import equal_blocks_once
from builder.source import ModelSource
from builder.spec import InputSpec

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)


def example_inputs(
    loaded: Loaded, expansion: Expansion, names: Sequence[int] = PRIMES
) -> dict[str, torch.Tensor] | None:
    """Tensors on meta of the declared shapes, or None where an input has no shape; `names`: sizes of named dimensions.

    Raises:
        BuilderError: A shape is not made of sizes, expressions and names.
    """
    symbols: dict[str, int] = {}
    problems: list[Problem] = []
    tensors: dict[str, torch.Tensor] = {}
    given = {name: spec for name, spec in loaded.spec.inputs.items() if not spec.is_plain}
    if not given or any(spec.shape is None for spec in given.values()):
        return None
    for name, spec in given.items():
        sizes = [_size(size, symbols, expansion, f"inputs.{name}.shape", problems, names) for size in spec.shape or ()]
        problems += too_large(f"inputs.{name}.shape", sizes)
        if not problems:
            tensors[name] = torch.empty(sizes, dtype=getattr(torch, spec.dtype), device="meta")
    loaded.refuse(problems)
    return tensors


def _size(
    size: int | str,
    symbols: dict[str, int],
    expansion: Expansion,
    address: str,
    problems: list[Problem],
    names: Sequence[int],
) -> int:
    value: Any = size
    if is_expression(size):
        try:
            value = evaluate(str(size), expansion.args)
        except LanguageError as err:
            problems.append(Problem(address, err.what, err.hint))
            return 1
    elif isinstance(size, str):
        if size not in symbols and len(symbols) < len(names):
            symbols[size] = names[len(symbols)]
        value = symbols.get(size, 31)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        problems.append(
            Problem(address, f"size {value!r}", "a whole number, an `=` expression, or a name such as batch")
        )
        return 1
    return value


def check_shapes(loaded: Loaded, expansion: Expansion, source: ModelSource, module: nn.Module) -> str:
    """Runs a module on meta in both modes; returns why it could not be run, or nothing.

    Raises:
        BuilderError: A statement of forward fails.
    """
    loaded.refuse(_check_ranges(loaded, expansion))
    inputs = example_inputs(loaded, expansion)
    if inputs is None:
        return "an input declares no shape"
    try:
        with on_meta():
            _run_both_ways(loaded, source, module, inputs)
    except _DataDependent as err:
        return str(err)
    return ""


class _DataDependent(Exception):
    """A forward that looks at values, which meta tensors do not have."""


def run_on_tiny_batch(loaded: Loaded, expansion: Expansion, source: ModelSource, module: nn.Module) -> None:
    """Runs a real module in both modes on a batch of a few made values, within the declared ranges.

    Raises:
        BuilderError: A statement of forward fails, or an input declares no shape.
    """
    made = made_batch(loaded, expansion)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        _run_both_ways(loaded, source, module, made)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])


def made_batch(loaded: Loaded, expansion: Expansion, names: Sequence[int] = PRIMES) -> dict[str, torch.Tensor]:
    """A batch of made values within the declared ranges, always the same.

    Args:
        loaded: The model file.
        expansion: Its layers.
        names: Sizes of its named dimensions, in order.

    Raises:
        BuilderError: An input declares no shape.
    """
    inputs = example_inputs(loaded, expansion, names)
    if inputs is None:
        missing = [name for name, spec in loaded.spec.inputs.items() if spec.shape is None and not spec.is_plain]
        loaded.refuse([Problem(f"inputs.{n}", "declares no shape", "give shape: [batch, ...]") for n in missing])
    generator = torch.Generator().manual_seed(0)
    return {name: _values(loaded, expansion, name, value, generator) for name, value in (inputs or {}).items()}


def _values(
    loaded: Loaded, expansion: Expansion, name: str, like: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    if is_continuous(like.dtype):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)
    low, high = (expansion_value(bound, expansion) for bound in loaded.spec.inputs[name].range or (0, 2))
    return torch.randint(int(low), int(high), like.shape, generator=generator).to(like.dtype)


def _run_both_ways(loaded: Loaded, source: ModelSource, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Runs a module in train and in eval mode, with all inputs and without the optional ones."""
    required = {name: value for name, value in inputs.items() if not loaded.spec.inputs[name].is_optional}
    module.train()
    with torch.no_grad(), _ExactBufferUpdates(), equal_blocks_once(module):
        for training in (True, False):
            module.train(training)
            for given in [inputs, required] if len(required) < len(inputs) else [inputs]:
                try:
                    output = module(**given)
                except Exception as err:
                    if any(value.is_meta for value in inputs.values()) and _needs_values(err):
                        _, _, statement = origin_of(err, type(module), source)
                        raise _DataDependent(f"`{statement}` looks at values") from err
                    raise_from_forward(err, loaded, source, module)
                _check_output(output, loaded)
    module.train()


def _needs_values(err: Exception) -> bool:
    """Whether torch refuses an operation on meta tensors because its result depends on their values."""
    said = str(err)
    if isinstance(err, NotImplementedError):
        return "with Meta tensors" in said or "data-independent implementation does not exist" in said
    return isinstance(err, RuntimeError) and ("on meta tensors" in said or "a meta tensor without" in said)


class _ExactBufferUpdates(TorchFunctionMode):
    """Refuses the update of a buffer that would cut its values off: a fraction to a whole number, say."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.copy_, torch.Tensor.fill_):
            given = args[1].dtype if isinstance(args[1], torch.Tensor) else torch.tensor(args[1]).dtype
            if not torch.can_cast(given, args[0].dtype):
                raise TypeError(f"the buffer is {args[0].dtype} and its new value {given}: declare its dtype")
        return func(*args, **(kwargs or {}))


def _check_ranges(loaded: Loaded, expansion: Expansion) -> list[Problem]:
    problems: list[Problem] = []
    for name, spec in loaded.spec.inputs.items():
        address = f"inputs.{name}.range"
        try:
            bounds = [expansion_value(bound, expansion) for bound in spec.range or ()]
        except LanguageError as err:
            problems.append(Problem(address, err.what, err.hint))
            continue
        wrong = [bound for bound in bounds if isinstance(bound, bool) or not isinstance(bound, int | float)]
        problems += [Problem(address, f"bound {bound!r}", "give numbers: [0, =vocab]") for bound in wrong]
        if bounds and not wrong and not bounds[0] < bounds[1]:
            problems.append(
                Problem(address, f"no value is from {bounds[0]} to below {bounds[1]}", "put the least first")
            )
    return problems


def raise_from_forward(err: Exception, loaded: Loaded, source: ModelSource, module: nn.Module) -> None:
    """Raises what went wrong in forward as a `BuilderError` at the statement's own line."""
    _, _, statement = origin_of(err, type(module), source)
    hint = "\n".join(_layers_in(statement, module)) or "check the shapes of inputs and layers"
    loaded.refuse([problem_of(err, type(module), source, loaded, hint)])


def _layers_in(statement: str, module: nn.Module) -> list[str]:
    """The layers that a statement names, with the shapes of their parameters."""
    named = dict(module.named_parameters(remove_duplicate=False))
    lines = []
    for layer in dict.fromkeys(re.findall(r"self\.(\w+)", statement)):
        shapes: dict[str, str] = {}
        for name, parameter in named.items():
            if re.search(rf"(^|\.){layer}(\.[^.]+)?$", name):
                shapes.setdefault(name, f"{name} {tuple(parameter.shape)}")
        lines += list(shapes.values())[:4]
    return lines


def _check_output(output: Any, loaded: Loaded) -> None:
    leaves = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else [output]
    if not all(isinstance(leaf, torch.Tensor | tuple | list | dict) for leaf in leaves):
        loaded.refuse(
            [Problem("forward", f"returns {type(output).__name__}", "return a tensor, a tuple or a dict of tensors")]
        )


def check_batch(expansion: Expansion, name: str, spec: InputSpec, value: torch.Tensor) -> list[Problem]:
    """What is wrong with one real input: its dimensions, and its range, as declared."""
    problems: list[Problem] = []
    if spec.shape is not None and len(spec.shape) != value.ndim:
        problems.append(
            Problem(
                f"inputs.{name}",
                f"the batch has shape {tuple(value.shape)}, declared {list(spec.shape)}",
                "mend data or inputs",
            )
        )
    if spec.range is not None and value.numel():
        low, high = (expansion_value(bound, expansion) for bound in spec.range)
        least, most = value.min().item(), value.max().item()
        if least < low or most >= high:
            problems.append(
                Problem(
                    f"inputs.{name}.range",
                    f"the batch holds values from {least} to {most}, declared {low} to below {high}",
                    "mend the data, or the args that set the range",
                )
            )
    return problems


def expansion_value(value: Any, expansion: Expansion) -> Any:
    """A literal, or the value of an expression over the model's args."""
    return evaluate(value, expansion.args) if is_expression(value) else value
