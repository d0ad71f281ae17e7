"""Materialise a module and give every parameter its planned values.

`rng: keyed` (the default) draws each parameter from its own stream. `rng: torch` runs the generated source under
torch's global generator, then the rules in declaration order: the bits of the hand-written module after the same
`torch.manual_seed`. Either way the caller's generators are left as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, Protocol

import torch
from torch import nn

from builder.buffers import restore_buffers
from builder.errors import BuilderError, Problem, did_you_mean
from builder.initialize.chunks import Piece, Target, fill_pieces, fill_tensors
from builder.initialize.copy import copies_to
from builder.initialize.dispatch import fill_for, is_drawn_by_source, keeping_padding
from builder.initialize.draws import Fill
from builder.initialize.lsuv import refuse_without_batch
from builder.initialize.plan import Decision
from builder.initialize.pretrained_values import fill as pretrained_fill
from builder.initialize.reset import RESET, check_resets, reset_layers, told
from builder.initialize.shards import check_shards, fill_shards, is_shard, mesh_device
from builder.initialize.streams import generator_state, stream_words
from builder.meta import parameters_on_meta
from builder.module import Carried, Entry, carried, uncompiled
from builder.owners import owners
from builder.tie import retie

Construct = Callable[[Callable[[], AbstractContextManager[Any]]], nn.Module]


def initialised(
    construct: Construct, plan: Mapping[str, Decision], parameters: Sequence[Entry], seed: int, rng: str
) -> nn.Module:
    """A real module on the CPU in which every parameter holds the values that its decision gives."""
    with _cpu(), torch.random.fork_rng(devices=[]):
        if rng == "torch":
            torch.default_generator.manual_seed(seed)
            module = construct(nullcontext)
            _draw_in_order(module, plan, parameters)
        else:
            torch.set_rng_state(generator_state(stream_words(seed, "")))
            module = construct(parameters_on_meta)
            check_resets(module, plan)
            materialise(module)
            fill_module(module, plan, parameters, seed)
    return module


def _cpu() -> AbstractContextManager[Any]:
    """A context in which tensors are made on the CPU, whatever default device the caller has set."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def materialise(module: nn.Module) -> None:
    """Gives every parameter on meta its memory; a parameter under several names stays one."""
    real: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in real:
                    device = mesh_device(parameter) if is_shard(parameter) else "cpu"
                    memory = torch.empty_like(parameter.detach(), device=device)
                    real[id(parameter)] = nn.Parameter(memory, parameter.requires_grad)
                owner._parameters[name] = real[id(parameter)]
    _refresh(module)


def _refresh(module: nn.Module) -> None:
    """Points the list of weights that an RNN keeps for itself at its parameters."""
    for owner in module.modules():
        if isinstance(owner, nn.RNNBase):
            owner._init_flat_weights()


def fill_module(module: nn.Module, plan: Mapping[str, Decision], parameters: Sequence[Entry], seed: int) -> None:
    """Fills every parameter of a module that has memory, each from its own stream; of a sharded one, the local part."""
    by_name = {entry.name: entry for entry in parameters}
    reset_layers(module, plan, parameters, seed)
    wholes: list[Target] = []
    shards: list[Target] = []
    for entry in parameters:
        if entry.name not in plan:
            continue
        if plan[entry.name].policy == RESET:
            _keep_padding(module.get_parameter(entry.name), plan[entry.name])
            continue
        fill, stream = planned_fill(entry, plan, by_name, module, seed)
        parameter = module.get_parameter(entry.name).detach()
        (shards if is_shard(parameter) else wholes).append((parameter, fill, stream, entry.shape))
    fill_tensors(wholes, seed)
    fill_shards(shards, seed)


def fill_buffers(module: nn.Module, plan: Mapping[str, Mapping[str, Any]]) -> None:
    """Gives buffers the values that `pretrained` rules take from their files.

    Args:
        module: A module with memory.
        plan: Buffer → arguments of the rule that fills it.
    """
    for name, arguments in plan.items():
        buffer = module.get_buffer(name)
        values = buffer.detach().cpu().clone(memory_format=torch.contiguous_format)  # some rows of it may be kept
        fill = pretrained_fill(arguments, tuple(buffer.shape))
        with torch.no_grad():
            fill.draw(values if fill.whole else values.view(-1), None, 0)
            buffer.copy_(values)


