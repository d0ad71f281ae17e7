"""What tests share: every model is given as a plain dict and as a DictConfig, and must come out unchanged."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import builder

ROOT = Path(__file__).parent.parent
MEETING = """
import sys
import torch.distributed as dist

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
"""


@pytest.fixture(params=["dict", "DictConfig"])
def given(request):
    """Turns plain data into the kind of source under test; afterwards, every source must be as it was."""
    taken = []

    def give(data):
        source = copy.deepcopy(data) if request.param == "dict" else OmegaConf.create(copy.deepcopy(data))
        taken.append((source, copy.deepcopy(source)))
        return source

    yield give
    for source, before in taken:
        assert repr(source) == repr(before), "the input was changed"


@pytest.fixture
def refusal():
    """The only problem with which a call is refused."""

    def of(call, *args, **kwargs):
        with pytest.raises(builder.BuilderError) as caught:
            call(*args, **kwargs)
        return caught.value.problems[0]

    return of


@pytest.fixture
def conf_models():
    """The project's own model files by name."""
    return {file.stem: file for file in sorted((ROOT / "conf" / "model").glob("*.yaml"))}


@pytest.fixture
def two_processes(tmp_path):
    """Runs a text of Python in two processes that have met, as `rank` 0 and 1 in `folder`; both must end well."""

    def run(text, *arguments):
        environment = {
            **os.environ,
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),  # so that they find what stands beside the test
        }
        ranks = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", MEETING + text, str(tmp_path), str(rank), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**environment, "LOCAL_RANK": str(rank)},  # which Lightning reads
            )
            for rank in range(2)
        ]
        try:
            for rank in ranks:
                said, _ = rank.communicate(timeout=120)
                assert rank.returncode == 0, said
        finally:
            for rank in ranks:
                rank.kill()
                rank.stdout.close()
                rank.wait()

    return run
