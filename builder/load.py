"""A model file, a mapping or a DictConfig → a spec, with the place of every key.

Files are read by OmegaConf's own YAML loader, so that the library, Hydra and the command line see the same values.
Aliases are bounded before anything is expanded, and resolvers (`${oc.env:...}`) are refused in a model file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from builder.errors import BuilderError, Problem, at, did_you_mean, raise_all
from builder.spec import ModelSpec, read_spec

MAX_BYTES = 1_000_000
MAX_NODES = 20_000  # of YAML, after aliases are expanded

_LARGE = "keep large values in a file of their own: {policy: pretrained, path: values.npy}"

Source = str | Path | Mapping[str, Any] | DictConfig


@dataclass(frozen=True)
class Places:
    """Where keys stand: dotted address → `file:line` or the override that set it.

    Attributes:
        file: Name of the file, or empty where there is none.
        lines: Line of each key, from 1.
        texts: Line on which the text of a key begins (a block scalar begins below its key).
        overrides: Address → command-line override.
        files: File of each key that stands in another one.
        outside: Address → place, for the rules that are given beside the model file.
    """

    file: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, int] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    outside: Callable[[str], str] | None = None

    def of(self, address: str, text_line: int | None = None) -> str:
        """The place of an address, or of the nearest key that holds it; the file alone where no key does."""
        parts = address.split(".")
        for count in range(len(parts), 0, -1):
            key = ".".join(parts[:count])
            if key in self.overrides:
                return f"override {self.overrides[key]}"
            within = [f"override {text}" for name, text in self.overrides.items() if name.startswith(f"{key}.")]
            if key in self.lines:
                line = self.lines[key] if text_line is None or count < len(parts) else self.texts[key] + text_line - 1
                file = self.files.get(key, self.file)
                return ", ".join([f"{file}:{line}" if file else f"line {line}", *within * (count == len(parts))])
            if within:
                return ", ".join(within)
        return self.file

    def fill(self, problem: Problem) -> Problem:
        """The problem with its place."""
        if problem.outside:
            return at(problem, (self.outside(problem.address) if self.outside else "") or "given from outside")
        return at(problem, self.of(problem.address, problem.text_line))


@dataclass(frozen=True)
class Loaded:
    """A model file that was read: its spec, and what its messages and its class are called.

    Attributes:
        spec: The validated file, with the caller's args in it.
        places: Where every key stands.
        name: A name for the model, from the file's name.
    """

    spec: ModelSpec
    places: Places
    name: str = "model"

    @property
    def subject(self) -> str:
        """What an error of this model begins with."""
        changed = [text for key, text in self.places.overrides.items() if key.startswith("args.")]
        return f"model {self.places.file or self.name}{' with ' if changed else ''}{', '.join(changed)}"

    def refuse(self, problems: list[Problem]) -> None:
        """Raises the problems, each with its place, or returns where there is none."""
        raise_all(self.subject, [self.places.fill(problem) for problem in problems])


def load(
    source: Source, args: Mapping[str, Any] | None = None, *, places: Places | None = None, name: str = ""
) -> Loaded:
    """Reads a model file, or takes one that was read already; the source is not changed.

    Args:
        source: Path of a YAML file, a mapping, or a DictConfig.
        args: Values for the model's `args`, in place of its own.
        places: Where the keys of a mapping stand, if its reader knows.
        name: A name for the model, if it is not that of the file.

    Raises:
        BuilderError: The file is missing, is not YAML, or is not a model.
    """
    if isinstance(source, str | Path):
        data, places = read_file(source)
        name = name or Path(source).stem
    elif isinstance(source, DictConfig):
        data = _to_plain(source, places or Places())
    elif isinstance(source, Mapping):
        data = _to_plain(_as_config(source), places or Places())
    else:
        raise BuilderError(
            "model", [Problem("model", f"got a {type(source).__name__}", "give a path, a mapping or a DictConfig")]
        )
    places = places or Places()
    if args:
        given = {f"args.{key}": f"args={{{key!r}: {value!r}}}" for key, value in args.items()}
        places = replace(places, overrides={**places.overrides, **given})
    subject = f"model {places.file or name or 'file'}"
    problems = _override_args(data, args or {})
    spec, found = read_spec(data)
    raise_all(subject, [places.fill(problem) for problem in [*problems, *found]])
    assert spec is not None, "a spec without problems"
    return Loaded(spec, places, name or "model")


def read_file(file: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Places]:
    """The plain data of a model file with `key=value` overrides, and the places of its keys.

    Raises:
        BuilderError: The file is missing or is not YAML, or an override is not `key=value`.
    """
    path = Path(file)
    text = _read_text(path)
    data, places = _parse_yaml(text, path.name)
    places = replace(places, overrides={text.partition("=")[0]: text for text in overrides})
    wrong = [
        Problem(text, "is not an override", "write key=value, as in args.d=128")
        for text in overrides
        if not text.partition("=")[0] or not text.partition("=")[1]
    ]
    wrong += [
        Problem(text, f"replaces all of {section!r}", f"write {section}.NAME...=..., or name the model as a run does")
        for text, section in [(text, text.partition("=")[0]) for text in overrides]
        if section in ModelSpec.model_fields and section != "forward"
    ]
    declared = data.get("args")
    known = list(declared) if isinstance(declared, dict | list) else []
    for text in overrides:
        section, _, name = text.partition("=")[0].partition(".")
        if section == "args" and name.partition(".")[0] not in known:
            wrong.append(Problem(text, f"the model has no argument {name!r}", did_you_mean(name, known)))
    raise_all("overrides", wrong)
    if overrides:
        try:
            merged = OmegaConf.merge(OmegaConf.create(data), OmegaConf.from_dotlist(list(overrides)))
            assert isinstance(merged, DictConfig), "two mappings merge to a mapping"
            data = _to_plain(merged, places)
        except (OmegaConfBaseException, yaml.YAMLError) as err:
            raise BuilderError(
                "overrides",
                [Problem(" ".join(overrides), str(err).splitlines()[0], "write key=value, as in args.d=128")],
            ) from err
    return data, places


def positions(file: Path) -> Places:
    """The places of a file's keys."""
    return Places(file.name, *_positions(_read_text(file)))


