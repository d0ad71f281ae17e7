"""The policy `pretrained`: parameters that take their values from a file, by rules alone.

`{policy: pretrained, path: FILE, key: "transformer.{name}"}`. A key is a template: `{name}` is the parameter's dotted
name, `{1}` what the first `*` of the rule's glob stood for. A list of keys is concatenated along `dim`; `transpose`
turns an (in, out) matrix; `rows` takes a range of rows, or the row of each word of a vocabulary. What becomes of words
that the source lacks is said by `absent`: refuse, zeros, or keep, which is what the rule below would have given them.

Which keys a rule takes is settled from the file's header, before any memory is spent: keys that are not there, shapes
that do not fit and a rule of which nothing matched are refused. Filling reads no more of the file than it writes, and
refuses a value that the parameter's dtype cannot hold. Every row comes as the file has it, that of a `padding_idx` too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase, translate
from pathlib import Path
from typing import Any

from builder.errors import Problem, did_you_mean
from builder.initialize.files.checkpoints import open_checkpoint
from builder.initialize.files.tensor_file import Checkpoint, CheckpointError
from builder.initialize.pretrained_values import RowsError, Source, rows_of
from builder.module import Entry

ARGUMENTS = ("path", "key", "dim", "transpose", "rows", "missing")
ROWS = ("vocabulary", "source", "absent")
SUGGESTED = 8  # keys that get a `did you mean`, which is slow


@dataclass(frozen=True)
class PretrainedReport:
    """What one rule took from a file.

    Attributes:
        path: The file.
        matched: Parameter → the keys whose tensors it takes.
        missing: Parameters that the rule matched and the file lacks (`missing: skip`).
        unexpected: Keys of the file that no parameter took.
    """

    path: str
    matched: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} parameter{'s' * (len(self.matched) != 1)} matched"]
        parts += [f"{len(names)} {what}: {_some(names)}" for names, what in self._left() if names]
        return f"pretrained {self.path}: {'; '.join(parts)}"

    def _left(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        return (self.missing, "missing in the file"), (self.unexpected, "keys of the file not used")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


@dataclass(frozen=True)
class Resolution:
    """What a rule comes to.

    Attributes:
        arguments: Parameter → what `fill` needs, as plain data; parameters that the file lacks are left out.
        report: What was matched; None where the file could not be read.
        problems: What is wrong.
    """

    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    report: PretrainedReport | None = None
    problems: tuple[Problem, ...] = ()


def may_keep(arguments: Mapping[str, Any]) -> bool:
    """Whether a rule leaves the rows of absent words to the rule below it."""
    rows = arguments.get("rows")
    return isinstance(rows, Mapping) and rows.get("absent") == "keep"


def merged(reports: Iterable[PretrainedReport]) -> list[PretrainedReport]:
    """One report for each file: a key is unexpected only if no rule took it.

    >>> a = PretrainedReport("f", {"x": ("k",)}, (), ("l", "m"))
    >>> b = PretrainedReport("f", {"y": ("l",)}, (), ("k", "m"))
    >>> merged([a, b])
    [PretrainedReport(path='f', matched={'x': ('k',), 'y': ('l',)}, missing=(), unexpected=('m',))]
    """
    found: dict[str, PretrainedReport] = {}
    for report in reports:
        other = found.get(report.path)
        if other is not None:
            matched = {**other.matched, **report.matched}
            missing = tuple(name for name in dict.fromkeys([*other.missing, *report.missing]) if name not in matched)
            unexpected = tuple(key for key in other.unexpected if key in report.unexpected)
            report = PretrainedReport(report.path, matched, missing, unexpected)
        found[report.path] = report
    return list(found.values())


# ---- the rule as written -------------------------------------------------------------------------------------------


def check(arguments: Mapping[str, Any], address: str) -> list[Problem]:
    """What is wrong with a rule's arguments by themselves; no file is touched."""
    problems = [
        Problem(f"{address}.{key}", f"pretrained has no argument {key!r}", did_you_mean(key, ARGUMENTS))
        for key in arguments
        if key not in ARGUMENTS
    ]
    for name, words in (("path", "the file's path"), ("missing", "refuse or skip")):
        value = arguments.get(name, "refuse" if name == "missing" else None)
        if not isinstance(value, str) or not value or (name == "missing" and value not in ("refuse", "skip")):
            problems.append(Problem(f"{address}.{name}", f"got {value!r}", f"give {name}: {words}"))
    problems += _check_key(arguments.get("key"), f"{address}.key")
    listed = isinstance(arguments.get("key"), list)
    dim, transpose = arguments.get("dim", 0), arguments.get("transpose", False)
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 0:
        problems.append(Problem(f"{address}.dim", f"got {dim!r}", "the axis along which a list of keys is joined: 0"))
    elif dim and not listed:
        problems.append(Problem(f"{address}.dim", "one key has nothing to be joined to", "give a list of keys"))
    if not isinstance(transpose, bool):
        problems.append(Problem(f"{address}.transpose", f"got {transpose!r}", "write transpose: true"))
    if arguments.get("rows") is not None:
        problems += _check_rows(arguments["rows"], f"{address}.rows", listed=listed)
    return problems


