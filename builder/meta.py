"""Tensors with shapes and no memory: the contexts in which a model is constructed and run on meta."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLS = frozenset(
    (
        *(nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.constant_, nn.init.kaiming_uniform_),
        *(torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_),
    )
)
_KERNELS = ("torch._refs", "torch._decomp", "torch._meta_registrations", "torch._prims")
_MARK = "__dynamo_disable"  # where `torch._disable_dynamo` keeps its wrapped function after the first call


@contextmanager
def on_meta() -> Iterator[None]:
    """A context in which tensors are on meta, and nothing is spent on what their values would be."""
    with torch.device("meta"), _NoValuesOnMeta(), _without_compiler():
        yield


class _NoValuesOnMeta(TorchFunctionMode):
    """Leaves out what writes values into tensors on meta."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            filled = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **kwargs)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """A context in which kernels of meta tensors do not load torch's compiler, which takes more than a second.

    In torch 2.13 each of them is wrapped by `torch._disable_dynamo`, which imports `torch._dynamo` at the first call in
    order to be skipped by it. Here nothing is being compiled: until the context ends the plain kernels are called.
    """
    kernels = [] if "torch._dynamo" in sys.modules else _wrapped_kernels()
    for kernel in kernels:
        kernel.__dict__[_MARK] = kernel
    try:
        yield
    finally:
        for kernel in kernels:
            kernel.__dict__.pop(_MARK, None)


def _wrapped_kernels() -> list[FunctionType]:
    """The functions that `torch._disable_dynamo` wraps and that have not been called yet."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(_KERNELS)]
    left = [value for module in modules for value in vars(module).values() if isinstance(value, FunctionType)]
    seen, found = set[int](), []
    while left:
        function = left.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        within = [value for value in map(_contents, function.__closure__ or ()) if isinstance(value, FunctionType)]
        left += within
        if function.__code__.co_filename == torch._compile.__file__:
            found += [inner for inner in within if _MARK not in inner.__dict__]
    return found


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


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
        with _NoValuesOnMeta(), _without_compiler():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
