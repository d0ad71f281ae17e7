"""What the benchmarks share: a ratio is of the side that its limit asks for, and Ctrl-C loses no figure."""

import json

import pytest

from benchmarks.figures import INTERRUPTED, figure, run

PAIRS = [(1.0, 3.0), (2.0, 4.0), (3.0, 3.0)]


def interrupted(pairs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("limit", "more", "value", "passed"),
    [
        pytest.param(0.5, {}, 0.5, True, id="ours over theirs"),
        pytest.param(0.5, {"extra": 1.0}, 0.75, False, id="with what comes on top"),
        pytest.param(2.5, {"at_least": True}, 2.0, False, id="theirs over ours"),
    ],
)
def test_figure_is_the_median_ratio_held_against_its_limit(limit, more, value, passed):
    found = figure("name", PAIRS, limit, **more)
    assert (found.value, found.passed, found.pairs, found.seconds) == (value, passed, 3, (2.0, 3.0))


def test_interrupted_benchmark_prints_the_figures_it_has(monkeypatch, capsys):
    cases = {"first": lambda pairs: figure("first", PAIRS, 0.5), "second": interrupted}
    monkeypatch.setattr("sys.argv", ["benchmark", "--json", "--cores", "1"])
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr("os.sched_setaffinity", lambda process, cores: None, raising=False)
    assert run("what", "", cases) == INTERRUPTED == 130
    printed = json.loads(capsys.readouterr().out)
    assert [found["name"] for found in printed["figures"]] == ["first"]
    assert printed["passed"] is False
    with pytest.raises(SystemExit, match="130"):
        run("what", "", {"second": interrupted})
    assert capsys.readouterr().out == ""
