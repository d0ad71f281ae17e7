"""Generated source → class → module on meta.

Kinds are resolved here, among the public classes of `torch.nn` and the blocks of the file, and their arguments are
checked against the class's own signature before anything is constructed. An error in the generated code is traced
to the key of the model file that the failing line came from.
"""

# ruff: noqa: SIM905 (words in a block of text read better than a list of a hundred strings)

from __future__ import annotations

import ast
import inspect
import linecache
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import nn

from builder.allowed import allowed_object, is_dotted
from builder.errors import BuilderError, Problem, did_you_mean
from builder.expand import Expansion, Instance
from builder.language import BUILTINS
from builder.load import Loaded
from builder.names import paths_to
from builder.owners import owners
from builder.source import ModelSource
from builder.spec import BlockSpec, LayerSpec, ModelSpec

_CONTAINERS = {
    "Module",
    "ModuleList",
    "ModuleDict",
    "ParameterList",
    "ParameterDict",
    "Sequential",
    "Container",
    "DataParallel",
}
MAX_VALUES = 10**11  # of one tensor: 400 GB in float32; the largest of a published model of 405 billion has 2 * 10**9
KINDS: dict[str, type[nn.Module]] = {
    name: value
    for name, value in vars(nn).items()
    if inspect.isclass(value)
    and issubclass(value, nn.Module)
    and value.__module__.startswith("torch.nn.")
    and name not in _CONTAINERS
    and not name.startswith(("Lazy", "_"))
}
_POSITIVE = frozenset(
    "in_features out_features num_embeddings embedding_dim in_channels out_channels num_features num_channels "
    "input_size hidden_size embed_dim num_heads d_model nhead num_groups in1_features in2_features".split()
)


# ---- kinds and arguments -------------------------------------------------------------------------------------------


def check_kinds(spec: ModelSpec, expansion: Expansion, allow: Sequence[str] = ()) -> list[Problem]:
    """What is wrong with the kinds of a model's layers and with their arguments.

    Args:
        spec: The model file.
        expansion: Its layers.
        allow: Prefixes of dotted names under which a kind may be a class of the caller's own.
    """
    problems = [
        Problem(f"blocks.{name}", f"block {name!r} hides torch.nn.{name}", "rename it")
        for name in spec.blocks
        if name in KINDS
    ]
    problems += [
        Problem(f"blocks.{name}", f"block {name!r} hides the function {name!r}", "rename it")
        for name in spec.blocks
        if name in BUILTINS
    ]
    problems += [Problem("blocks.Parameter", "block 'Parameter' hides the raw Parameter", "rename it")] * (
        "Parameter" in spec.blocks
    )
    problems += _check_buffers(spec, "")
    for name, block in spec.blocks.items():
        problems += _check_buffers(block, f"blocks.{name}.")
    for instance in expansion.instances:
        kind, address = instance.layer.kind, instance.address
        if kind in spec.blocks or instance.layer.layers is not None:
            continue
        if kind == "Parameter":
            problems += _check_parameter(instance)
        elif is_dotted(kind) and not kind.startswith(("nn.", "torch.nn.")):
            cls, found = allowed_object(kind, allow, f"{address}.kind", "layer class", _is_layer_class)
            problems += found or list(_check_arguments(cls, instance))
        elif kind not in KINDS:
            known = {*KINDS, *spec.blocks, "Parameter"}
            problems.append(Problem(f"{address}.kind", f"unknown kind {kind!r}", _kind_hint(kind, known)))
        else:
            problems += _check_arguments(KINDS[kind], instance)
    return list(dict.fromkeys(problems))


def _check_buffers(block: BlockSpec, section: str) -> Iterator[Problem]:
    """Literal values that are finite and that a buffer's dtype cannot hold: torch makes them infinite in silence."""
    for name, buffer in block.buffers.items():
        dtype = getattr(torch, buffer.dtype) if buffer.dtype else torch.get_default_dtype()
        if not dtype.is_floating_point:
            continue
        most = torch.finfo(dtype).max
        large = [value for value in numbers_in(buffer.value) if math.isfinite(value) and abs(value) > most]
        if large:
            what = f"{large[0]!r} is more than {dtype_name(dtype)} holds"
            yield Problem(f"{section}buffers.{name}.value", what, f"at most {most:.4g}, or declare a wider dtype")