def _override_args(data: dict[str, Any], args: Mapping[str, Any]) -> list[Problem]:
    declared = data.get("args") or {}
    if isinstance(declared, list) and all(isinstance(name, str) for name in declared):
        declared = dict.fromkeys(declared, "???")
    if not isinstance(declared, Mapping):
        return []  # the spec says what is wrong with it
    unknown = [name for name in args if name not in declared]
    data["args"] = {**declared, **{name: value for name, value in args.items() if name in declared}}
    return [
        Problem(f"args.{name}", f"the model has no argument {name!r}", did_you_mean(name, declared)) for name in unknown
    ]


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BuilderError(
                f"model {path}", [Problem(str(path), f"the file is larger than {MAX_BYTES} bytes", _LARGE)]
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        missing = isinstance(err, FileNotFoundError)
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        reason = "no such file" if missing else str(err)
        hint = did_you_mean(path.name, near) if missing else "a model file is YAML in UTF-8"
        raise BuilderError(f"model {path}", [Problem(str(path), reason, hint)]) from err


def _parse_yaml(text: str, file: str) -> tuple[dict[str, Any], Places]:
    try:
        _bound_aliases(text)
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as err:
        mark = getattr(err, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        what = getattr(err, "problem", None) or str(err) or "nested too deeply"
        raise BuilderError(f"model {file}", [Problem("yaml", str(what), _yaml_hint(str(what)), place)]) from err
    if not isinstance(config, DictConfig):
        raise BuilderError(
            f"model {file}", [Problem("model", "the file is not a mapping", "begin with `layers:`", file)]
        )
    places = Places(file, *_positions(text))
    return _to_plain(config, places), places


def _yaml_hint(what: str) -> str:
    if "nodes" in what:
        return _LARGE
    if "duplicate key" in what:
        return "a name stands once in its section: rename or remove one"
    return "check indentation, colons and quotes"


def _bound_aliases(text: str) -> None:
    """Refuses YAML of more nodes than `MAX_NODES`, what aliases stand for included (OmegaConf 2.3 has no limit)."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        size = 0
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            sizes[event.anchor or ""] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            sizes[anchor or ""] = size
        if len(open_nodes) > 100:
            raise yaml.YAMLError("nested more than 100 deep")
        if size and open_nodes:
            anchor, inner = open_nodes[-1]
            open_nodes[-1] = (anchor, inner + size)
        total = max(total, size, open_nodes[-1][1] if open_nodes else 0)
        if total > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} nodes, aliases included")


def _as_config(source: Mapping[str, Any]) -> DictConfig:
    try:
        config = OmegaConf.create(dict(source))
    except OmegaConfBaseException as err:
        address = str(getattr(err, "full_key", "") or "model")
        raise BuilderError("model", [Problem(address, str(err).splitlines()[0], "a model is plain data")]) from err
    assert isinstance(config, DictConfig), "a mapping makes a DictConfig"
    return config


def _resolvers(data: Any, address: str = "") -> list[Problem]:
    """Every `${name:...}` in unresolved data: a resolver runs a function, and a model file is data."""
    if isinstance(data, Mapping):
        return [p for key, item in data.items() for p in _resolvers(item, f"{address}.{key}".lstrip("."))]
    if isinstance(data, list):
        return [p for i, item in enumerate(data) for p in _resolvers(item, f"{address}.{i}")]
    if isinstance(data, str) and any(":" in part.split("}", 1)[0] for part in data.split("${")[1:]):
        what = f"a resolver is not allowed in a model file: {data.splitlines()[0]!r}"
        return [Problem(address or "model", what, "use an `=` expression over args")]
    return []


def _to_plain(config: DictConfig, places: Places) -> dict[str, Any]:
    subject = f"model {places.file}".strip()
    raise_all(subject, [places.fill(p) for p in _resolvers(OmegaConf.to_container(config, resolve=False))])
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as err:
        problem = Problem(
            str(getattr(err, "full_key", "") or "model"), str(err).splitlines()[0], "mend the interpolation"
        )
        raise BuilderError(subject, [places.fill(problem)]) from err
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _positions(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """The line of every key, and the line on which its text begins."""
    lines: dict[str, int] = {}
    texts: dict[str, int] = {}

    def walk(node: yaml.Node, address: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = f"{address}.{key.value}" if address else str(key.value)
                lines[inner] = key.start_mark.line + 1
                block = isinstance(value, yaml.ScalarNode) and value.style in ("|", ">")
                texts[inner] = value.start_mark.line + (2 if block else 1)
                walk(value, inner)

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        walk(root, "")
    return lines, texts
