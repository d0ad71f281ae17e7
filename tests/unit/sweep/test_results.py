import csv
import io
import json
import math
import subprocess
import sys

import pytest
from rich.console import Console

from builder.errors import BuilderError
from builder.sweep.results import NO_RESULT, Run, judge, read_runs, render, summarise, varied_keys, write_csv

METRIC = "test/accuracy"
RECIPE = "+recipes=digits_mlp"


def make_run(sweep, number, overrides, accuracy=None, error=None, result=True):
    directory = sweep / str(number)
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))
    if result:
        found = {
            "overrides": overrides,
            "status": "ok" if error is None else "failed",
            "error": error,
            "metrics": {} if error else {METRIC: accuracy, "test/loss": 0.5},
            "seconds": 2.0,
        }
        (directory / "result.json").write_text(json.dumps(found))
    return directory


@pytest.fixture
def sweep(tmp_path):
    for number, (init, seed, accuracy) in enumerate(
        [("default", 0, 0.90), ("default", 1, 0.92), ("orthogonal", 0, 0.95), ("orthogonal", 1, 0.97)]
    ):
        make_run(tmp_path, number, [f"init={init}", f"init_seed={seed}", RECIPE], accuracy)
    return tmp_path


def printed(groups, **options):
    console = Console(width=160, file=io.StringIO())
    console.print(render(groups, METRIC, **options))
    return console.file.getvalue()


def rows_of(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_runs_that_differ_only_in_seeds_are_one_group(sweep):
    best, worst = summarise(read_runs(sweep), METRIC, "max")
    assert (best.overrides, best.runs, best.failed) == ({"init": "orthogonal"}, 2, {})
    spread = best.metrics[METRIC]
    assert (spread.mean, spread.std) == (pytest.approx(0.96), pytest.approx(0.02 / math.sqrt(2)))
    assert (spread.min, spread.max) == (0.95, 0.97)
    assert worst.overrides == {"init": "default"}


def test_least_is_best_where_the_mode_says_so(sweep):
    assert summarise(read_runs(sweep), METRIC, "min")[0].overrides == {"init": "default"}


def test_single_run_has_no_deviation(tmp_path):
    make_run(tmp_path, 0, ["init=default"], 0.5)
    (group,) = summarise(read_runs(tmp_path), METRIC, "max")
    assert group.metrics[METRIC].std is None
    assert str(group.metrics[METRIC]) == "0.5000"


def test_failed_run_is_shown_with_its_first_problem(sweep):
    make_run(sweep, 4, ["init=zeros", "init_seed=0", RECIPE], error="\nmodel gpt.yaml: 1 problem\n  layers.head: wrong")
    groups = summarise(read_runs(sweep), METRIC, "max")
    assert groups[-1].failed == {"4": "layers.head: wrong"}
    assert groups[-1].metrics == {}
    assert "4: layers.head: wrong" in printed(groups)


def test_run_without_a_result_counts_as_failed_with_the_overrides_that_hydra_wrote(sweep):
    make_run(sweep, 4, ["init=orthogonal", "init_seed=2", RECIPE], result=False)
    best = summarise(read_runs(sweep), METRIC, "max")[0]
    assert (best.overrides, best.runs, best.failed) == ({"init": "orthogonal"}, 3, {"4": NO_RESULT})
    assert best.metrics[METRIC].mean == pytest.approx(0.96)


@pytest.mark.parametrize(
    "text", [pytest.param("{", id="cut off"), pytest.param("[]", id="list"), pytest.param("{}", id="keys missing")]
)
def test_unreadable_result_counts_as_failed(sweep, text):
    (sweep / "3" / "result.json").write_text(text)
    run = read_runs(sweep)[3]
    assert run.error is not None
    assert run.error.startswith("unreadable result.json")
    assert run.overrides["init"] == "orthogonal"


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_value_that_is_not_finite_never_ranks_best(sweep, mode, value):
    make_run(sweep, 4, ["init=sparse", "init_seed=0", RECIPE], value)
    last = summarise(read_runs(sweep), METRIC, mode)[-1]
    assert last.overrides == {"init": "sparse"}
    assert last.failed["4"].startswith("test/accuracy is ")


def test_other_metric_may_be_nan_without_failing_the_run():
    runs = [Run("0", {}, {METRIC: 0.9, "test/loss": math.nan}), Run("1", {}, {METRIC: 0.8, "test/loss": 1.0})]
    (group,) = summarise(runs, METRIC, "max")
    assert group.failed == {}
    assert math.isnan(group.metrics["test/loss"].mean)


def test_missing_metric_names_those_that_are_there():
    assert judge(Run("0", {}, {"test/loss": 1.0}), METRIC).error == "no test/accuracy among its metrics: test/loss"


def test_jobs_stand_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 0):
        make_run(tmp_path, number, ["init=default"], 0.5)
    assert [run.name for run in read_runs(tmp_path)] == ["0", "2", "10"]