def numbers_in(value: Any) -> Iterator[float]:
    """The numbers of nested lists, in order, without what is no number."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, int | float):
        yield value


def is_continuous(dtype: torch.dtype) -> bool:
    """Whether a dtype is for fractions, real or complex; else for whole numbers."""
    return dtype.is_floating_point or dtype.is_complex


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as a model file has it.

    >>> dtype_name(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")


def _is_layer_class(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _kind_hint(kind: str, known: set[str]) -> str:
    if kind.startswith("Lazy"):
        return "a lazy layer has no shape before data; give its sizes by expressions"
    if kind in _CONTAINERS:
        return "use repeat, or a block"
    if kind.rpartition(".")[2] in KINDS and kind.startswith(("nn.", "torch.nn.")):
        return f"write kind: {kind.rpartition('.')[2]}"
    allowed = "allowed: Parameter, a public class of torch.nn, a block of this file, a class that the caller allows"
    return f"{did_you_mean(kind, known, most=6)}\n{allowed}"


def _check_parameter(instance: Instance) -> Iterator[Problem]:
    shape, axes = instance.values["shape"], instance.values.get("axes")
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        yield Problem(f"{instance.address}.shape", f"shape is {shape!r}", "a list of whole numbers above zero")
        return
    yield from too_large(f"{instance.address}.shape", shape)
    if axes is not None and not are_axes(axes, len(shape)):
        yield Problem(
            f"{instance.address}.axes",
            f"axes {axes!r} for shape {shape}",
            "name each axis: one `in`, one `out`, the others `field`",
        )


def are_axes(axes: object, ndim: int) -> bool:
    """Whether a sequence names each of some dimensions: one `in`, one `out`, the others `field`."""
    if not isinstance(axes, list | tuple) or len(axes) != ndim:
        return False
    return [axes.count(name) for name in ("in", "out", "field")] == [1, 1, ndim - 2]


def too_large(address: str, shape: Sequence[int]) -> list[Problem]:
    """A problem where a tensor would have more than `MAX_VALUES` values."""
    count = math.prod(shape)
    what = f"{count:.3g} values in one tensor; the limit is {MAX_VALUES:.0e}"
    return [Problem(address, what, "make it smaller")] if count > MAX_VALUES else []


def _check_arguments(cls: type[nn.Module], instance: Instance) -> Iterator[Problem]:
    known = _arguments_of(cls.__init__)
    open_ended = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in known.values())
    for key, value in instance.values.items():
        address = f"{instance.address}.{key}"
        if key == "device":
            yield Problem(address, "a layer names no device", "give device= to build(), or trainer=gpu")
        elif key not in known and not open_ended:
            yield Problem(address, f"{cls.__name__} has no argument {key!r}", did_you_mean(key, known))
        elif key in known:
            yield from _check_value(cls, key, value, str(known[key].annotation), address)
    for key, parameter in known.items():
        if (
            parameter.default is parameter.empty
            and key not in instance.values
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            yield Problem(instance.address, f"{cls.__name__} needs {key!r}", f"give {key}: ...")


def _number_hint(value: object) -> str:
    if isinstance(value, bool):
        return "YAML reads yes/no/on/off/true/false as bools"
    named = isinstance(value, str) and value.isidentifier()
    return f"write a number, or an expression over args: ={value}" if named else "write a number"


@cache
def _arguments_of(constructor: Callable[..., None]) -> Mapping[str, inspect.Parameter]:
    parameters = inspect.signature(constructor).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ("self", "device")}


def _check_value(cls: type[nn.Module], key: str, value: Any, annotation: str, address: str) -> Iterator[Problem]:
    annotation = annotation.removeprefix("<class '").removesuffix("'>")
    if annotation in ("int", "float") or key in _POSITIVE:
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield Problem(
                address,
                f"{key} of {cls.__name__} is a number, got {value!r}",
                _number_hint(value),
            )
            return
        if (annotation == "int" or key in _POSITIVE) and not isinstance(value, int):
            yield Problem(address, f"{key} of {cls.__name__} is a whole number, got {value!r}", "use // to divide")
        elif key in _POSITIVE and value < 1:
            yield Problem(address, f"{key} of {cls.__name__} is {value}", "one or more")
    if annotation == "bool" and not isinstance(value, bool):
        yield Problem(address, f"{key} of {cls.__name__} is true or false, got {value!r}", "write true or false")
    if key == "padding_idx" and isinstance(value, int) and value < 0:
        yield Problem(address, f"padding_idx is {value}", "count from the front: a negative index wraps silently")
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem(address, f"{key} of {cls.__name__} is {value}", "give a finite number")


# ---- class and module ----------------------------------------------------------------------------------------------


Rewrite = Callable[[ast.Module], ast.Module]


def compile_class(source: ModelSource, rewrite: Rewrite | None = None) -> type[nn.Module]:
    """The model's class, from its generated source (which was rendered from checked trees alone).

    Args:
        source: The generated source.
        rewrite: Changes the parsed source, for a variant of the class with the same lines.
    """
    cls: type[nn.Module] = getattr(_executed(source.text, source.class_name, rewrite), source.class_name)
    return cls


def _executed(text: str, title: str, rewrite: Rewrite | None = None) -> types.ModuleType:
    """The Python module that generated source makes, once a process."""
    variant = f"_{rewrite.__name__.strip('_')}" if rewrite else ""
    digest = f"{sha256(text.encode()).hexdigest()[:12]}{variant}"
    name = f"builder_generated_{digest}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__ = f"<generated {title} {digest}>"
        linecache.cache[module.__file__] = (len(text), None, text.splitlines(True), module.__file__)
        tree = ast.parse(text, module.__file__)
        exec(compile(rewrite(tree) if rewrite else tree, module.__file__, "exec"), module.__dict__)
        for cls in [value for value in vars(module).values() if getattr(value, "__module__", "") == name]:
            cls.__reduce_ex__ = _reduce_to_source
            cls._builder_source = (text, title, cls.__name__)
        sys.modules[name] = module
    return sys.modules[name]


def _reduce_to_source(self: nn.Module, protocol: int) -> Any:
    """Pickles an instance as its class's source and its state, so that another process can make the class again."""
    made = vars(type(self)).get("_builder_source")
    if made is None:  # a class that somebody derived from a generated one
        return object.__reduce_ex__(self, protocol)
    return _instance_of_source, made, self.__getstate__()  # type: ignore[no-untyped-call]


