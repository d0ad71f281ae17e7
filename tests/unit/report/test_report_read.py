"""A run directory is read as far as it goes: what is missing or broken is said, and is no error."""

import json
import os
import shutil

import polars
import pytest
from report_runs import SIX, parameter_rows, write_run, write_stats

from builder.report.history import BINS, MOST_COLUMNS, histograms, history, taken
from builder.report.page import run_page
from builder.report.read import is_run, number, read_metrics, read_run
from builder.report.worst import Summary, summaries, worst
from builder.report.write import write_report


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", steps=20)


def frame(**columns):
    return polars.DataFrame({"step": [1, 1, 2, 2], "name": ["b", "a", "b", "a"], **columns}).lazy()


def rows(**columns):
    return taken(frame(**columns), tuple(columns))


def test_whole_run_lacks_nothing(run):
    found = read_run(run)
    assert found.notes == ()
    assert [row["name"] for row in found.table] == list(SIX)
    assert found.result["metrics"]["test/accuracy"] == 0.9722
    assert found.metrics.height == 20
    assert [verdict.severity for verdict in found.verdicts] == ["error", "warning"], "the gravest first"
    assert found.parameters.collect().height == 120
    assert found.outputs.collect().height == 60
    assert found.model_file.startswith("model:\n  args:\n    d: 64\n")
    assert "optimizer" not in found.model_file and "optimizer" in found.config


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("result.json", "There is no result.json: the run has not ended, or was killed."),
        ("metrics.csv", "There is no metrics.csv: nothing was logged to a file."),
        ("verdicts.json", "There is no verdicts.json: the verdicts are those of the statistics that there are."),
        ("parameters.json", "There is no parameters.json."),
        ("config.yaml", "There is no config.yaml."),
        ("model.py", "There is no model.py."),
        ("stats/outputs", "There are no statistics of layer outputs."),
        ("stats", "There are no statistics of parameters."),
        ("stats/cost.json", None),
    ],
)
def test_missing_file_is_said_and_the_page_still_opens(run, file, note):
    path = run / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert read_run(run).notes == (() if note is None else (note,))
    page = run_page(run)
    assert note is None or note in page


@pytest.mark.parametrize(
    ("file", "text", "note"),
    [
        pytest.param("result.json", "{", "result.json cannot be read: Expecting property name", id="cut JSON"),
        pytest.param("result.json", "[]", "result.json holds a list, not a dict.", id="JSON of another kind"),
        pytest.param("verdicts.json", "{}", "verdicts.json holds a dict, not a list.", id="verdicts of another kind"),
        pytest.param("metrics.csv", "", "metrics.csv cannot be read", id="empty CSV"),
        pytest.param("stats/parameters/000001.parquet", "PAR1", "parameters/000001.parquet cannot", id="cut parquet"),
    ],
)  # fmt: skip
def test_broken_file_is_said_and_the_page_still_opens(run, file, text, note):
    (run / file).write_text(text)
    (found,) = read_run(run).notes
    assert found.startswith(note)
    assert note in run_page(run)


FILES = [
    "config.yaml", "result.json", "verdicts.json", "parameters.json", "metrics.csv", "model.py", "stats/cost.json",
    "stats/parameters/000000.parquet", "stats/outputs/000000.parquet",
]  # fmt: skip


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_page_opens_whatever_file_was_cut_wherever(run, file, share):
    whole = (run / file).read_bytes()
    (run / file).write_bytes(whole[: int(len(whole) * share)])
    assert run_page(run).endswith("</html>\n")


@pytest.mark.parametrize("file", FILES)
def test_page_opens_whatever_file_is_of_other_bytes(run, file):
    (run / file).write_bytes(bytes(range(256)) * 8)
    assert run_page(run).endswith("</html>\n")


def test_killed_run_is_judged_by_its_statistics(run):
    (run / "verdicts.json").unlink()
    file = run / "stats/parameters/000001.parquet"
    rows = polars.read_parquet(file)
    rows.with_columns(update_ratio=polars.lit(0.5), nonfinite=polars.lit(2)).write_parquet(file)
    found = read_run(run).verdicts
    assert [(verdict.kind, verdict.severity) for verdict in found] == [
        ("nonfinite", "error"),
        ("update_ratio", "warning"),
    ]
    page = run_page(run)
    assert found[0].text in page and "This run was not judged." not in page


def test_step_that_a_resumed_run_repeated_is_judged_as_it_was_measured_last(run):
    (run / "verdicts.json").unlink()
    first = run / "stats/parameters/000000.parquet"
    rows = polars.read_parquet(first)
    rows.with_columns(nonfinite=polars.lit(2)).write_parquet(first)
    rows.write_parquet(run / "stats/parameters/000002.parquet")
    assert [verdict.kind for verdict in read_run(run).verdicts] == []


