"""The page of a sweep: it ranks and judges as `results.csv` does, and says what went wrong in a line."""

import json
import re
from html import unescape

import numpy
import pytest
from report_runs import SIX, write_words

from builder.report.sweep import sweep_page
from builder.sweep.results import problem_of, read_runs, render, summarise, write_csv

REFUSED = "training: 2 problems\n  train/loss: is nan at step 3\n      try a smaller optimizer.lr\n  val/loss: is nan"


def write_sweep(root, *runs, monitor="val/accuracy", mode="max"):
    """Each run is its overrides and the rest of its result; `monitor` None leaves the sweep's config out."""
    for number, (overrides, result) in enumerate(runs):
        directory = root / str(number)
        directory.mkdir()
        whole = {"status": "ok", "error": None, "seconds": 2.0, "metrics": {}, "overrides": overrides.split(), **result}
        (directory / "result.json").write_text(json.dumps(whole))
    if monitor is not None:
        (root / "multirun.yaml").write_text(f"monitor: {monitor}\nmode: {mode}\n")
    return root


def scores(accuracy, loss=1.0):
    return {"metrics": {"test/accuracy": accuracy, "test/loss": loss}}


def rows_of(page, table):
    """Texts of a table's cells, row by row."""
    body = re.search(rf'<table id="table-{table}">.*?</table>', page, re.S)[0]
    lines = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    cells = [re.findall(r"<t[hd].*?</t[hd]>", line, re.S) for line in lines]
    return [[unescape(re.sub(r"<[^>]+>", "", cell)) for cell in line] for line in cells]


def test_settings_stand_first_as_mean_and_spread_the_best_first(tmp_path):
    write_sweep(
        tmp_path,
        ("optimizer.lr=1e-3 seed=0", scores(0.5)),
        ("optimizer.lr=1e-3 seed=1", scores(0.7)),
        ("optimizer.lr=10 seed=0", scores(0.9)),
        ("optimizer.lr=10 seed=1", {"status": "failed", "error": REFUSED}),
    )
    page = sweep_page(tmp_path)
    assert rows_of(page, "settings") == [
        ["optimizer.lr", "test/accuracy", "test/loss", "runs", "failed"],
        ["10", "0.9", "1", "2", "1"],
        ["1e-3", "0.6 ± 0.1414", "1 ± 0", "2", "0"],
    ]
    assert "Best mean of test/accuracy first (max)" in page
    assert page.index("table-settings") < page.index("table-runs")


def test_config_of_a_run_says_what_is_monitored_where_the_sweep_has_none(tmp_path):
    write_sweep(tmp_path, ("lr=1", scores(0.5, 3.0)), ("lr=2", scores(0.9, 4.0)), monitor=None)
    (tmp_path / "0" / "config.yaml").write_text("monitor: val/loss\nmode: min\n")
    assert [row[0] for row in rows_of(sweep_page(tmp_path), "settings")[1:]] == ["1", "2"]


@pytest.mark.parametrize("config", ["", "[]", "monitor: [", "monitor: 3\nmode: max\n", "monitor: a\nmode: best\n"])
def test_sweep_without_a_monitored_metric_says_where_each_metric_lies(tmp_path, config):
    write_sweep(tmp_path, ("lr=1", scores(0.5)), ("lr=2", scores(0.9)), monitor=None)
    (tmp_path / "multirun.yaml").write_text(config)
    page = sweep_page(tmp_path)
    assert "from 0.5 (run 0: lr=1) to 0.9 (run 1: lr=2)" in page
    assert "</strong> 1 in 2 runs" in page, "a value that all share has no range"


def test_one_run_has_a_value_and_no_range(tmp_path):
    page = sweep_page(write_sweep(tmp_path, ("lr=1", scores(0.5)), monitor=None))
    assert "</strong> 0.5 (run 0)" in page and "from 0.5" not in page
    assert "<span>1 run</span>" in page


def test_run_that_results_csv_counts_as_failed_is_failed_here(tmp_path):
    write_sweep(tmp_path, ("lr=1", scores(0.5)), ("lr=9", scores(0.1, float("nan"))), monitor="val/loss", mode="min")
    runs = read_runs(tmp_path)
    results, _ = write_csv(tmp_path, runs, summarise(runs, "test/loss", "min"))
    assert "test/loss is nan" in results.read_text()
    page = sweep_page(tmp_path)
    assert "1 failed" in page and "all finished" not in page
    assert rows_of(page, "runs")[2] == ["1", "9", "0.1", "nan", "2.0", "test/loss is nan"]


@pytest.mark.parametrize("given", [None, ("test/accuracy", "max")], ids=["as the config has it", "as hydra asks"])
def test_sweep_that_was_not_tested_is_ranked_by_validation(tmp_path, given):
    first, second = ({"metrics": {"val/accuracy": value, "train/loss": 1.0}} for value in (0.5, 0.7))
    page = sweep_page(write_sweep(tmp_path, ("lr=1", first), ("lr=2", second)), given)
    assert "all finished" in page and "No run has test/accuracy." in page
    assert [row[:2] for row in rows_of(page, "settings")] == [["lr", "val/accuracy"], ["2", "0.7"], ["1", "0.5"]]
    groups = summarise(read_runs(tmp_path), "test/accuracy", "max")
    assert [(group.overrides, group.failed) for group in groups] == [({"lr": "2"}, {}), ({"lr": "1"}, {})]
    assert render(groups, "test/accuracy").title == "2 runs, best val/accuracy first"


