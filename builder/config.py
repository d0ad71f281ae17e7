"""Hydra's side of a run: composing a config, where its model keys stand, and its errors in our words.

Shared by `train.py` and `python -m builder`. Torch is not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from builder.errors import BuilderError, Problem, at, did_you_mean, raise_all
from builder.help import CONF, ROOT
from builder.load import Places, positions


def register_root() -> None:
    """Lets configs say `${builder_root:}`: the folder that holds `conf/` and `recipes/`."""
    OmegaConf.register_new_resolver("builder_root", lambda: str(ROOT), replace=True)


@dataclass(frozen=True)
class Origin:
    """Where a composed model came from.

    Attributes:
        places: File and line, or override, of each of the model's keys.
        name: The model's name, from the choice of the group `model`.
        scheme_name: What the table calls the rules of the chosen init scheme.
        place_of: The place of any key of the whole config, by its address.
    """

    places: Places
    name: str
    scheme_name: str
    place_of: Callable[[str], str]

    def locate(self, err: BuilderError) -> BuilderError:
        """The same error, each problem with its place in the config."""
        return BuilderError(err.subject, [at(problem, self.place_of(problem.address)) for problem in err.problems])


def origin(choices: Mapping[str, str], overrides: Sequence[str]) -> Origin:
    """The origin of a composed model, from Hydra's choices and task overrides."""
    name = str(choices.get("model", "model"))
    whole = cache(lambda: _merged(_files(choices), overrides))  # ten files, which are read where something is wrong

    def place_of(address: str) -> str:
        return whole().of(address)

    model = [(group, path) for group, path in _files(choices) if group in ("model", "")]
    known = _within(_merged(model, overrides), "model")
    label = f"{name}.yaml" if (CONF / "model" / f"{name}.yaml").is_file() else name
    places = replace(known, file=label, outside=place_of)
    return Origin(places, name, f"init={choices.get('init', 'model')}", place_of)


def _files(choices: Mapping[str, str]) -> list[tuple[str, Path]]:
    """The files that a config was composed of, each with the section that it fills; later ones win."""
    files = [("", CONF / "config.yaml")]
    for group, choice in choices.items():
        found = [folder / group / f"{choice}.yaml" for folder in (CONF, ROOT)]
        files += [("" if group == "recipes" else group, path) for path in found if path.is_file()]
    return sorted(files, key=lambda file: file[1].parent.name == "recipes")  # they fill in over the groups


def _merged(files: Sequence[tuple[str, Path]], overrides: Sequence[str]) -> Places:
    """The places of all keys of several files and of the command line."""
    lines: dict[str, int] = {}
    texts: dict[str, int] = {}
    names: dict[str, str] = {}
    sections = {section for section, _ in files}
    keys = [(text.lstrip("+~").partition("=")[0], text) for text in overrides]
    given = {key: text for key, text in keys if key not in sections}  # `optimizer=sgd` chooses a file, and sets no key
    for section, path in files:
        found = positions(path)
        before = f"{section}." if section else ""
        lines |= {f"{before}{key}": line for key, line in found.lines.items()}
        texts |= {f"{before}{key}": line for key, line in found.texts.items()}
        shown = path.name if path.parent.name in ("model", CONF.name) else f"{path.parent.name}/{path.name}"
        names |= {f"{before}{key}": shown for key in found.lines}
        if section and found.lines:
            lines[section], names[section] = min(found.lines.values()), shown
    return Places("", lines, texts, {**_borrowed(given, files), **given}, names)


