"""Hydra's side of a run: composing a config, where its model keys stand, and its errors in our words.

Shared by `train.py` and `python -m builder`. Torch is not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from builder.errors import BuilderError, Problem, did_you_mean
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
    """

    places: Places
    name: str
    scheme_name: str


def origin(choices: Mapping[str, str], overrides: Sequence[str]) -> Origin:
    """The origin of a composed model, from Hydra's choices and task overrides."""
    name = str(choices.get("model", "model"))
    file = CONF / "model" / f"{name}.yaml"
    known = positions(file) if file.is_file() else Places(name)
    given = {}
    for override in overrides:
        key, _, _ = override.lstrip("+~").partition("=")
        if key.startswith("model."):
            given[key.removeprefix("model.")] = override
    return Origin(Places(known.file, known.lines, known.texts, given), name, f"init={choices.get('init', 'model')}")


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


def in_our_words(err: HydraException) -> BuilderError:
    """An error of Hydra's composition as a `BuilderError`."""
    lines = [line.strip() for line in f"{err}\n{err.__cause__ or ''}".splitlines() if line.strip()]
    lines = [re.sub(r"^In '[^']*': ?", "", line) for line in lines] or [type(err).__name__]
    what, address, hint = lines[0], str(getattr(err, "override", "overrides")), "\n".join(lines[1:4])
    if "Could not find '" in what:
        address = what.split("Could not find '")[1].partition("'")[0]
        group, _, given = address.rpartition("/")
        known = sorted(path.stem for folder in (CONF / group, ROOT / group) for path in folder.glob("*.yaml"))
        what, hint = f"group {group!r} has no config {given!r}", did_you_mean(given, known, most=20)
    elif "Could not override '" in what:
        address = what.split("Could not override '")[1].partition("'")[0]
        what, hint = "no such group or key", _key_hint(address)
    return BuilderError("config", [Problem(address, what, hint)])


def unresolved(err: OmegaConfBaseException, address: str = "config") -> BuilderError:
    """An interpolation that OmegaConf cannot resolve, or a value that is missing, as a `BuilderError`."""
    address = str(getattr(err, "full_key", "") or address)
    return BuilderError(
        "config", [Problem(address, str(err).splitlines()[0], "mend the interpolation, or give the value")]
    )


def _key_hint(key: str) -> str:
    section, _, name = key.rpartition(".")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            node = OmegaConf.select(compose("config"), section) if section else compose("config")
    except HydraException:
        return ""
    known = [str(item) for item in node] if isinstance(node, DictConfig) else []
    return f"{did_you_mean(name, known, most=20)}\nto add a key that is not there: +{key}=VALUE".strip()