def _check_key(key: Any, address: str) -> list[Problem]:
    remedy = 'a key of the file, as in "transformer.{name}", or a list of keys'
    if key is None:
        return []
    templates = key if isinstance(key, list) else [key]
    if not templates or not all(isinstance(template, str) for template in templates):
        return [Problem(address, f"got {key!r}", remedy)]
    unknown = [text for template in templates for text in re.findall(r"\{(?!name\}|[1-9]\d?\})[^{}]*\}?", template)]
    hint = "{name} is the parameter's name, {1} what the first * of match stood for"
    return [Problem(address, f"unknown field {text!r} in {key!r}", hint) for text in unknown]


def _check_rows(rows: Any, address: str, *, listed: bool) -> list[Problem]:
    remedy = "give [LOW, HIGH], or {vocabulary: FILE, source: FILE}, each file with a word a line"
    if listed:
        return [Problem(address, "rows of several keys", "rows go with one key")]
    if isinstance(rows, list):
        whole = len(rows) == 2 and all(isinstance(row, int) and not isinstance(row, bool) for row in rows)
        return [] if whole and 0 <= rows[0] < rows[1] else [Problem(address, f"got {rows!r}", remedy)]
    if not isinstance(rows, Mapping):
        return [Problem(address, f"got {rows!r}", remedy)]
    problems = [
        Problem(f"{address}.{key}", f"rows have no key {key!r}", did_you_mean(key, ROWS))
        for key in rows
        if key not in ROWS
    ]
    if not isinstance(rows.get("vocabulary"), str) or not isinstance(rows.get("source", ""), str):
        problems.append(Problem(address, f"got {dict(rows)!r}", remedy))
    if rows.get("absent", "refuse") not in ("refuse", "zeros", "keep"):
        problems.append(Problem(f"{address}.absent", f"got {rows['absent']!r}", "refuse, zeros, or keep"))
    return problems


# ---- which keys each parameter takes -------------------------------------------------------------------------------


def resolve(
    arguments: Mapping[str, Any], entries: Sequence[Entry], patterns: Sequence[str], address: str
) -> Resolution:
    """Which keys each parameter takes, from the file's header alone.

    Args:
        arguments: The rule's arguments, computed.
        entries: The parameters that the rule matched.
        patterns: The globs of the rule's `match`, which say what `{1}` stands for; none for an inline `init`.
        address: Where the rule stands.
    """
    wrong = check(arguments, address)
    if wrong:
        return Resolution(problems=tuple(wrong))
    arguments = _absolute(arguments)
    try:
        checkpoint = open_checkpoint(Path(arguments["path"]))
        rows = rows_of(arguments.get("rows"), checkpoint)
    except CheckpointError as err:
        return Resolution(problems=(Problem(f"{address}.path", err.what, err.hint),))
    except RowsError as err:
        return Resolution(problems=(Problem(f"{address}.rows{err.key}", err.what, err.hint),))
    known = set(checkpoint.keys())
    matched: dict[str, tuple[str, ...]] = {}
    lacking: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for entry in entries:
        keys, problem = _keys(arguments.get("key"), entry.name, patterns, checkpoint)
        if problem:
            problems.append(Problem(f"{address}.key", *problem))
        elif not known.issuperset(keys):
            lacking[entry.name] = [key for key in keys if key not in known]
        else:
            matched[entry.name] = keys
    found = {
        entry.name: {
            **arguments,
            "key": list(matched[entry.name]),
            "parameter": entry.name,
            "address": address,
            "keeps": rows.keep,
        }
        for entry in entries
        if entry.name in matched
    }
    for entry in entries:
        if entry.name in found:
            problems += Source(found[entry.name], entry.shape, checkpoint, rows).problems()
    if lacking and (arguments.get("missing", "refuse") == "refuse" or not matched):
        problems.append(_missing(lacking, bool(matched), checkpoint, address))
    taken = {key for keys in matched.values() for key in keys}
    unexpected = tuple(key for key in checkpoint.keys() if key not in taken)  # noqa: SIM118
    report = PretrainedReport(arguments["path"], matched, tuple(lacking), unexpected)
    return Resolution(found, report, tuple(dict.fromkeys(problems)))