def test_runs_in_nested_folders_are_found_but_not_looked_into(tmp_path):
    run = make_run(tmp_path / "init=a", "seed=0", ["init=a"], 0.5)
    make_run(run / "checkpoints", 0, ["init=b"], 0.9)
    assert [found.name for found in read_runs(tmp_path)] == ["init=a/seed=0"]


def test_constant_overrides_and_seeds_are_no_columns(sweep):
    assert varied_keys(read_runs(sweep)) == ["init"]


def test_key_that_only_some_runs_have_is_a_column():
    assert varied_keys([Run("0", {"init": "a"}), Run("1", {"init": "a", "lr": "1"})]) == ["lr"]


def test_sweep_over_seeds_alone_is_one_group():
    runs = [Run(str(seed), {"seed": str(seed)}, {METRIC: 0.1 * seed}) for seed in range(3)]
    (group,) = summarise(runs, METRIC, "max")
    assert (group.overrides, group.runs) == ({}, 3)


@pytest.mark.parametrize("directory", ["", "missing"])
def test_directory_without_runs_is_refused(tmp_path, directory):
    with pytest.raises(BuilderError, match="name the directory of a multirun"):
        read_runs(tmp_path / directory)


def test_unknown_mode_is_refused_with_a_suggestion():
    with pytest.raises(BuilderError, match="did you mean 'max'"):
        summarise([], METRIC, "maxi")


def test_table_shows_mean_and_spread_best_first(sweep):
    lines = printed(summarise(read_runs(sweep), METRIC, "max"), others=["test/loss"]).splitlines()
    assert "4 runs, best test/accuracy first" in lines[0]
    shown = [line for line in lines if "±" in line]
    assert "orthogonal" in shown[0]
    assert "0.9600 ± 0.0141" in shown[0]
    assert "0.5000 ± 0.0000" in shown[0]
    assert "default" in shown[1]


def test_brackets_in_overrides_and_errors_are_printed_as_they_are():
    runs = [Run("0", {"d": "[1,2]"}, {METRIC: 0.5}), Run("1", {"d": "[red]"}, error="bad [bold] key")]
    text = printed(summarise(runs, METRIC, "max"))
    assert "[1,2]" in text
    assert "[red]" in text
    assert "bad [bold] key" in text


def test_csv_holds_one_row_a_group_and_one_row_a_run(sweep):
    make_run(sweep, 4, ["init=zeros", "init_seed=0", RECIPE], error='broke, "badly"\nat once')
    runs = read_runs(sweep)
    results, singles = write_csv(sweep, runs, summarise(runs, METRIC, "max"))
    assert [row["init"] for row in rows_of(results)] == ["orthogonal", "default", "zeros"]
    assert float(rows_of(results)[0][f"{METRIC} mean"]) == pytest.approx(0.96)
    assert rows_of(results)[2]["errors"] == '4: broke, "badly"'
    assert [row["run"] for row in rows_of(singles)] == ["0", "1", "2", "3", "4"]
    assert float(rows_of(singles)[3][METRIC]) == 0.97
    assert not [file for file in sweep.iterdir() if file.name.startswith(".")]


def test_csv_that_cannot_be_put_in_its_place_leaves_the_old_one(sweep, monkeypatch):
    def fail(part, file):
        raise OSError("disk full")

    (sweep / "results.csv").write_text("old")
    before = sorted(sweep.iterdir())
    monkeypatch.setattr("os.replace", fail)
    runs = read_runs(sweep)
    with pytest.raises(OSError, match="disk full"):
        write_csv(sweep, runs, summarise(runs, METRIC, "max"))
    assert sorted(sweep.iterdir()) == before
    assert (sweep / "results.csv").read_text() == "old"


def test_table_needs_no_torch():
    check = "import sys, builder.sweep.callback; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
