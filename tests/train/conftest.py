"""Runs of the real command line within the test's own process."""

from __future__ import annotations

import json
import logging
import random
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import train


@dataclass(frozen=True)
class Ended:
    """A command line that has ended."""

    code: int
    out: str
    err: str
    directory: Path

    @property
    def files(self) -> list[str]:
        """What the run directory holds."""
        return sorted(
            file.relative_to(self.directory).as_posix() for file in self.directory.rglob("*") if file.is_file()
        )

    @property
    def written(self) -> list[str]:
        """What it holds besides the config."""
        return [file for file in self.files if file != "config.yaml" and not file.startswith(".hydra/")]

    @property
    def result(self) -> dict:
        return json.loads((self.directory / "result.json").read_text())

    @property
    def table(self) -> dict:
        return json.loads((self.directory / "parameters.json").read_text())

    def weights(self, name: str = "last") -> dict[str, torch.Tensor]:
        """The model's tensors in a checkpoint."""
        saved = torch.load(self.directory / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        return {key.removeprefix("model."): value for key, value in saved.items() if key.startswith("model.")}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Calls `train.py` with overrides; the run directory is `tmp_path/run` or another of that name."""

    def call(*overrides: str, into: str = "run", sweep: bool = False) -> Ended:
        directory = tmp_path / into
        where = f"hydra.{'sweep' if sweep else 'run'}.dir={directory}"
        monkeypatch.setattr(sys, "argv", ["train.py", *(["-m"] if sweep else []), *overrides, where])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        with warnings.catch_warnings():  # a run filters what it expects, for the whole process
            code = train.main()
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err, directory)

    return call


@pytest.fixture(autouse=True)
def _process_as_it_was():
    """A run seeds every generator and sets up logging, for the process is its own; here others come after it."""
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])
    logging.root.handlers, logging.root.level = handlers, level
    GlobalHydra.instance().clear()
