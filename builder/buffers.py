"""Buffers get their declared values again, wherever their memory was lost or is in no file.

A buffer is what its expression says, or what its layer class gives it (running statistics). Both are computed from a
second instance of the model on meta, of which the buffers alone are real: no parameter gets memory, nothing is drawn.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

import torch
from torch import nn

from builder.meta import on_meta
from builder.module import Carried, carried, compile_class
from builder.names import paths_to


def restore_buffers(module: nn.Module, names: Iterable[str] | None = None) -> None:
    """Gives buffers of a built module the values that its model file declares.

    A buffer keeps its dtype, and its memory where it has any; one on meta gets memory beside the parameters.

    Args:
        module: A built module.
        names: Which buffers; by default all, running statistics and counters among them. Names of buffers that the
            model file does not declare are passed over.
    """
    chosen = {name for name, _ in module.named_buffers()} if names is None else set(names)
    if not chosen:
        return
    device = next((p.device for p in module.parameters() if not p.is_meta), torch.device("cpu"))
    for name, value in declared_buffers(carried(module), chosen).items():
        path, _, local = name.rpartition(".")
        owner = module.get_submodule(path)
        buffer = owner._buffers[local]
        if buffer is None:
            continue
        if buffer.is_meta:
            owner._buffers[local] = value.to(device, buffer.dtype)
        else:
            with torch.no_grad():
                buffer.copy_(value)


def unsaved_buffers(module: nn.Module) -> set[str]:
    """The names of buffers that no state_dict holds."""
    return {
        f"{path}.{local}".removeprefix(".")
        for path, owner in module.named_modules()
        for local in owner._non_persistent_buffers_set
    }


def declared_buffers(proof: Carried, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """The values of buffers by name, on the CPU, as the model file declares them.

    Args:
        proof: What a built module carries.
        names: Which buffers; by default all.
    """
    with torch.random.fork_rng(devices=[]):
        cls = compile_class(proof.source, _with_real_buffers)
        with on_meta():
            second = cls(**proof.expansion.args)
        buffers = dict(second.named_buffers())
        wanted = buffers.keys() if names is None else buffers.keys() & set(names)
        chosen = [name for name in buffers if name in wanted]
        return {name: _of_layer(proof, second, name) if buffers[name].is_meta else buffers[name] for name in chosen}


def _of_layer(proof: Carried, second: nn.Module, name: str) -> torch.Tensor:
    """What a layer class itself puts into one of its buffers."""
    layers = {instance.path: instance for instance in proof.expansion.instances}
    path = next(path for path in reversed(paths_to(name)[:-1]) if path in layers)
    values = {key: _value(key, value) for key, value in layers[path].values.items()}
    with torch.device("cpu"):
        return type(second.get_submodule(path))(**values).get_buffer(name.removeprefix(f"{path}."))


def _value(key: str, value: object) -> object:
    return getattr(torch, str(value)) if key == "dtype" else value


def _with_real_buffers(tree: ast.Module) -> ast.Module:
    """The generated module with each buffer computed on the CPU, whatever the device around it."""
    _RealBuffers().visit(tree)
    return ast.fix_missing_locations(tree)


class _RealBuffers(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        match node.value:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr="register_buffer")):
                cpu = ast.parse("torch.device('cpu')", mode="eval").body
                return ast.copy_location(ast.With([ast.withitem(cpu)], [node]), node)
        return node
