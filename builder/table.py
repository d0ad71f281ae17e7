"""The parameter table: every parameter and buffer, what decided it, and totals that add up.

A tied parameter stands under each of its names and is counted once, at its owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from torch import nn

from builder.build import Proof, proof_of
from builder.module import dtype_name, uncompiled
from builder.owners import owners


@dataclass(frozen=True)
class Row:
    """One parameter or buffer.

    Attributes:
        name: Dotted name.
        shape: Its sizes.
        dtype: Element type, as in `float32`.
        kind: Class of the owning layer, `Parameter` for a raw one, or `buffer`.
        rule: What decided its initial values, with the policy.
        overrode: The rules that lost.
        trainable: Whether an optimizer moves any of it at any time.
        frozen_by: The freeze rule, if one froze it whole and for ever.
        tied_to: Its owner, if it is another name of a parameter.
        persistent: Whether it is saved in the state_dict.
        numel: Its values; 0 for an alias, so that a sum counts a tie once.
        transposed: Whether it is its owner's transpose.
        held: What is frozen of it in part or for a time: `rows 0:30000 (freeze.vocab)`, `until epoch 3 (freeze.body)`.
        frozen: How many of its values are frozen for ever; 0 for an alias.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    rule: str
    overrode: tuple[str, ...]
    trainable: bool
    frozen_by: str | None
    tied_to: str | None
    persistent: bool
    numel: int
    transposed: bool = False
    held: tuple[str, ...] = ()
    frozen: int = 0


def parameters(module: nn.Module) -> list[Row]:
    """The parameter table of a built module, as data.

    Raises:
        BuilderError: The module was not built by builder.
    """
    return rows(proof_of(module), uncompiled(module))


def rows(proof: Proof, module: nn.Module | None = None) -> list[Row]:
    """The parameter table of a proof; with a module, trainable is read off it."""
    seen = proof.meta if module is None else module
    tensors = dict(seen.named_parameters(remove_duplicate=False))
    transposed = {name for name, tie in owners(proof.loaded.spec.tie)[0].items() if tie.transpose}
    found = []
    for entry in proof.parameters:
        owner = proof.ties.get(entry.name)
        decision = proof.decisions[owner or entry.name]
        values = owner or entry.name
        frozen_by = proof.frozen.get(values)
        tensor = tensors[entry.name if entry.name not in transposed else proof.ties[entry.name]]
        trainable = frozen_by is None
        if module is not None and values not in proof.freeze.scheduled:  # what thaws is not read off a moment
            trainable = tensor.requires_grad
        numel = 0 if owner else tensor.numel()
        found.append(
            Row(
                name=entry.name,
                shape=entry.shape,
                dtype=dtype_name(tensor.dtype),
                kind=entry.kind,
                rule=decision.rule
                if decision.policy in ("default", "reset_parameters")
                else f"{decision.rule} ({decision.policy})",
                overrode=decision.overrides,
                trainable=trainable,
                frozen_by=frozen_by,
                tied_to=owner,
                persistent=entry.name not in transposed,
                numel=numel,
                transposed=entry.name in transposed,
                held=proof.freeze.words(values) if frozen_by is None else (),
                frozen=0 if owner else proof.freeze.frozen_values(values) if trainable else numel,
            )
        )
    saved = seen.state_dict().keys()
    for name, buffer in seen.named_buffers():
        found.append(
            Row(
                name,
                tuple(buffer.shape),
                dtype_name(buffer.dtype),
                "buffer",
                "buffers",
                (),
                False,
                None,
                None,
                name in saved,
                buffer.numel(),
            )
        )
    return found


def totals(table: Sequence[Row]) -> dict[str, int]:
    """Counts over a table; `parameters` is `trainable` plus `frozen`."""
    values = [row for row in table if row.kind != "buffer"]
    return {
        "parameters": sum(row.numel for row in values),
        "trainable": sum(row.numel - row.frozen for row in values),
        "frozen": sum(row.frozen for row in values),
        "buffers": sum(row.numel for row in table if row.kind == "buffer"),
    }


def as_data(table: Sequence[Row]) -> dict[str, Any]:
    """The table and its totals as plain data, as `parameters.json` holds them."""
    return {"parameters": [asdict(row) for row in table], "totals": totals(table)}


def render_table(table: Sequence[Row], title: str) -> Table:
    """The table for a terminal."""
    counts = totals(table)
    shown = Table(title=title, title_justify="left", show_footer=True, header_style="bold")
    shown.add_column("name", footer="total", overflow="fold")
    shown.add_column("shape", justify="right")
    shown.add_column("dtype")
    shown.add_column("kind")
    shown.add_column("decided by", overflow="fold")
    shown.add_column("state", footer=f"{counts['trainable']:,} trainable\n{counts['frozen']:,} frozen", overflow="fold")
    shown.add_column("values", justify="right", footer=f"{counts['parameters']:,}")
    for row in table:
        size = " × ".join(map(str, row.shape)) or "scalar"
        values = "" if row.tied_to else f"{row.numel:,}"
        shown.add_row(row.name, size, row.dtype, row.kind, row.rule if not row.tied_to else "", _in_column(row), values)
    return shown


def state(row: Row) -> str:
    """Whether a parameter is trained, frozen or tied, in a few words; of a tied one, its owner's state as well."""
    if row.kind == "buffer":
        return "saved" if row.persistent else "not saved"
    return f"{_tied(row)}, which is {_trained(row)}" if row.tied_to else _trained(row)


def _in_column(row: Row) -> str:
    """The state for a narrow column; that a tied one's owner is trainable stands at the owner."""
    if not row.tied_to:
        return state(row)
    return _tied(row) if _trained(row) == "trainable" else f"{_tied(row)}:\n{_trained(row)}"


def _tied(row: Row) -> str:
    return f"tied to {row.tied_to}{' (transposed)' if row.transposed else ''}"


def _trained(row: Row) -> str:
    if not row.trainable:
        return f"frozen ({row.frozen_by})" if row.frozen_by else "frozen"
    return f"frozen {', '.join(row.held)}" if row.held else "trainable"
