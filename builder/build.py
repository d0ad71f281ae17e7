"""The pipeline as a table of contents: spec → source → module on meta → rules proved → materialised and initialised.

`prove` does all that needs no memory; `build` goes on to a real module. Each stage takes the value before it and
raises all of its problems at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from builder.allowed import prefixes
from builder.errors import BuilderError, Problem, did_you_mean, raise_all
from builder.expand import Expansion, expand
from builder.freeze import FreezePlan, plan_freeze
from builder.freeze import freeze as freeze_module
from builder.initialize.fill import check_seed, fill_buffers, initialised, remember
from builder.initialize.lsuv import refuse_without_batch, rescale
from builder.initialize.plan import Decision, Surroundings, plan_init
from builder.initialize.pretrained import PretrainedReport, merged
from builder.load import Loaded, Places, Source, load
from builder.meta import on_meta
from builder.module import Entry, buffer_entries, carried, check_kinds, check_sizes, construct, entries
from builder.names import Selector
from builder.owners import owners
from builder.policies import POLICIES, is_function
from builder.shapes import check_batch, check_shapes, raise_from_forward
from builder.source import ModelSource, render
from builder.spec import FreezeRule, InitRule, ModelSpec, problems_of
from builder.tie import check_ties, hold
from builder.verify import check_module

Rule = TypeVar("Rule", bound=Selector)
Scheme = str | Mapping[str, Any] | None
Batch = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None


@dataclass(frozen=True)
class Proof:
    """A model that was proved to build: all stages up to memory.

    Attributes:
        loaded: The spec and the places of its keys.
        expansion: Every layer instance with its values.
        source: The generated source.
        parameters: Every parameter under every name.
        ties: Tied name → owner.
        decisions: Owner → what decides its initial values.
        freeze: What its freeze rules come to.
        meta: The module on meta.
        unchecked: Why forward could not be run on meta; empty where it was.
        pretrained: What was matched, missing and unexpected in each file that a `pretrained` rule reads.
        buffer_values: Buffer → arguments of the `pretrained` rule that fills it.
    """

    loaded: Loaded
    expansion: Expansion
    source: ModelSource
    parameters: tuple[Entry, ...]
    ties: Mapping[str, str]
    decisions: Mapping[str, Decision]
    freeze: FreezePlan
    meta: nn.Module
    unchecked: str = ""
    pretrained: tuple[PretrainedReport, ...] = ()
    buffer_values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def frozen(self) -> Mapping[str, str]:
        """Owner → the rule that freezes it whole and for ever."""
        return self.freeze.forever

    def __deepcopy__(self, memo: dict[int, Any]) -> Proof:
        return self  # a proof is a value: copies of a model share it


def prove(
    source: Source,
    *,
    args: Mapping[str, Any] | None = None,
    init: Scheme = None,
    freeze: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    places: Places | None = None,
    name: str = "",
    scheme_name: str = "init",
) -> Proof:
    """Proves that a model file builds, without memory for its parameters.

    Args:
        source: Path of a model file, a mapping, or a DictConfig.
        args: Values for the model's args.
        init: A policy for every matrix, a mapping of named init rules that win over the model's, or None.
        freeze: Named freeze rules in addition to the model's.
        allow: Prefixes of dotted names, or one, under which kinds and policies may be of the caller's own.
        places: Where the keys of a mapping stand, for messages.
        name: A name for the model, if it is not that of the file.
        scheme_name: What the parameter table calls the rules of `init`.

    Raises:
        BuilderError: The model is refused, with all problems of the stage that refused it.
    """
    allow = prefixes(allow)
    loaded = load(source, args, places=places, name=name)
    scheme = read_scheme(init)
    freeze_outside = read_freeze(freeze or {})
    freeze_rules = {**loaded.spec.freeze, **freeze_outside}
    expansion, untied, apart = _untied(loaded, loaded.spec, allow)
    loaded.refuse(check_ties(loaded.spec, apart))
    parameters = entries(apart, expansion)
    loaded.refuse(check_sizes(parameters, apart))
    resolved = owners(loaded.spec.tie)[0]
    ties = {name: tie.source for name, tie in resolved.items()}
    frozen, freeze_problems = plan_freeze(freeze_rules, parameters, ties, apart, expansion.args, freeze_outside)
    tied, _ = render(loaded.spec, loaded.name, evals=frozen.eval_always)
    assert tied is not None, "source without problems"
    meta = apart
    if tied.text != untied.text:
        meta = construct(loaded, tied, expansion.args, on_meta)
        parameters = entries(meta, expansion)
    around = Surroundings(
        expansion.args,
        allow,
        lambda given: shapes_at(loaded, given, allow),
        buffer_entries(meta, expansion),
        [name for name, tie in resolved.items() if tie.transpose],
    )
    decisions, init_problems = plan_init(meta, parameters, ties, expansion, scheme, scheme_name, around)
    loaded.refuse([*init_problems, *freeze_problems])
    unchecked = check_shapes(loaded, expansion, tied, meta)
    return Proof(
        loaded,
        expansion,
        tied,
        tuple(parameters),
        ties,
        decisions,
        frozen,
        meta,
        unchecked,
        tuple(merged(around.reports)),
        around.buffer_values,
    )


def _untied(loaded: Loaded, spec: ModelSpec, allow: Sequence[str]) -> tuple[Expansion, ModelSource, nn.Module]:
    """The layers of a spec, its source in which nothing is tied, and the module of that source on meta."""
    expansion = expand(spec)
    loaded.refuse([*expansion.problems, *check_kinds(spec, expansion, allow)])
    source, problems = render(spec, loaded.name, ties=False)
    loaded.refuse(problems)
    assert source is not None, "source without problems"
    return expansion, source, construct(loaded, source, expansion.args, on_meta)


def shapes_at(loaded: Loaded, given: Mapping[str, Any], allow: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters of a model with some other args, on meta.

    Raises:
        BuilderError: The model has no such arg, or does not build with these values.
    """
    unknown = [name for name in given if name not in loaded.spec.args]
    loaded.refuse(
        [Problem(f"args.{n}", f"the model has no argument {n!r}", did_you_mean(n, loaded.spec.args)) for n in unknown]
    )
    spec = loaded.spec.model_copy(update={"args": {**loaded.spec.args, **given}})
    _, _, module = _untied(loaded, spec, allow)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def build(
    source: Source,
    *,
    args: Mapping[str, Any] | None = None,
    init: Scheme = None,
    freeze: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    seed: int = 0,
    rng: str = "keyed",
    device: str | torch.device | None = None,
    batch: Batch = None,
) -> nn.Module:
    """An ordinary module from a model file, every parameter initialised.

    Args:
        source: Path of a model file, a mapping, or a DictConfig.
        args: Values for the model's args.
        init: A policy for every matrix, a mapping of named init rules that win over the model's, or None.
        freeze: Named freeze rules in addition to the model's.
        allow: Prefixes of dotted names, or one, under which kinds and policies may be of the caller's own.
        seed: The init seed.
        rng: `keyed`: a stream for each parameter; `torch`: the bits of the hand-written module after
            `torch.manual_seed`.
        device: Where the module goes; its values are drawn on the CPU, so that they are the same everywhere. On
            `meta` it has no memory and no values, until `builder.initialise` gives it both.
        batch: The model's inputs, for a policy that looks at data (`lsuv`): a tensor, a tuple, or a mapping by name.

    Raises:
        BuilderError: The model, the device or the batch is refused, before memory is allocated.
    """
    _check_device(device)
    proof = prove(source, args=args, init=init, freeze=freeze, allow=allow)
    inputs = None if batch is None else _inputs(proof, batch)
    if inputs is None:
        refuse_without_batch(proof.decisions)
    module = materialise(proof, seed=seed, rng=rng, device="meta" if _is_meta(device) else None)
    if inputs is not None and not _is_meta(device):
        rescale(module, proof.decisions, proof.parameters, lambda: _forward(module, inputs, proof))
    return module if device is None else module.to(device)


