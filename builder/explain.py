"""One parameter, explained: where it is declared, which rules matched and won, its scale in theory and as drawn.

`python -m builder explain NAME MODEL.yaml` prints it; the same is data by `explain(proof, NAME)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.init import calculate_gain

from builder.build import Proof, materialise
from builder.errors import BuilderError, Problem, did_you_mean
from builder.groups import Group
from builder.initialize.draws import basic, default_policy, fans
from builder.initialize.fill import initial_values
from builder.initialize.plan import Decision
from builder.initialize.reset import RESET
from builder.initialize.theory import Theory, theory_of
from builder.module import Entry
from builder.policies import POLICIES, policy_of
from builder.table import Row, rows, state


@dataclass(frozen=True)
class Explanation:
    """What decides one parameter, and what came of it.

    Attributes:
        row: Its row of the parameter table.
        declared: Address of its layer in the model file, with file and line where they are known.
        owner: The parameter that holds the values; another one where this is a tied name.
        rule: The winning rule with its policy and arguments.
        lost: The rules that it overrode, the last to lose first.
        fans: Fan-in and fan-out, where it has two dimensions or more.
        gain: What the policy multiplies the scale by, where it has one.
        theory: Moments in theory, where the policy has them.
        mean: Mean as drawn; of complex values, of their real parts.
        std: Standard deviation as drawn.
        z: Standard errors between drawn and theoretical mean and std; a row kept at zero is left out.
        seed: The init seed of the drawn values.
        awaits_batch: Whether the drawn values are still to be scaled on a batch (`lsuv`).
    """

    row: Row
    declared: str
    owner: str
    rule: str
    lost: tuple[str, ...]
    fans: tuple[int, int] | None
    gain: float | None
    theory: Theory | None
    mean: float
    std: float
    z: tuple[float, float] | None
    seed: int
    awaits_batch: bool = False


def explain(proof: Proof, name: str, *, seed: int = 0, rng: str = "keyed") -> Explanation:
    """Explains one parameter of a proved model.

    Raises:
        BuilderError: The model has no parameter of that name.
    """
    table = {row.name: row for row in rows(proof)}
    entries = {entry.name: entry for entry in proof.parameters}
    if name not in entries:
        what = "is a buffer: its value is declared, not drawn" if name in table else f"no parameter {name!r}"
        raise BuilderError("explain", [Problem(name, what, did_you_mean(name, entries, most=8))])
    owner = proof.ties.get(name, name)
    entry, decision = entries[owner], proof.decisions[owner]
    values = _values(proof, owner, seed, rng)
    theory = parameter_theory(proof, entry)
    drawn = values
    if decision.padding:
        drawn = values[[row for row in range(len(values)) if row not in decision.padding]]
    return Explanation(
        row=table[name],
        declared=_placed(proof, entries[name].instance.address),
        owner=owner,
        rule=f"{_placed(proof, decision.rule)}: {_call(*_policy(proof, entry))}",
        lost=tuple(_placed(proof, rule) for rule in reversed(decision.overrides)),
        fans=fans(entry.shape, decision.axes) if len(entry.shape) >= 2 else None,
        gain=_gain(decision),
        theory=theory,
        mean=_wide(values).mean().real.item(),
        std=_wide(values).std().item() if values.numel() > 1 else 0.0,
        z=theory.z_scores(drawn) if theory else None,
        seed=seed,
        awaits_batch=decision.policy == "lsuv",
    )


def parameter_theory(proof: Proof, owner: Entry) -> Theory | None:
    """Moments in theory of one parameter, of which nothing is drawn; None for complex values or a policy without any.

    Args:
        proof: Of the model.
        owner: The parameter, which is no tied name of another.
    """
    policy, arguments = _policy(proof, owner)
    if policy == "mup" and arguments["fill"] == "default":
        policy, arguments = _default(proof, owner)
    elif policy == "mup":
        policy, arguments = "normal", {"std": arguments["std"]}
    if policy not in POLICIES or proof.meta.get_parameter(owner.name).is_complex():
        return None
    return theory_of(*basic(policy, arguments, owner.shape, proof.decisions[owner.name].axes), owner.shape)


def _values(proof: Proof, name: str, seed: int, rng: str) -> Tensor:
    if rng == "keyed" and proof.decisions[name].policy not in (RESET, "lsuv"):
        return initial_values(proof, name, seed=seed)
    return materialise(proof, seed=seed, rng=rng).get_parameter(name).detach()


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


def _policy(proof: Proof, entry: Entry) -> tuple[str, Mapping[str, Any]]:
    """The policy with its arguments; for a layer's default, what the layer's class does."""
    decision = proof.decisions[entry.name]
    return _default(proof, entry) if decision.policy == "default" else (decision.policy, decision.arguments)


def _default(proof: Proof, entry: Entry) -> tuple[str, Mapping[str, Any]]:
    found = default_policy(proof.meta, entry)
    assert found is not None, f"{entry.name} has a default that is not known"
    return found


def _gain(decision: Decision) -> float | None:
    given = {**policy_of(decision.policy).arguments, **decision.arguments} if decision.policy != RESET else {}
    if "nonlinearity" in given:
        return float(calculate_gain(given["nonlinearity"], given["a"]))
    return float(given["gain"]) if "gain" in given else None


def _placed(proof: Proof, address: str) -> str:
    """An address with its file and line, and with the overrides of keys within it."""
    places = proof.loaded.places
    _, _, rule = address.partition(": ")  # a rule of a scheme: `init=orthogonal: matrices`
    outside = places.outside(f"init.{rule}") if rule and places.outside else ""
    place = outside if rule else places.of(address)
    return f"{address} ({place})" if place else address


def _call(policy: str, arguments: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}: {_short(value)}" for key, value in arguments.items() if key not in _OWN_KEYS)
    return f"{policy}{f', {given}' if given else ''}"


_OWN_KEYS = frozenset({"args", "parameter", "address", "keeps"})  # what a plan adds to a policy's arguments


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def lines(found: Explanation, group: Group | None = None) -> list[tuple[str, str]]:
    """An explanation as labelled lines, with the parameter's optimizer group where there is one."""
    row = found.row
    size = " × ".join(map(str, row.shape)) or "scalar"
    shown = [
        ("parameter", f"{row.name}   {size}, {row.dtype}, {math.prod(row.shape):,} values, {row.kind}"),
        ("declared", found.declared),
    ]
    if found.owner != row.name:
        shown.append(("tied to", f"{found.owner}, which owns the values below"))
    shown.append(("init", found.rule))
    shown += [("overrode" if i == 0 else "", rule) for i, rule in enumerate(found.lost)]
    if found.fans:
        gain = f"; gain {found.gain:.4g}" if found.gain is not None else ""
        shown.append(("fans", f"in {found.fans[0]:,}, out {found.fans[1]:,}{gain}"))
    if found.theory:
        bounded = math.isfinite(found.theory.low) or math.isfinite(found.theory.high)
        bounds = f", within [{found.theory.low:.6g}, {found.theory.high:.6g}]" if bounded else ""
        shown.append(("in theory", f"mean {found.theory.mean:.4g}, std {found.theory.std:.4g}{bounds}"))
    z = [f" (z = {score:+.1f})" for score in found.z] if found.z else ["", ""]
    before = ", before it is scaled on a batch" if found.awaits_batch else ""
    drawn = f"mean {found.mean:.4g}{z[0]}, std {found.std:.4g}{z[1]}, at init_seed {found.seed}{before}"
    shown.append(("as drawn", drawn))
    shown.append(("state", state(row)))
    if group is not None:
        settings = ", ".join(f"{key} {_short(value)}" for key, value in group.settings.items())
        by = f" ({', '.join(group.rules[found.owner])})" if group.rules.get(found.owner) else ""
        shown.append(("optimizer", f"{settings}{by}" if settings else "the optimizer's own settings"))
    return shown
