"""Which steps are logged, and what that may cost.

A step is logged where its number is a multiple of the interval. Where logging takes a greater share of the time than
it may, the interval doubles, and never shrinks again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Budget:
    """The interval of logged steps, and the account of what they cost.

    Attributes:
        every: The interval now.
        history: From which step on each interval held, in this fit.
        steps: How many steps have been logged.
        seconds: What they took.

    Args:
        every: The interval to begin with.
        most: The greatest share of the time that logging may take; None: any.
        slower_every: Of how many logged steps one measures more.
    """

    def __init__(self, every: int, most: float | None, slower_every: int) -> None:
        self.every, self._most, self._slower_every = every, most, slower_every
        self.history: list[list[int]] = [[0, every]]
        self.steps = 0
        self.seconds = 0.0
        self._extra = 0.0
        self._skipped = 2  # the first logged step has none before it, and that one sets up what the others use
        self._window = [
            0.0,
            0.0,
            0.0,
        ]  # logged steps, what they took, what a step took besides; since the last widening

    def is_due(self, step: int) -> bool:
        """Whether a step is logged."""
        return step % self.every == 0

    def is_due_within(self, done: int, steps: int) -> bool:
        """Whether one of so many steps after those that are done is logged."""
        return self.last_due(done + steps) > done

    def last_due(self, step: int) -> int:
        """The last step up to this one that is logged."""
        return step - step % self.every

    def book(self, seconds: float) -> None:
        """Adds a logged step and what it took."""
        self.steps += 1
        self.seconds += seconds

    def weigh(self, step: int, seconds: float, extra: float, rest: float) -> str:
        """Widens the interval where logged steps take too much.

        Args:
            step: The number of the step that is logged now.
            seconds: What the logged step before it took, without `extra`.
            extra: What the slower measures took in it; 0 where it had none.
            rest: The time that each step took since the logged step before that one, without logging.

        Returns:
            Where this widens the interval for the first time, a sentence that says so; else nothing.
        """
        self._skipped -= 1
        if self._skipped >= 0:
            return ""
        self._extra = extra or self._extra
        self._window = count, spent, passed = [sum(pair) for pair in zip(self._window, (1, seconds, rest), strict=True)]
        cost = spent / count + self._extra / self._slower_every
        share = cost / max(cost + self.every * passed / count, 1e-9)
        if self._most is None or share <= self._most:
            return ""
        self.every *= 2
        self.history.append([step, self.every])
        self._window = [0.0, 0.0, 0.0]
        if len(self.history) > 2:
            return ""
        return (
            f"statistics took {share:.1%} of the time, more than max_overhead ({self._most:.1%}): from step {step} on "
            f"every {self.every} steps are logged, and fewer where that is not enough (stats/cost.json)"
        )

    def begin(self, step: int) -> None:
        """Says at which step the fit begins: at 0, or where a checkpoint left off."""
        self.history = [[step, self.every]]

    def account(self, wall: float, before: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """What logging has cost, as `stats/cost.json` holds it.

        Args:
            wall: What the fit has taken, in seconds.
            before: The account of the fits before this one, where it goes on with their run directory.

        Returns:
            Over all these fits: `steps_logged`; `seconds` that logging took, of `fit_seconds` in all, and their ratio
            `share`; `every_n_steps`, from which step on each interval held.
        """
        earlier = before or {"steps_logged": 0, "seconds": 0.0, "fit_seconds": 0.0, "every_n_steps": []}
        seconds, whole = earlier["seconds"] + self.seconds, earlier["fit_seconds"] + wall
        return {
            "steps_logged": earlier["steps_logged"] + self.steps,
            "seconds": round(seconds, 4),
            "fit_seconds": round(whole, 4),
            "share": round(seconds / whole if whole else 0.0, 5),
            "every_n_steps": _joined(earlier["every_n_steps"], self.history),
        }


def _joined(earlier: list[list[int]], later: list[list[int]]) -> list[list[int]]:
    """Both, as far as the earlier one was not taken back, without an interval that only goes on."""
    found: list[list[int]] = []
    for step, every in [*(held for held in earlier if held[0] < later[0][0]), *later]:
        if not found or found[-1][1] != every:
            found.append([step, every])
    return found