def test_verdicts_older_than_the_statistics_are_judged_anew(run):
    os.utime(run / "verdicts.json", (1, 1))
    found = read_run(run)
    assert (found.verdicts, found.notes) == ((), ())


def test_run_without_statistics_and_verdicts_was_not_judged(run):
    (run / "verdicts.json").unlink()
    shutil.rmtree(run / "stats")
    assert "This run was not judged." in run_page(run)


def test_rest_of_the_statistics_is_read_beside_a_broken_file(run):
    (run / "stats/parameters/000001.parquet").write_bytes(b"")
    assert read_run(run).parameters.collect().height == 60


@pytest.mark.parametrize(
    "content", ["{}", "[]", '[{}, 3, {"name": 4}]', '{"parameters": [1, {"name": "a"}, {}]}', "null"]
)
def test_parameter_table_of_odd_rows_still_opens(run, content):
    (run / "parameters.json").write_text(content)
    assert "Parameter table" in run_page(run)


def test_verdicts_of_odd_entries_still_open(run):
    (run / "verdicts.json").write_text(
        json.dumps([1, {}, {"severity": 3, "names": "x", "numbers": [1], "step": "last"}])
    )
    assert len(read_run(run).verdicts) == 2
    assert "ℹ info" in run_page(run)


def test_cost_of_odd_entries_still_opens(run):
    (run / "stats" / "cost.json").write_text(json.dumps({"seconds": 3.0, "share": "x", "every_n_steps": 5}))
    assert "Watching took 3.0 s." in run_page(run)


def test_nan_everywhere_still_opens(run):
    nan = float("nan")
    (run / "result.json").write_text(json.dumps({"status": "ok", "metrics": {"test/loss": nan, "val/loss": None}}))
    shutil.rmtree(run / "stats" / "parameters")
    rows = polars.DataFrame({"step": [1, 2], "epoch": [0, 0], "name": ["fc1.weight"] * 2, "rms": [nan] * 2})
    write_stats(
        run, "parameters", rows.with_columns(update_ratio=polars.lit(float("inf")), gradient_rms=polars.lit(nan))
    )
    (run / "metrics.csv").write_text("epoch,step,train/loss\n0,0,nan\n0,1,inf\n")
    page = run_page(run)
    assert "train/loss is not finite" in page
    assert "Checked black and white: NaN or inf, in 1 of 1 parameters." in page


def test_statistics_of_an_earlier_version_are_read(run):
    for file in (run / "stats" / "parameters").iterdir():
        polars.read_parquet(file).select("step", "epoch", "name", "rms", "update_ratio").write_parquet(
            run / "stats" / file.name
        )
    shutil.rmtree(run / "stats" / "parameters")
    assert read_run(run).parameters.collect().height == 120
    page = run_page(run)
    assert "Weight rms" in page and 'data-figure="map-gradient_rms"' not in page


def test_directory_of_a_killed_run_with_a_config_alone_opens(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {layers: {}}\n")
    page = write_report(tmp_path).read_text()
    assert "not ended" in page and "No metric was written." in page


def test_broken_config_is_shown_as_it_is(run):
    (run / "config.yaml").write_text("model: [\n")
    assert "Model file: not in this run." in run_page(run)


def test_a_run_is_known_by_any_of_its_files(tmp_path):
    assert not is_run(tmp_path)
    (tmp_path / "metrics.csv").touch()
    assert is_run(tmp_path)


def test_metrics_are_numbers_and_a_cut_line_counts_as_far_as_it_goes(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,a,b\n1,2.5,\n2,nan,1e-3\n3,inf,text\n4,0.")
    rows = read_metrics(tmp_path / "metrics.csv", [])
    assert rows["step"].to_list() == [1, 2, 3, 4]
    assert str(rows["a"].to_list()) == "[2.5, nan, inf, 0.0]"
    assert rows["b"].to_list() == [None, 1e-3, None, None]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (True, None), (float("nan"), None), ("1", None), (None, None), ([], None)],
)
def test_only_a_finite_number_is_a_number(value, expected):
    assert number(value) == expected


def test_rows_stand_in_the_model_order():
    assert history(rows(rms=[1.0, 2.0, 3.0, 4.0]), ["a", "b"]).names == ("a", "b")
    assert history(rows(rms=[1.0, 2.0, 3.0, 4.0]), []).names == ("b", "a"), "without a table: as stored"


def test_null_is_nothing_and_nan_is_a_non_finite_value():
    found = history(rows(rms=[1.0, None, float("nan"), 0.0]), ["a", "b"]).matrices["rms"]
    assert found.steps.tolist() == [1, 2]
    assert str(found.values.tolist()) == "[[nan, 0.0], [1.0, inf]]"


