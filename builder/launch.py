"""The Hydra application behind `train.py`: one run, or the runs of a sweep, and the exit code."""

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

from builder.config import check_groups, in_our_words, register_root, running_origin, unresolved
from builder.errors import BuilderError
from builder.help import CONF

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's own errors reach launch(), which prints them in our words
register_root()
exit_codes: list[int] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def train(config: DictConfig) -> None:
    """One run."""
    from builder.run import run, write_result  # here: `--help` needs neither torch nor Lightning

    started = time.perf_counter()
    in_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    origin = running_origin()
    try:
        run(config, origin)
    except Exception as caught:
        # A section that was taken out of the config (`~callbacks`) is missed only where it is read.
        err = unresolved(caught) if isinstance(caught, OmegaConfBaseException) else caught
        err = origin.locate(err) if isinstance(err, BuilderError) else err
        if not in_sweep and not isinstance(err, BuilderError):
            raise
        print(err if isinstance(err, BuilderError) else traceback.format_exc(), file=sys.stderr)
        exit_codes.append(1 if in_sweep else 2)
        if in_sweep:
            seconds = time.perf_counter() - started
            error = str(err) or type(err).__name__
            write_result(Path(config.run_dir), "failed", seconds, error=error)


def launch() -> int:
    """Runs `sys.argv`; returns 0, 1 where a run of a sweep failed, or 2 where a config was refused."""
    exit_codes.clear()
    try:
        check_groups(sys.argv[1:])
        train()
    except (HydraException, BuilderError) as err:
        print(in_our_words(err) if isinstance(err, HydraException) else err, file=sys.stderr)
        return 2
    return max(exit_codes, default=0)