def _absolute(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with paths that hold wherever the program goes from here."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    found = {**arguments, "path": absolute(arguments["path"])}
    if isinstance(arguments.get("rows"), Mapping):
        files = {key: absolute(file) for key, file in arguments["rows"].items() if key in ("vocabulary", "source")}
        found["rows"] = {**arguments["rows"], **files}
    return found


def _keys(
    key: str | list[str] | None, name: str, patterns: Sequence[str], checkpoint: Checkpoint
) -> tuple[tuple[str, ...], tuple[str, str] | None]:
    """The keys of a parameter, or what is wrong with the template."""
    if key is None:
        only = checkpoint.keys()
        return (only if checkpoint.words or only == ("",) else (name,)), None
    captured = captures(name, patterns)
    fields = {"name": name, **{str(i + 1): text for i, text in enumerate(captured)}}
    templates = [key] if isinstance(key, str) else key
    asked = {text for template in templates for text in re.findall(r"\{(\w+)\}", template)}
    beyond = sorted(asked - set(fields))
    if beyond:
        count = f"{len(captured)} `*`" if captured else "no `*`"
        what = f"{{{beyond[0]}}} stands for nothing: the glob that matches {name!r} has {count}"
        return (), (what, 'write a glob with as many, as in match: "h.*.weight"')
    return tuple(re.sub(r"\{(\w+)\}", lambda found: fields[found[1]], template) for template in templates), None


def captures(name: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """What each `*` of the first matching glob stood for, each but the last as short as can be.

    >>> captures("h.0.attn.qkv.weight", ["wte.*", "h.*.attn.*.weight"])
    ('0', 'qkv')
    """
    pattern = next((glob for glob in patterns if fnmatchcase(name, glob)), None)
    if pattern is None:
        return ()
    *others, last = _between_stars(pattern)
    text = "(.*?)".join(others) + "(.*)" + last if others else last
    found = re.fullmatch(text, name, re.DOTALL)  # the shortest parts lead to a match, so that nothing is tried twice
    assert found is not None, f"{pattern!r} matched {name!r}"
    return found.groups()


def _between_stars(pattern: str) -> list[str]:
    """A glob as regular expressions, cut at each `*` that is not in brackets."""
    pieces = [""]
    for token in re.findall(r"\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if token == "*":
            pieces.append("")
        else:
            pieces[-1] += translate(token).removeprefix("(?s:").removesuffix(r")\Z")
    return pieces


def _missing(lacking: Mapping[str, Sequence[str]], some: bool, checkpoint: Checkpoint, address: str) -> Problem:
    file, keys = checkpoint.path.name, checkpoint.keys()
    lines = []
    for i, (name, absent) in enumerate(lacking.items()):
        near = get_close_matches(absent[0], keys, n=1) if i < SUGGESTED else []
        lines.append(f"{name}: no {', '.join(map(repr, absent))}" + "".join(f"; did you mean {key!r}?" for key in near))
    shown = (
        f"{file} has: {', '.join(map(repr, keys[:SUGGESTED]))}{', ...' if keys[SUGGESTED:] else ''} ({len(keys)} keys)"
    )
    if not some:
        what = f"nothing matched: {file} has none of the keys of {len(lacking)} parameters"
        return Problem(
            f"{address}.key", what, "\n".join([*lines[:SUGGESTED], shown, 'give key: "PREFIX.{name}", or another'])
        )
    remedy = "missing: skip leaves them to the rule below; except: [...] takes them out of the rule"
    what = f"{file} lacks the keys of {len(lacking)} parameters"
    return Problem(f"{address}.key", what, "\n".join([*lines, shown, remedy]))