def test_measure_that_was_never_taken_has_no_matrix():
    assert list(history(rows(rms=[1.0] * 4, distance=[None] * 4), []).matrices) == ["rms"]


def test_slower_schedule_has_columns_of_its_own():
    found = history(rows(rms=[1.0] * 4, distance=[None, None, 2.0, 3.0]), [])
    assert found.matrices["distance"].steps.tolist() == [2]


def test_step_that_was_repeated_counts_as_measured_last():
    first, again = frame(rms=[9.0] * 4), frame(rms=[5.0] * 4)
    both = polars.concat([first, again])
    assert history(taken(both, ("rms",)), []).matrices["rms"].values.tolist() == [[5.0, 5.0]] * 2
    last_step = polars.concat([first, again.filter(polars.col("step") == 2)])
    assert history(taken(last_step, ("rms",)), []).matrices["rms"].values.tolist() == [[9.0, 5.0]] * 2


def test_members_of_a_stacked_model_have_rows_of_their_own():
    stacked = polars.DataFrame({"step": [1, 1], "name": ["a", "a"], "member": [1, 0], "rms": [1.0, 2.0]}).lazy()
    assert history(taken(stacked, ("rms",)), ["a"]).names == ("a [1]", "a [0]")


def test_long_history_keeps_its_spikes():
    steps = list(range(1, 1001))
    values = [1.0] * 1000
    values[500] = 99.0
    long = polars.DataFrame({"step": steps, "name": ["a"] * 1000, "rms": values}).lazy()
    found = history(taken(long, ("rms",)), []).matrices["rms"]
    assert found.per_column == 5 and found.values.shape == (1, 200) and found.values.shape[1] <= MOST_COLUMNS
    assert found.steps[0] == 5 and found.steps[-1] == 1000
    assert found.values.max() == 99.0 and (found.values == 99.0).sum() == 1


def test_histograms_are_shares_and_bounded_in_number(tmp_path):
    write_run(tmp_path, steps=200)
    found = histograms(read_run(tmp_path).parameters, SIX)
    assert found.roots.shape == (6, 60, BINS)
    assert found.steps[0] == 50 and found.steps[-1] == 10_000
    shares = (found.roots / 255.0) ** 2
    assert abs(shares.sum(axis=2) - 1).max() < 0.05
    assert found.looked_at.tolist() == [1.0] * 6


@pytest.mark.parametrize("counts", [None, [1, 2, 3]], ids=["null", "of another number of bins"])
def test_histograms_that_are_none_are_left_out(counts):
    assert histograms(frame(histogram=polars.Series([counts] * 4, dtype=polars.List(polars.Int64))), ["a", "b"]) is None


def test_worst_are_non_finite_then_still_then_out_of_the_band():
    entries = [
        Summary("fine", median_ratio=1e-3),
        Summary("large", median_ratio=0.5),
        Summary("tiny", median_ratio=1e-9),
        Summary("still", median_ratio=0.0, moved=False),
        Summary("frozen"),
        Summary("later", nonfinite=3, first_nonfinite=90),
        Summary("first", gradient_nonfinite=2, first_nonfinite=10),
    ]
    found = worst(entries)
    assert [entry.name for entry in found] == ["first", "later", "still", "tiny", "large"]
    assert found[0].why == "2 of its gradient's values are NaN or inf, first at step 10"
    assert found[4].why == "updates are large for its size: median ratio 0.5 over the run"


def test_summary_takes_the_last_value_that_was_measured():
    found = summaries(rows(rms=[1.0, 2.0, 3.0, None], update_rms=[0.0, 0.0, 0.0, 1.0], nonfinite=[0, 0, 2, 0]))
    assert found["a"] == Summary("a", rms=2.0, moved=True)
    assert found["b"] == Summary("b", rms=3.0, moved=False, nonfinite=2, first_nonfinite=2)


def test_rms_that_is_not_finite_stands_out_where_nothing_was_counted():
    found = summaries(rows(rms=[1.0, 2.0, 3.0, float("nan")]))
    assert [(entry.name, entry.why) for entry in worst(list(found.values()))] == [
        ("a", "its rms or its gradient's is NaN or inf, first at step 2")
    ]


def test_made_rows_keep_to_the_columns_of_the_store():
    columns = pytest.importorskip("builder.stats.store").SCHEMA
    import numpy

    made = parameter_rows(SIX, numpy.array([1, 2]), numpy.random.default_rng(0))
    assert set(made.columns) <= set(columns)
    assert {name: made.schema[name] for name in made.columns} == {name: columns[name] for name in made.columns}
