"""How far parameters have moved from where they started.

Initial values are drawn again from each parameter's own random stream, a part at a time, and are not stored. Where
that cannot be done (`rng: torch`, `lsuv`, a class's own `reset_parameters`, weights that were loaded into the model, a
model that builder did not build), a copy of the values at the start of the fit is kept on the CPU. A run that goes on
from a checkpoint has no such copy: those parameters then have no distance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from math import prod

import torch
from torch import Tensor, nn

from builder.errors import BuilderError
from builder.initialize.fill import initial_values
from builder.stats.measure import joined, start_sums
from builder.stats.parts import first_row, own_part
from builder.stats.passes import START

Rows = tuple[int, int] | None
"""The first row and the row after the last; None for a single number."""
Draw = Callable[[str, Rows], Tensor]
"""From a name and rows to initial values on the CPU."""

_BLOCK = 2**24  # values that are drawn at a time
_COMPARED = 2**16  # values at either end of a parameter that show whether it holds what would be drawn


class Start:
    """The initial values of parameters, drawn again or copied.

    Attributes:
        drawn: Names whose initial values are drawn again.
        missing: Names without initial values.

    Args:
        parameters: What is watched, by name, as it is when the fit starts.
        draw: Draws initial values again; raises `BuilderError` where it cannot.
        rank: Of this process.
        stacked: Whether the first axis counts members, which are copied.
        resumed: Where the fit goes on from a checkpoint, the names that were drawn again before it.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        draw: Draw,
        *,
        rank: int = 0,
        stacked: bool = False,
        resumed: Collection[str] | None = None,
    ) -> None:
        self._parameters, self._draw, self._rank, self._stacked = dict(parameters), draw, rank, stacked
        if resumed is None:
            self.drawn = {name for name in parameters if not stacked and self._holds_what_is_drawn(name)}
        else:
            self.drawn = set(resumed) & set(parameters)
        others = [name for name in parameters if name not in self.drawn]
        self.missing = set(others if resumed is not None else ())
        self._copies = {
            name: own_part(parameters[name], rank).cpu().clone() for name in others if name not in self.missing
        }

    def sums(self, name: str) -> Tensor:
        """Products of this process's part of a parameter with its initial values: (1 or members, columns `START`)."""
        now = own_part(self._parameters[name], self._rank)
        if name in self._copies:
            return start_sums(now, self._copies[name].to(now.device), stacked=self._stacked)
        if name not in self.missing and now.numel():
            try:
                return self._drawn_sums(name, now)
            except (BuilderError, OSError):  # a pretrained file may have gone: no reason to end a training
                self.missing.add(name)
        return start_sums(now.flatten()[:0], now.flatten()[:0])

    def words(self) -> str:
        """Which initial values do not come from their random streams, in a sentence or two; else nothing."""
        said = []
        if self._copies:
            megabytes = sum(copy.numel() * copy.element_size() for copy in self._copies.values()) / 1e6
            said.append(
                f"distance from the start: {len(self._copies)} parameters cannot be drawn again; a copy of them "
                f"({megabytes:,.1f} MB) is kept on the CPU"
            )
        if self.missing:
            said.append(f"distance from the start: none in a resumed run for {len(self.missing)} parameters")
        return "\n".join(said)

    def _drawn_sums(self, name: str, now: Tensor) -> Tensor:
        parts = [start_sums(part, self._draw(name, rows).to(now)) for rows, part in self._blocks(name, now)]
        return joined(torch.stack(parts), START)

    def _blocks(self, name: str, now: Tensor) -> Iterator[tuple[Rows, Tensor]]:
        """Rows of the whole parameter, a block at a time, and this process's values of them."""
        if not now.ndim:
            yield None, now
            return
        first = first_row(self._parameters[name]) or 0
        most = max(1, _BLOCK // max(1, prod(now.shape[1:])))
        for low in range(0, len(now), most):
            part = now[low : low + most]
            yield (first + low, first + low + len(part)), part

    def _holds_what_is_drawn(self, name: str) -> bool:
        now, first = own_part(self._parameters[name], self._rank), first_row(self._parameters[name])
        if first is None:
            return False
        if not now.numel():
            return True
        try:
            if not now.ndim:
                return torch.equal(now.cpu(), self._draw(name, None).to(now.dtype))
            return all(
                torch.equal(now[low:high].cpu(), self._draw(name, (first + low, first + high)).to(now.dtype))
                for low, high in _ends(now)
            )
        except BuilderError:
            return False


def _ends(now: Tensor) -> list[tuple[int, int]]:
    """The first and the last rows."""
    count = min(len(now), max(1, _COMPARED // max(1, prod(now.shape[1:]))))
    return [(0, count), (len(now) - count, len(now))] if count < len(now) else [(0, count)]


def drawn_by(model: nn.Module) -> Draw:
    """What draws the initial values of a built model's parameters again."""
    return lambda name, rows: initial_values(model, name, rows=rows)
