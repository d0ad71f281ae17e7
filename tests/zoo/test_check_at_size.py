"""`builder check` of models that fit no machine here: no memory for parameters, and little time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS, GIGABYTES = 2, 1  # beyond importing torch, of a processor; the whole process's peak
# Grattafiori et al. 2024, table 3, and config.json of the published weights.
SIZES = [
    pytest.param({"d": 8192, "depth": 80, "heads": 64, "hidden": 28672}, 70_553_706_496, id="70B"),
    pytest.param({"d": 16384, "depth": 126, "heads": 128, "hidden": 53248}, 405_853_388_800, id="405B"),
]
# What the command does, with the time that `import torch` takes left out.
CHECK = """
import json, sys, time
import torch
start = time.process_time()
from builder.cli import main
code = main(["check", *sys.argv[1:]])
seconds = time.process_time() - start
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"code": code, "seconds": seconds, "gigabytes": peak / 2**20}))
"""


def checked(args):
    """Code, seconds and peak memory of a check in a process of its own, and the line that it printed."""
    overrides = [f"args.{name}={value}" for name, value in args.items()]
    command = [sys.executable, "-c", CHECK, "conf/model/llama3.yaml", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said, figures = done.stdout.splitlines()
    return json.loads(figures), said


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("args, numel", SIZES)
def test_check_counts_every_parameter_and_allocates_none(args, numel):
    figures, said = checked(args)
    assert figures["code"] == 0
    assert said == f"llama3.yaml: ok, {numel:,} parameters"
    assert figures["gigabytes"] <= GIGABYTES


@pytest.mark.slow  # a calm machine, and the best of some runs
@pytest.mark.parametrize("args, numel", SIZES)
def test_check_takes_two_seconds_beyond_importing_torch(args, numel):
    del numel
    best = 60.0
    for _ in range(5):
        best = min(best, checked(args)[0]["seconds"])
        if best <= SECONDS:
            break
    assert best <= SECONDS