def planned_fill(
    entry: Entry, plan: Mapping[str, Decision], parameters: Mapping[str, Entry], module: nn.Module, seed: int | None
) -> tuple[Fill, str]:
    """What fills a parameter, its padding row included, and the name whose stream it draws from."""
    fill, stream = fill_for(entry, plan, parameters, module, seed)
    return keeping_padding(fill, entry, plan[entry.name]), stream


def _draw_in_order(module: nn.Module, plan: Mapping[str, Decision], parameters: Sequence[Entry]) -> None:
    """Draws what the rules decide from torch's global generator; the rest has its values from the generated source.

    Copies come last, each after what it copies; they draw nothing.
    """
    by_name = {entry.name: entry for entry in parameters}
    owned = [entry for entry in parameters if entry.name in plan]
    for entry in sorted(owned, key=lambda entry: copies_to(entry.name, plan)):
        parameter = module.get_parameter(entry.name)
        if not is_drawn_by_source(entry, plan[entry.name]):
            fill, _ = planned_fill(entry, plan, by_name, module, None)
            fill.draw(parameter.detach(), None, 0)
        _keep_padding(parameter, plan[entry.name])


def _keep_padding(parameter: nn.Parameter, decision: Decision) -> None:
    for row in decision.padding:
        parameter.detach()[row] = 0


# ---- again, from what a built module carries -----------------------------------------------------------------------


class Planned(Carried, Protocol):
    """The parts of a proof (`builder.build.Proof`) that init needs."""

    @property
    def parameters(self) -> Sequence[Entry]:
        """Every parameter under every name."""

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """Owner → what decides its initial values."""

    @property
    def meta(self) -> nn.Module:
        """The module on meta."""

    @property
    def buffer_values(self) -> Mapping[str, Mapping[str, Any]]:
        """Buffer → arguments of the `pretrained` rule that fills it."""


def remember(module: nn.Module, seed: int, rng: str) -> None:
    """Lets a module carry what its initial values were drawn from."""
    module.__dict__["_builder_init"] = (seed, rng)


def initialise(module: nn.Module, seed: int | None = None) -> nn.Module:
    """Gives a built module its initial values again: to all of its parameters and buffers, in place.

    What is on meta gets memory first; ties are held. Of a sharded parameter (`torch.distributed.fsdp.fully_shard` on a
    module from `build(..., device="meta")`, for one) each process fills the part that it holds, with the bits that a
    whole build would give it.

    Args:
        module: A module that builder built.
        seed: The init seed; by default that of the build.

    Returns:
        The module.

    Raises:
        BuilderError: It was not built by builder or by `rng: torch`; `lsuv` decides a parameter, which needs a batch;
            a shard is of a kind that cannot be filled.
    """
    given, module = module, uncompiled(module)
    proof, seed = _drawn_from(module, seed)
    refuse_without_batch(proof.decisions)
    by = {
        name: told(module.get_submodule(decision.arguments["layer"]))
        for name, decision in proof.decisions.items()
        if decision.policy == RESET
    }
    check_shards((name, by.get(name), module.get_parameter(name)) for name in proof.decisions)
    with _cpu(), torch.random.fork_rng(devices=[]):
        materialise(module)
        retie(module, proof.ties)
        restore_buffers(module)
        fill_module(module, proof.decisions, proof.parameters, seed)
    fill_buffers(module, proof.buffer_values)
    return given