def _borrowed(given: Mapping[str, str], files: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """Keys that stand for another one, `T_max: ${trainer.max_epochs}`, which the command line sets."""
    found = {}
    for section, path in files:
        text = path.read_text(encoding="utf-8").splitlines()
        for key, line in positions(path).lines.items():
            for name in re.findall(r"\$\{([\w.]+)\}", text[line - 1]):
                if name in given:
                    found[f"{section}.{key}".lstrip(".")] = given[name]
    return found


def _within(places: Places, section: str) -> Places:
    """The places of one section's keys, by their addresses in it."""

    def inner(found: Mapping[str, Any]) -> dict[str, Any]:
        return {k.removeprefix(f"{section}."): v for k, v in found.items() if k.startswith(f"{section}.")}

    return Places("", inner(places.lines), inner(places.texts), inner(places.overrides), inner(places.files))


def _as_given(overrides: Any) -> list[str]:
    """Overrides as they were typed: an interpolation such as `data.seed=${seed}` is not theirs to resolve."""
    given = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(given, list), "Hydra keeps overrides as a list"
    return [str(override) for override in given]


def running_origin() -> Origin:
    """The origin of the config of the Hydra job that is running."""
    hydra = HydraConfig.get()
    return origin(dict(hydra.runtime.choices), _as_given(hydra.overrides.task))


def composed(overrides: Sequence[str]) -> tuple[DictConfig, Origin]:
    """The default config with overrides, composed outside a Hydra job.

    Raises:
        BuilderError: Hydra refuses an override.
    """
    register_root()
    check_groups(overrides)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", list(overrides), return_hydra_config=True)
    except HydraException as err:
        raise in_our_words(err) from err
    hydra = config.hydra
    found = origin(dict(hydra.runtime.choices), _as_given(hydra.overrides.task))
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config, found


def check_groups(overrides: Sequence[str]) -> None:
    """Refuses what is no name for a group, at which Hydra 1.3 stops with a `ValueError` that does not name it.

    Raises:
        BuilderError: Of each such override.
    """
    raise_all(
        "config",
        [
            Problem(key, f"got {value}: a group needs one of its files", did_you_mean(value, _choices(key), most=20))
            for text in overrides
            for key, value in _unnamed(text)
        ],
    )


def _unnamed(text: str) -> Iterator[tuple[str, str]]:
    """The values of an override, each of a sweep's, that are neither a name nor a list, if its key is a group."""
    try:
        given = OverridesParser.create().parse_override(text)
    except HydraException:  # no override, or one that Hydra refuses itself
        return
    whole, group = given.value(), given.key_or_group
    if given.is_delete() or not _choices(group):
        return
    for value in whole.list if isinstance(whole, ChoiceSweep) else [whole]:
        if value is None or isinstance(value, bool | int | float):
            yield group, "null" if value is None else str(value)


def _choices(group: str) -> list[str]:
    return sorted(path.stem for folder in (CONF / group, ROOT / group) for path in folder.glob("*.yaml"))


def in_our_words(err: HydraException) -> BuilderError:
    """An error of Hydra's composition as a `BuilderError`."""
    lines = [line.strip() for line in f"{err}\n{err.__cause__ or ''}".splitlines() if line.strip()]
    lines = [re.sub(r"^In '[^']*': ?", "", line) for line in lines] or [type(err).__name__]
    what, address, hint = lines[0], str(getattr(err, "override", "overrides")), "\n".join(lines[1:4])
    if "Could not find '" in what:
        address = what.split("Could not find '")[1].partition("'")[0]
        group, _, given = address.rpartition("/")
        what, hint = f"group {group!r} has no config {given!r}", did_you_mean(given, _choices(group), most=20)
    elif "Could not override '" in what:
        address = what.split("Could not override '")[1].partition("'")[0]
        what, hint = "no such group or key", _key_hint(address)
    return BuilderError("config", [Problem(address, what, hint)])


def unresolved(err: OmegaConfBaseException, address: str = "config") -> BuilderError:
    """An interpolation that OmegaConf cannot resolve, or a value that is missing, as a `BuilderError`."""
    address = str(getattr(err, "full_key", "") or address)
    what, hint = str(err).splitlines()[0], "mend the interpolation, or give the value"
    if isinstance(err, ConfigAttributeError | ConfigKeyError):
        what, hint = "is missing", f"leave it in{f'; {address}=none is without' if 'none' in _choices(address) else ''}"
    return BuilderError("config", [Problem(address, what, hint)])


def _key_hint(key: str) -> str:
    section, _, name = key.rpartition(".")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            node = OmegaConf.select(compose("config"), section) if section else compose("config")
    except HydraException:
        return ""
    known = [str(item) for item in node] if isinstance(node, DictConfig) else []
    return f"{did_you_mean(name, known, most=20)}\nto add a key that is not there: +{key}=VALUE".strip()
