"""Generated source → class → module on meta.

Kinds are resolved here, among the public classes of `torch.nn` and the blocks of the file, and their arguments are
checked against the class's own signature before anything is constructed. An error in the generated code is traced
to the key of the model file that the failing line came from.
"""

# ruff: noqa: SIM905 (words in a block of text read better than a list of a hundred strings)

from __future__ import annotations

import inspect
import linecache
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from builder.errors import Problem, did_you_mean
from builder.expand import Expansion, Instance
from builder.language import BUILTINS
from builder.load import Loaded
from builder.source import ModelSource
from builder.spec import ModelSpec

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


def check_kinds(spec: ModelSpec, expansion: Expansion) -> list[Problem]:
    """What is wrong with the kinds of a model's layers and with their arguments."""
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
    for instance in expansion.instances:
        kind, address = instance.layer.kind, instance.address
        if kind in spec.blocks:
            continue
        if kind == "Parameter":
            problems += _check_parameter(instance)
        elif kind not in KINDS:
            known = {*KINDS, *spec.blocks, "Parameter"}
            problems.append(Problem(f"{address}.kind", f"unknown kind {kind!r}", _kind_hint(kind, known)))
        else:
            problems += _check_arguments(KINDS[kind], instance)
    return list(dict.fromkeys(problems))


def _kind_hint(kind: str, known: set[str]) -> str:
    if kind.startswith("Lazy"):
        return "a lazy layer has no shape before data; give its sizes by expressions"
    if kind in _CONTAINERS:
        return "use repeat, or a block"
    return did_you_mean(kind, known, most=6) + "\nallowed: Parameter, a public class of torch.nn, a block of this file"


def _check_parameter(instance: Instance) -> Iterator[Problem]:
    shape, axes = instance.values["shape"], instance.values.get("axes")
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        yield Problem(f"{instance.address}.shape", f"shape is {shape!r}", "a list of whole numbers above zero")
        return
    if axes is not None and (
        not isinstance(axes, list)
        or len(axes) != len(shape)
        or axes.count("in") != 1
        or axes.count("out") != 1
        or set(axes) - {"in", "out", "field"}
    ):
        yield Problem(
            f"{instance.address}.axes",
            f"axes {axes!r} for shape {shape}",
            "name each axis: one `in`, one `out`, the others `field`",
        )


def _check_arguments(cls: type[nn.Module], instance: Instance) -> Iterator[Problem]:
    known = {
        name: p for name, p in inspect.signature(cls.__init__).parameters.items() if name not in ("self", "device")
    }
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


def _check_value(cls: type[nn.Module], key: str, value: Any, annotation: str, address: str) -> Iterator[Problem]:
    annotation = annotation.removeprefix("<class '").removesuffix("'>")
    if annotation in ("int", "float") or key in _POSITIVE:
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield Problem(
                address,
                f"{key} of {cls.__name__} is a number, got {value!r}",
                "YAML reads yes/no/on/off/true/false as bools" if isinstance(value, bool) else "write a number",
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


def compile_class(source: ModelSource) -> type[nn.Module]:
    """The model's class, from its generated source (which was rendered from checked trees alone)."""
    digest = sha256(source.text.encode()).hexdigest()[:12]
    name = f"builder_generated_{digest}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__ = f"<generated {source.class_name} {digest}>"
        linecache.cache[module.__file__] = (len(source.text), None, source.text.splitlines(True), module.__file__)
        exec(compile(source.text, module.__file__, "exec"), module.__dict__)
        sys.modules[name] = module  # so that instances can be pickled within the process
    cls: type[nn.Module] = getattr(sys.modules[name], source.class_name)
    return cls


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
    return loaded.places.fill(Problem(address, shown, hint), text_line)


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


def on_meta() -> torch.device:
    """A context in which tensors have shapes and no memory."""
    return torch.device("meta")


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """A context in which modules keep their parameters on meta, while buffers get their real values."""
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:  # one on meta was registered before: this is a tie
            param = nn.Parameter(param.detach().to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


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
    """Every parameter under every name that it has, in declaration order."""
    by_path = {instance.path: instance for instance in expansion.instances}
    found: list[Entry] = []
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner, _, local = name.rpartition(".")
        instance = next(by_path[path] for path in _prefixes(name) if path in by_path)
        kind = "Parameter" if instance.layer.kind == "Parameter" else type(module.get_submodule(owner)).__name__
        found.append(Entry(name, kind, tuple(parameter.shape), parameter.requires_grad, owner, local, instance))
    order = {instance.path: i for i, instance in enumerate(expansion.instances)}
    return sorted(found, key=lambda entry: order[entry.instance.path])


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        yield ".".join(parts[:count])
