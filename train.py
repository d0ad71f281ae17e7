"""Compose, check, build, fit, test: `python train.py --help` shows how.

A config that is refused ends with exit code 2 and one message. In a sweep (`-m`) a run that fails is recorded, the
others go on, and the sweep ends with exit code 1.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from builder.config import CONF, help_text, in_our_words, register_root, running_origin, unresolved
from builder.errors import BuilderError

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's own errors reach main(), which prints them in our words
register_root()
exit_codes: list[int] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def train(config: DictConfig) -> None:
    """One run."""
    from builder.run import run, write_result  # here: `--help` needs neither torch nor Lightning

    started = time.perf_counter()
    in_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        run(config, running_origin())
    except Exception as caught:
        # A section that was taken out of the config (`~callbacks`) is missed only where it is read.
        err = unresolved(caught) if isinstance(caught, OmegaConfBaseException) else caught
        if not in_sweep and not isinstance(err, BuilderError):
            raise
        print(err if isinstance(err, BuilderError) else traceback.format_exc(), file=sys.stderr)
        exit_codes.append(1 if in_sweep else 2)
        if in_sweep:
            seconds = round(time.perf_counter() - started, 3)
            error = str(err) or type(err).__name__
            write_result(Path(config.run_dir), {"status": "failed", "error": error, "metrics": {}, "seconds": seconds})


def main() -> int:
    """Runs the command line; returns the exit code."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return 0
    exit_codes.clear()
    try:
        train()
    except HydraException as err:
        print(in_our_words(err), file=sys.stderr)
        return 2
    return max(exit_codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
