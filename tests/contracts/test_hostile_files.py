"""A model file is data (law L9): whatever it says, nothing is imported, opened, executed or started."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_files import CONSTRUCTED, FILES

SECONDS, MEGABYTES = 1, 200


@pytest.fixture(scope="module")
def outcomes():
    """What each file led to, all in one process of their own under an audit hook."""
    file = Path(__file__).with_name("hostile_files.py")
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_are_enough_hostile_files():
    assert len(FILES) >= 80


def test_the_hook_sees_generated_source_run(outcomes):
    plain = outcomes["a plain model"]
    assert plain["said"] is None
    assert any(event.startswith("exec ") and "<generated" in event for event in plain["events"])


@pytest.mark.parametrize("name", FILES)
def test_hostile_file_is_refused_and_runs_nothing(name, outcomes):
    outcome = outcomes[name]
    events = [event for event in outcome["events"] if name not in CONSTRUCTED or "<generated M " not in event]
    assert events == []
    assert outcome["said"] is not None, "it was not refused"
    assert outcome["seconds"] < SECONDS
    assert outcome["megabytes"] < MEGABYTES