def _instance_of_source(text: str, title: str, name: str) -> nn.Module:
    cls: type[nn.Module] = getattr(_executed(text, title), name)
    return cls.__new__(cls)


def origin_of(err: BaseException, cls: type[nn.Module], source: ModelSource) -> tuple[str, int | None, str]:
    """Address, text line and source line of the generated statement in which an exception arose."""
    file = sys.modules[cls.__module__].__file__
    found: tuple[str, int | None, str] = ("model", None, "")
    traceback = err.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file and traceback.tb_lineno in source.origins:
            origin = source.origins[traceback.tb_lineno]
            found = (origin.address, origin.text_line, source.text.splitlines()[traceback.tb_lineno - 1].strip())
        traceback = traceback.tb_next
    return found


def problem_of(
    err: BaseException, cls: type[nn.Module], source: ModelSource, loaded: Loaded, hint: str = ""
) -> Problem:
    """An exception in generated code as a problem at the model file's own line."""
    address, text_line, statement = origin_of(err, cls, source)
    message = str(err).splitlines()[0] if str(err) else type(err).__name__
    shown = f"`{statement}`: {message}" if statement else message
    return loaded.places.fill(Problem(address, shown, hint, text_line=text_line))


def construct(loaded: Loaded, source: ModelSource, args: Mapping[str, Any], make: Callable[[], Any]) -> nn.Module:
    """An instance of the model's class, built within the context that `make` gives.

    Raises:
        BuilderError: A layer refuses its arguments.
    """
    cls = compile_class(source)
    try:
        with make():
            return cls(**args)
    except Exception as err:
        loaded.refuse([problem_of(err, cls, source, loaded, "give the layer arguments that its class takes")])
        raise


