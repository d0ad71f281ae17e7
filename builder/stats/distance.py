"""How far parameters have moved from where they started.

Initial values are drawn again from each parameter's own random stream, a part at a time, and are not stored. Where
that cannot be done (`rng: torch`, `lsuv`, a class's own `reset_parameters`, weights that were loaded into the model, a
model that builder did not build), a copy of the values at the start of the fit is kept on the CPU. A run that goes on
from a checkpoint has no such copy: those parameters then have no distance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from builder.errors import BuilderError
from builder.initialize.fill import initial_parts
from builder.stats.measure import joined, start_sums
from builder.stats.parts import first_row, none_of, own_part
from builder.stats.passes import START

Rows = tuple[int, int] | None
"""The first row and the row after the last; None for a single number."""
Draw = Callable[[Sequence[tuple[str, Rows]]], list[Tensor]]
"""From names and rows to initial values on the CPU."""
Part = tuple[str, Rows, Tensor]
"""A parameter's name, some of its rows, and this process's values of them."""

_BLOCK = 2**24  # values that are drawn at a time
_MOVED = START.index("moved")


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
        resumed: Where the fit goes on from a checkpoint, the names that were drawn again before it, or that may have
            been: of these, the ones that can be drawn now.
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
        self.missing: set[str] = set()
        self._copies: dict[str, Tensor] = {}
        candidates = self._candidates(parameters if resumed is None else resumed)
        moved = self.sums(candidates)[:, _MOVED]  # now known to be missing is what cannot be drawn
        self.drawn = {name for name in candidates if name not in self.missing}
        if resumed is None:
            self.drawn -= {name for name, apart in zip(candidates, moved.tolist(), strict=True) if apart != 0}
        others = [name for name in parameters if name not in self.drawn]
        self.missing = set() if resumed is None else set(others)
        if resumed is None:
            self._copies = {name: own_part(parameters[name], rank).cpu().clone() for name in others}

    def is_of(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether these are the parameters, the same objects under the same names."""
        own = self._parameters
        return own.keys() == parameters.keys() and all(own[name] is parameter for name, parameter in parameters.items())

    def sums(self, names: Iterable[str]) -> Tensor:
        """Products of this process's parts of parameters with their initial values.

        Args:
            names: The parameters.

        Returns:
            (a row for each name and member, columns `START`), in the order of `names`.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        copied = [name for name in found if name in self._copies]
        now = [own_part(self._parameters[name], self._rank) for name in copied]
        then = [self._copies[name].to(part.device, non_blocking=True) for name, part in zip(copied, now, strict=True)]
        sums = torch.split(start_sums(now, then, stacked=self._stacked), [self._members(part) for part in now])
        for name, row in zip(copied, sums, strict=True):
            found[name].append(row)
        for block in self._blocks(name for name in found if name not in self._copies and name not in self.missing):
            for (name, _, _), row in zip(block, self._drawn_sums(block), strict=True):
                found[name].append(row.unsqueeze(0))
        rows = [self._joined(name, parts) for name, parts in found.items()]
        return torch.cat(rows) if rows else start_sums([], [])

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

    def _members(self, part: Tensor) -> int:
        return len(part) if self._stacked else 1

    def _joined(self, name: str, rows: list[Tensor]) -> Tensor:
        if rows and name not in self.missing:
            return joined(torch.stack(rows), START)
        nothing = none_of(own_part(self._parameters[name], self._rank), stacked=self._stacked)
        return start_sums([nothing], [nothing], stacked=self._stacked)

    def _drawn_sums(self, block: Sequence[Part]) -> Tensor:
        now = [part for _, _, part in block]
        then = [values.to(part, non_blocking=True) for values, part in zip(self._drawn(block), now, strict=True)]
        return start_sums(now, then)

    def _drawn(self, block: Sequence[Part]) -> list[Tensor]:
        """Initial values; of a parameter that can no longer be drawn its own, and it counts as missing from now on."""
        try:
            then = self._draw([(name, rows) for name, rows, _ in block])
        except (BuilderError, OSError):  # a pretrained file may have gone: no reason to end a training
            then = []
        if [values.shape for values in then] == [part.shape for _, _, part in block]:
            return then
        if len(block) > 1:
            return [values for part in block for values in self._drawn([part])]
        self.missing.add(block[0][0])
        return [block[0][2]]

    def _blocks(self, names: Iterable[str]) -> Iterator[list[Part]]:
        """Parts of parameters, so many at a time as are drawn together."""
        block: list[Part] = []
        size = 0
        for part in (part for name in names for part in self._parts(name)):
            if block and size + part[2].numel() > _BLOCK:
                yield block
                block, size = [], 0
            block.append(part)
            size += part[2].numel()
        if block:
            yield block

    def _parts(self, name: str) -> Iterator[Part]:
        now = own_part(self._parameters[name], self._rank)
        if not now.ndim:
            yield name, None, now
            return
        first = first_row(self._parameters[name]) or 0
        most = max(1, _BLOCK // max(1, prod(now.shape[1:])))
        for low in range(0, len(now) if now.numel() else 0, most):
            part = now[low : low + most]
            yield name, (first + low, first + low + len(part)), part

    def _candidates(self, names: Collection[str]) -> list[str]:
        """Such of the names as are watched and made of whole rows, which can be drawn by themselves."""
        if self._stacked:
            return []
        known = [name for name in self._parameters if name in set(names)]
        return [name for name in known if first_row(self._parameters[name]) is not None]


def drawn_by(model: nn.Module) -> Draw:
    """What draws the initial values of a built model's parameters again."""
    return lambda parts: initial_parts(model, parts)