def initial_values(
    source: nn.Module | Planned, name: str, *, rows: tuple[int, int] | None = None, seed: int | None = None
) -> torch.Tensor:
    """The values that a parameter starts from, with the bits of the built module, without building it.

    Args:
        source: A module that builder built, or a proof.
        name: The parameter's dotted name; an alias stands for its owner.
        rows: The first row and the row after the last; by default all. Only the chunks that hold them are drawn.
        seed: The init seed; by default that of the build, for a proof 0.

    Returns:
        A tensor on the CPU: (rows, ...), in the declared dtype.

    Raises:
        BuilderError: No such parameter, rows or seed; the values are drawn from a stream that cannot be drawn again: by
            `rng: torch`, a class's own `reset_parameters`, or `lsuv`.
    """
    return initial_parts(source, [(name, rows)], seed=seed)[0]


def initial_parts(
    source: nn.Module | Planned, parts: Sequence[tuple[str, tuple[int, int] | None]], *, seed: int | None = None
) -> list[torch.Tensor]:
    """`initial_values` of several parameters and rows, which all cores draw together."""
    proof, seed = _drawn_from(source, seed)
    entries = {entry.name: entry for entry in proof.parameters}
    with _cpu():
        wanted = [_part(proof, entries, name, rows, seed) for name, rows in parts]
        fill_pieces([piece for piece, _ in wanted], seed)
        return [piece.out if of_whole is None else piece.out.T[of_whole].contiguous() for piece, of_whole in wanted]


def _part(
    proof: Planned, entries: Mapping[str, Entry], name: str, rows: tuple[int, int] | None, seed: int
) -> tuple[Piece, slice | None]:
    """What is to be drawn; of a transposed tie all of its owner, and the rows of that to be taken."""
    if name not in entries:
        raise BuilderError("init", [Problem(name, f"no parameter {name!r}", did_you_mean(name, entries, most=8))])
    low, high = _checked_rows(name, entries[name].shape, rows)
    entry = entries[proof.ties.get(name, name)]
    policy = proof.decisions[entry.name].policy
    if policy in (RESET, "lsuv"):
        by, hint = "lsuv, which looks at a batch", "take a copy of it after the build"
        if policy == RESET:
            layer = proof.meta.get_submodule(proof.decisions[entry.name].arguments["layer"])
            by, hint = told(layer), f"{hint}, or give it an init rule"
        raise BuilderError("init", [Problem(name, f"gets its initial values from {by}", hint)])
    fill, stream = planned_fill(entry, proof.decisions, entries, proof.meta, seed)
    dtype = proof.meta.get_parameter(entry.name).dtype
    if name in proof.ties and owners(proof.loaded.spec.tie)[0][name].transpose:
        return Piece(torch.empty(entry.shape, dtype=dtype), fill, stream, entry.shape), slice(low, high)
    out = torch.empty((high - low, *entry.shape[1:]) if entry.shape else (), dtype=dtype)
    return Piece(out, fill, stream, entry.shape, low * prod(entry.shape[1:])), None


def check_seed(seed: object) -> None:
    """Refuses what is no init seed.

    Raises:
        BuilderError: It is not a whole number from 0 to below 2**63.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise BuilderError("init", [Problem("init_seed", f"seed {seed!r}", "a whole number, zero or more")])


def _drawn_from(source: nn.Module | Planned, seed: int | None) -> tuple[Planned, int]:
    if seed is not None:
        check_seed(seed)
    if not isinstance(source, nn.Module):
        return source, 0 if seed is None else seed
    proof: Planned = carried(source)  # type: ignore[assignment]
    own_seed, rng = uncompiled(source).__dict__["_builder_init"]
    if rng != "keyed":
        what = f"was built with rng: {rng}, which draws all parameters from one stream, in order"
        raise BuilderError("init", [Problem(type(source).__name__, what, "build it with rng: keyed")])
    return proof, own_seed if seed is None else seed


def _checked_rows(name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> tuple[int, int]:
    count = shape[0] if shape else 1
    if rows is None:
        return 0, count
    whole = isinstance(rows, Sequence) and len(rows) == 2 and all(type(row) is int for row in rows)
    if not shape or not whole or not 0 <= rows[0] <= rows[1] <= count:
        hint = f"give (first, last + 1), from 0 to {count}" if shape else "leave rows out: it is one number"
        raise BuilderError("init", [Problem(name, f"rows {rows!r} of a parameter of shape {shape}", hint)])
    return rows