# ---- what a built module carries -----------------------------------------------------------------------------------


class Carried(Protocol):
    """The parts of a proof (`builder.build.Proof`) that a built module needs after it was built."""

    @property
    def loaded(self) -> Loaded:
        """The spec."""

    @property
    def expansion(self) -> Expansion:
        """Every layer instance."""

    @property
    def source(self) -> ModelSource:
        """The generated source."""

    @property
    def ties(self) -> Mapping[str, str]:
        """Tied name → owner."""

    @property
    def frozen(self) -> Mapping[str, Any]:
        """Owner → what freezes it."""


def uncompiled(module: nn.Module) -> nn.Module:
    """What `torch.compile` has wrapped, whose names are those of the model file; any other module itself."""
    inner = module._modules.get("_orig_mod")
    return module if inner is None else inner


def as_written(name: str) -> str:
    """A name in the model file of what has another within a module of which `torch.compile` has wrapped parts."""
    return name.replace("_orig_mod.", "")


def carried(module: nn.Module) -> Carried:
    """What a built module carries, also one that `torch.compile` has wrapped.

    Raises:
        BuilderError: The module was not built by builder.
    """
    proof: Carried | None = uncompiled(module).__dict__.get("_builder_proof")
    if proof is None:
        problem = Problem(type(module).__name__, "was not built by builder", "build it with builder.build(...)")
        raise BuilderError("module", [problem])
    return proof


# ---- parameters ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One parameter of a module, as rules see it.

    Attributes:
        name: Dotted name.
        kind: Class name of the owning layer, or `Parameter`.
        shape: Its sizes.
        trainable: Whether it requires a gradient.
        owner: Dotted path of the module that owns it.
        local: Its name within that module.
        instance: The declared layer that it belongs to.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    trainable: bool
    owner: str
    local: str
    instance: Instance

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


def entries(module: nn.Module, expansion: Expansion) -> list[Entry]:
    """Every parameter under every name that it has, a transposed tie's among them, in declaration order."""
    by_path = {instance.path: instance for instance in expansion.instances}
    found: list[Entry] = []
    named = dict(module.named_parameters(remove_duplicate=False))
    transposed = [name for name, tie in owners(expansion.spec.tie)[0].items() if tie.transpose and name not in named]
    for name, parameter in [*named.items(), *((name, getattr(module, name)) for name in transposed)]:
        owner, _, local = name.rpartition(".")
        instance = next(by_path[path] for path in reversed(paths_to(name)) if path in by_path)
        kind = "Parameter" if instance.layer.kind == "Parameter" else type(module.get_submodule(owner)).__name__
        found.append(Entry(name, kind, tuple(parameter.shape), parameter.requires_grad, owner, local, instance))
    order = {instance.path: i for i, instance in enumerate(expansion.instances)}
    return sorted(found, key=lambda entry: order[entry.instance.path])


def check_sizes(parameters: Sequence[Entry], module: nn.Module) -> list[Problem]:
    """Which parameters and buffers of a module on meta are larger than any machine holds."""
    found = [too_large(entry.instance.address, entry.shape) for entry in parameters]
    found += [too_large(f"buffers.{name}", buffer.shape) for name, buffer in module.named_buffers()]
    return [problem for problems in found for problem in problems]


def buffer_entries(module: nn.Module, expansion: Expansion) -> list[Entry]:
    """Every buffer that a state_dict holds, as rules see it; what a file declares under `buffers` has kind `buffer`."""
    by_path = {instance.path: instance for instance in expansion.instances}
    saved = module.state_dict().keys()
    found = []
    for name, buffer in module.named_buffers():
        owner, _, local = name.rpartition(".")
        declared = Instance(name, f"buffers.{name}", LayerSpec(kind="buffer"), {}, {})
        instance = next((by_path[path] for path in reversed(paths_to(name)) if path in by_path), declared)
        kind = "buffer" if instance is declared else type(module.get_submodule(owner)).__name__
        if name in saved:
            found.append(Entry(name, kind, tuple(buffer.shape), False, owner, local, instance))
    return found
