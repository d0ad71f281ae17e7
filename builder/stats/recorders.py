"""The recorders of one batch, where several optimizers step in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from builder.stats.columns import Columns
from builder.stats.record import Recorded, Recorder


class Recorders:
    """A recorder for the parameters of each optimizer where there are several; else one for all.

    Parameters of no optimizer go with those of the first, and of two optimizers the first has them.

    Args:
        parameters: All parameters, by name.
        optimizers: All optimizers; none where one recorder is enough.
        make: Makes a recorder of some parameters.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Sequence[Optimizer],
        make: Callable[[Mapping[str, nn.Parameter]], Recorder],
    ) -> None:
        self._places = {name: place for place, name in enumerate(parameters)}
        owner = {
            p: number
            for number, optimizer in reversed([*enumerate(optimizers)])
            for group in optimizer.param_groups
            for p in group["params"]
        }
        self._all: list[tuple[Optimizer | None, Recorder]] = []
        self._uncaught: dict[Recorder, list[str]] = {}
        for number, optimizer in enumerate(optimizers or [None]):
            own = {name: p for name, p in parameters.items() if owner.get(p, 0) == number}
            if own:
                recorder = make(own)
                self._all.append((optimizer, recorder))
                self._uncaught[recorder] = [name for name, p in own.items() if p in owner and p.requires_grad]
        self._armed: list[Recorder] = []
        self.extra_seconds = 0.0

    def before_step(self, optimizer: Optimizer) -> None:
        """Measures what an optimizer is about to move; of its steps of one batch, the first."""
        for owner, recorder in self._all:
            if (owner is None or owner is optimizer) and recorder not in self._armed:
                recorder.before_step()
                self._armed.append(recorder)

    def after_step(self, step: int, epoch: int, **settings: Any) -> Recorded:
        """What all recorders recorded, as one step; of parameters whose optimizer did not step, the weights alone."""
        recorders = [recorder for _, recorder in self._all]
        for recorder in recorders:
            if recorder in self._armed:
                self._uncaught.pop(recorder, None)
            else:
                recorder.no_step()
        found = [recorder.after_step(step, epoch, **settings) for recorder in recorders]
        self.extra_seconds = sum(recorder.extra_seconds for recorder in recorders)
        self.forget()
        first = found[0]  # which took what all hooks have seen
        return Recorded(self._in_order([each.parameters for each in found]), first.outputs, first.clock)

    @property
    def uncaught(self) -> list[str]:
        """Trainable parameters whose optimizer has stepped in no batch that was recorded."""
        return [*chain.from_iterable(self._uncaught.values())]

    @property
    def is_armed(self) -> bool:
        """Whether a recorder waits for the end of its step."""
        return bool(self._armed)

    def forget(self) -> None:
        """No recorder is armed."""
        self._armed = []

    def _in_order(self, found: Sequence[Columns]) -> Columns:
        if len(found) == 1:
            return found[0]
        joined = {column: [*chain.from_iterable(each[column] for each in found)] for column in found[0]}
        rows = sorted(range(len(joined["name"])), key=lambda row: self._places[str(joined["name"][row])])
        return cast(Columns, {column: [values[row] for row in rows] for column, values in joined.items()})
