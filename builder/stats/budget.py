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
        history: From which step on each interval held.
        steps: How many steps have been logged.
        seconds: What they took.

    Args:
        every: The interval to begin with.
        most: The greatest share of the time that logging may take; None: any.
        slower_every: Of how many logged steps one measures more.
    """

    def __init__(self, every: int, most: float | None, slower_every: int) -> None:
        self.every, self._most, self._slower_every = every, most, slower_every
        self.history = [[0, every]]
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

    def account(self, wall: float) -> Mapping[str, Any]:
        """What logging has cost, as `stats/cost.json` holds it."""
        share = self.seconds / wall if wall else 0.0
        return {
            "steps_logged": self.steps,
            "seconds": round(self.seconds, 4),
            "share": round(share, 5),
            "every_n_steps": self.history,
        }
