"""What a user is told when a config cannot be built.

A stage gathers all its problems and raises them once, as one `BuilderError`. Each problem says where it is
(dotted address, file and line), what is wrong, what is allowed, and what to do. A `BuilderError` is always
something the user can mend; a fault of our own is an `assert`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config.

    Attributes:
        address: Dotted address of the key or parameter, as in `layers.head.init.policy`.
        what: What is wrong, with what was given.
        hint: What to do about it, in one or more lines.
        place: Where it stands: `line 31`, `gpt.yaml:31`, or the command-line override.
        outside: Whether the address is that of a rule that was given beside the model file, and does not stand in it.
        text_line: The line within the text of the key, from 1, where it is about one.
    """

    address: str
    what: str
    hint: str = ""
    place: str = ""
    outside: bool = False
    text_line: int | None = None

    def __str__(self) -> str:
        place = self.place or (f"line {self.text_line} of its text" if self.text_line else "")
        head = f"  {self.address}{f' ({place})' if place else ''}: {self.what}"
        return "\n".join([head, *(f"      {line}" for line in self.hint.splitlines())])


class BuilderError(Exception):
    """A config that was refused, with every problem of the stage that refused it.

    Attributes:
        subject: What was refused, for example `model gpt.yaml`.
        problems: All problems that the stage found, in the order of the file.
    """

    def __init__(self, subject: str, problems: Sequence[Problem]) -> None:
        assert problems, "a BuilderError needs at least one problem"
        self.subject = subject
        self.problems = tuple(problems)
        super().__init__(subject, self.problems)

    def __str__(self) -> str:
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        return "\n".join([f"{self.subject}: {count}", *map(str, self.problems)])


def raise_all(subject: str, problems: Iterable[Problem]) -> None:
    """Raises one `BuilderError` for all problems, or returns where there is none."""
    found = list(dict.fromkeys(problems))
    if found:
        raise BuilderError(subject, found)


def at(problem: Problem, place: str) -> Problem:
    """The same problem with its place filled in, unless it has one."""
    return problem if problem.place else replace(problem, place=place)


def did_you_mean(given: object, known: Iterable[str], most: int = 12) -> str:
    """A hint that names the nearest known words, then the known ones.

    >>> print(did_you_mean("kaimng_uniform", ["kaiming_uniform", "zeros"]))
    did you mean 'kaiming_uniform'?
    known: kaiming_uniform, zeros
    """
    words = sorted(known)
    near = [word for word in words if word.lower() == str(given).lower()]
    near = near or difflib.get_close_matches(str(given), words, n=1, cutoff=0.6)
    lines = [f"did you mean '{near[0]}'?"] if near else []
    shown = words if len(words) <= most else difflib.get_close_matches(str(given), words, n=most, cutoff=0.0)
    tail = f", ... ({len(words)} in all)" if len(words) > most else ""
    if shown:
        lines.append(f"known: {', '.join(shown)}{tail}")
    return "\n".join(lines)