def test_sweep_without_the_metric_in_any_run_has_no_failed_ones(tmp_path):
    found = {"metrics": {"train/loss": 1.0}}
    page = sweep_page(write_sweep(tmp_path, ("lr=1", found), ("lr=2", found)))
    assert "all finished" in page and "No run has test/accuracy." in page and "</strong> 1 in 2 runs" in page
    groups = summarise(read_runs(tmp_path), "test/accuracy", "max")
    assert [len(group.failed) for group in groups] == [0, 0]
    assert render(groups, "test/accuracy").title == "2 runs, none has test/accuracy"


def test_files_of_results_name_the_first_problem_of_a_failed_run(tmp_path):
    write_sweep(tmp_path, ("lr=1", scores(0.5)), ("lr=2", {"status": "failed", "error": REFUSED}))
    runs = read_runs(tmp_path)
    for file in write_csv(tmp_path, runs, summarise(runs, "test/accuracy", "max")):
        assert "train/loss: is nan at step 3" in file.read_text() and "2 problems" not in file.read_text()


def test_failed_run_shows_its_problem_and_keeps_the_lines_of_its_error(tmp_path):
    write_sweep(tmp_path, ("lr=1", {"status": "failed", "error": REFUSED}))
    page = sweep_page(tmp_path)
    assert rows_of(page, "runs")[1][-1] == "train/loss: is nan at step 3"
    assert "run 0</strong> train/loss: is nan at step 3<details>" in page
    assert f">{REFUSED}</pre>" in page


def test_long_problem_is_cut_in_the_table_and_whole_in_the_list(tmp_path):
    error = "the loss " + "is nan and " * 20 + "so on"
    page = sweep_page(write_sweep(tmp_path, ("lr=1", {"status": "failed", "error": error})))
    cell = rows_of(page, "runs")[1][-1]
    assert len(cell) <= 80 and cell.startswith("the loss is nan") and cell.endswith(" …")
    assert f"run 0</strong> {error}</li>" in page


def test_error_of_one_line_is_not_said_twice(tmp_path):
    page = sweep_page(write_sweep(tmp_path, ("lr=1", {"status": "failed", "error": "out of memory"})))
    assert "run 0</strong> out of memory</li>" in page


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        pytest.param(REFUSED, "train/loss: is nan at step 3", id="first problem"),
        pytest.param("CUDA out of memory.\nTried to allocate", "CUDA out of memory.", id="first line"),
        pytest.param("a: 1 problem", "a: 1 problem", id="nothing after the count"),
        pytest.param(" \n", "failed without a message", id="blank"),
    ],
)
def test_problem_is_the_line_that_says_what_is_wrong(error, problem):
    assert problem_of(error) == problem


def test_column_of_numbers_is_sorted_as_numbers_and_shown_as_given(tmp_path):
    write_sweep(
        tmp_path,
        ("lr=1e-3 init=a width=8", scores(0.5)),
        ("lr=0.0002 init=2", scores(0.6)),
        ("lr=3 init=b width=16", scores(0.7)),
    )
    page = sweep_page(tmp_path)
    assert '<th scope="row" data-value="0.001" class="number">1e-3</th>' in page, "a setting that names its row"
    assert '<td data-value="0.001" class="number">1e-3</td>' in page
    kinds = re.findall(r'data-kind="(\w+)"[^>]*><button type="button">(lr|init|width)<', page)
    assert dict((key, kind) for kind, key in kinds) == {"lr": "number", "init": "text", "width": "number"}


@pytest.mark.parametrize(
    ("folder", "link"),
    [
        ("c#1", "./c%231/report.html"),
        ("d?x=1", "./d%3Fx%3D1/report.html"),
        ("e%20f", "./e%2520f/report.html"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29/report.html"),
        ("a/b", "./a/b/report.html"),
    ],
)
def test_link_leads_to_the_run_whatever_its_folder_is_called(tmp_path, folder, link):
    directory = tmp_path / folder
    directory.mkdir(parents=True)
    (directory / "result.json").write_text("{}")
    (directory / "report.html").touch()
    assert f'href="{link}"' in sweep_page(tmp_path)


def test_curves_of_one_run_compare_it_with_nothing(tmp_path):
    write_sweep(tmp_path, ("lr=1", scores(0.5)))
    write_words(tmp_path / "0", SIX, numpy.arange(1, 21) * 50)
    page = sweep_page(tmp_path)
    assert re.search(r">0: \S+: [\d.]+ at the end\.<|>0[^<]*: [\d.]+ at the end\.<", page)
    assert "Lowest at the end" not in page