def _check_device(device: str | torch.device | None) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as err:  # an unknown name; one of which this torch has none
        problem = Problem("device", f"{device!r}: {str(err).splitlines()[0]}", "give cpu, cuda, cuda:0 or meta")
        raise BuilderError("build", [problem]) from err


def _is_meta(device: str | torch.device | None) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _inputs(proof: Proof, batch: torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The tensors of a batch under the names of the model's inputs.

    Raises:
        BuilderError: It is no batch, has a name that the model has not or lacks one, or a shape or range is not as
            declared.
    """
    declared = proof.loaded.spec.inputs
    if isinstance(batch, torch.Tensor):
        batch = (batch,)
    if isinstance(batch, str) or not isinstance(batch, Mapping | Sequence):
        hint = "give a tensor, a tuple of tensors, or a mapping by name"
        raise BuilderError("build", [Problem("batch", f"is a {type(batch).__name__}", hint)])
    given = dict(batch) if isinstance(batch, Mapping) else dict(zip(declared, batch, strict=False))
    problems = [
        Problem(f"batch.{name}", f"the model has no input {name!r}", did_you_mean(name, declared))
        for name in given
        if name not in declared
    ]
    if not isinstance(batch, Mapping) and len(batch) > len(declared):
        what = f"has {len(batch)} parts, and the model {len(declared)} inputs: {', '.join(declared)}"
        problems.append(Problem("batch", what, "give each input once, in order or by name"))
    problems += [
        Problem("batch", f"lacks the input {name!r}", "give each input once, in order or by name")
        for name, spec in declared.items()
        if name not in given and not spec.is_optional
    ]
    for name, value in given.items():
        if name in declared and not isinstance(value, torch.Tensor) and not declared[name].is_plain:
            problems.append(Problem(f"batch.{name}", f"is a {type(value).__name__}", "give a tensor"))
        elif name in declared and isinstance(value, torch.Tensor):
            problems += check_batch(proof.expansion, name, declared[name], value)
    proof.loaded.refuse(problems)
    return given


def _forward(module: nn.Module, inputs: Mapping[str, Any], proof: Proof) -> object:
    try:
        return module(**inputs)
    except Exception as err:
        raise_from_forward(err, proof.loaded, proof.source, module)
        raise


def materialise(
    proof: Proof, *, seed: int = 0, rng: str = "keyed", device: str | torch.device | None = None
) -> nn.Module:
    """The module of a proof, with memory and initial values."""
    if rng not in ("keyed", "torch"):
        raise BuilderError("build", [Problem("rng", f"unknown rng {rng!r}", "known: keyed, torch")])
    check_seed(seed)

    def make(context: Callable[[], AbstractContextManager[Any]]) -> nn.Module:
        return construct(proof.loaded, proof.source, proof.expansion.args, context)

    module = make(on_meta) if _is_meta(device) else initialised(make, proof.decisions, proof.parameters, seed, rng)
    freeze_module(module, proof.freeze)
    if not _is_meta(device):
        fill_buffers(module, proof.buffer_values)
        check_module(module, proof.ties, proof.frozen)
    module.__dict__["_builder_proof"] = proof
    remember(module, seed, rng)
    hold(module)
    return module if device is None else module.to(device)


def proof_of(module: nn.Module) -> Proof:
    """The proof that a built module carries, compiled or not.

    Raises:
        BuilderError: The module was not built by builder.
    """
    proof = carried(module)
    assert isinstance(proof, Proof), "materialise gives a module its proof"
    return proof


def read_scheme(init: Scheme) -> dict[str, InitRule]:
    """The named rules of an init scheme from outside."""
    if init is None or init == "model":
        return {}
    if isinstance(init, str):
        if init not in POLICIES and not is_function(init):
            raise BuilderError(
                "init", [Problem("init", f"unknown policy {init!r}", did_you_mean(init, POLICIES, most=20))]
            )
        return {init: InitRule(match="*", min_ndim=0 if init == "default" else 2, policy=init)}
    return _rules(init, InitRule, "init")


def read_freeze(rules: Mapping[str, Any]) -> dict[str, FreezeRule]:
    """The named freeze rules from outside."""
    return _rules(rules, FreezeRule, "freeze")


def _rules(rules: Mapping[str, Any], kind: type[Rule], section: str) -> dict[str, Rule]:
    if not isinstance(rules, Mapping):
        what = f"got a {type(rules).__name__}"
        raise BuilderError(section, [Problem(section, what, "give named rules: {NAME: {match: ..., ...}}")])
    found: dict[str, Rule] = {}
    problems: list[Problem] = []
    for name, rule in rules.items():
        try:
            found[name] = kind.model_validate(rule)
        except ValidationError as err:
            found_here = [(p.address if p.address != "model" else "", p) for p in problems_of(err, kind)]
            problems += [Problem(f"{section}.{name}.{at}".rstrip("."), p.what, p.hint) for at, p in found_here]
    raise_all(section, problems)
    return found
