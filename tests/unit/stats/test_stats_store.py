"""The store: files whole or absent, numbering that goes on, nothing lost."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import polars
import pytest

from builder.errors import BuilderError
from builder.stats import store as module_under_test
from builder.stats.columns import BINS, COUNTS, MEASURES, OUTPUT_MEASURES
from builder.stats.store import Store, read_outputs, read_stats, take_back


def columns(step, names=("a.weight", "b.bias"), value=0.5):
    example = dict.fromkeys(COUNTS, 1) | {"histogram": [0, 3, 1]}
    return {
        "step": [step] * len(names),
        "epoch": [0] * len(names),
        "name": list(names),
        "member": [None] * len(names),
        **{measure: [example.get(measure, value)] * len(names) for measure in MEASURES},
    }


def outputs(step, layers=("fc",), value=0.5):
    return {
        "step": [step] * len(layers),
        "epoch": [0] * len(layers),
        "layer": list(layers),
        "kind": ["Linear"] * len(layers),
        "member": [None] * len(layers),
        **{measure: [1 if measure in COUNTS else value] * len(layers) for measure in OUTPUT_MEASURES},
    }


def files(run_dir, kind="parameters"):
    return sorted(file.name for file in (run_dir / "stats" / kind).iterdir())


def test_what_is_appended_is_read_back_by_step_and_name(tmp_path):
    store = Store(tmp_path, flush_every=2)
    for step in (1, 2, 3):
        store.append(columns(step))
    store.flush()
    rows = read_stats(tmp_path)
    assert rows.columns == ["step", "epoch", "name", "member", *MEASURES]
    assert rows["step"].to_list() == [1, 1, 2, 2, 3, 3]
    assert rows["name"].to_list() == ["a.weight", "b.bias"] * 3
    assert files(tmp_path) == ["000000.parquet", "000001.parquet"]


def test_nan_and_inf_are_values_and_null_is_their_absence(tmp_path):
    store = Store(tmp_path, flush_every=1)
    store.append(columns(1, ["a", "b", "c"]) | {"rms": [math.nan, math.inf, None], "nonfinite": [3, 2**40, 0]})
    rms = read_stats(tmp_path)["rms"]
    assert math.isnan(rms[0]) and rms[1] == math.inf and rms[2] is None
    assert read_stats(tmp_path)["nonfinite"].to_list() == [3, 2**40, 0]


def test_a_column_of_nulls_keeps_its_type(tmp_path):
    store = Store(tmp_path, flush_every=1)
    store.append(columns(1) | {"update_rms": [None, None]})
    store.append(columns(2))
    assert read_stats(tmp_path).schema == polars.Schema(module_under_test.SCHEMA)
    assert read_stats(tmp_path)["update_rms"].to_list() == [None, None, 0.5, 0.5]


def test_flush_without_rows_writes_no_file(tmp_path):
    Store(tmp_path, flush_every=1).flush()
    assert files(tmp_path) == []


def test_a_second_store_continues_the_numbering_and_drops_nothing(tmp_path):
    Store(tmp_path, flush_every=1).append(columns(1))
    before = (tmp_path / "stats" / "parameters" / "000000.parquet").read_bytes()
    Store(tmp_path, flush_every=1).append(columns(2))
    assert files(tmp_path) == ["000000.parquet", "000001.parquet"]
    assert (tmp_path / "stats" / "parameters" / "000000.parquet").read_bytes() == before
    assert read_stats(tmp_path)["step"].to_list() == [1, 1, 2, 2]


def test_numbering_goes_on_past_the_padding(tmp_path):
    Store(tmp_path, flush_every=1).append(columns(1))
    (tmp_path / "stats" / "parameters" / "000000.parquet").rename(tmp_path / "stats" / "parameters" / "999999.parquet")
    for step in (2, 3):
        Store(tmp_path, flush_every=1).append(columns(step))
    assert files(tmp_path) == ["1000000.parquet", "1000001.parquet", "999999.parquet"]
    assert read_stats(tmp_path)["step"].to_list() == [1, 1, 2, 2, 3, 3]


def test_a_step_that_was_measured_twice_reads_as_measured_last(tmp_path):
    for step, value in ((1, 0.1), (2, 0.2), (2, 0.3)):
        Store(tmp_path, flush_every=1).append(columns(step, ["a"], value))
    assert read_stats(tmp_path).select("step", "rms").rows() == [(1, 0.1), (2, 0.3)]
    assert len(files(tmp_path)) == 3


def thirty_steps(run_dir):
    """Steps 10, 20 and 30, two of them in the first file."""
    store = Store(run_dir, flush_every=2)
    for step in (10, 20, 30):
        store.append(columns(step), outputs(step))
    store.flush()
    store.write_cost({"seconds": 0.5})
    return run_dir / "stats"


@pytest.mark.parametrize(
    ("begin", "steps", "left"),
    [
        pytest.param(0, [], 0, id="anew"),
        pytest.param(5, [], 0, id="before the first"),
        pytest.param(15, [10], 1, id="within a file"),
        pytest.param(20, [10, 20], 1, id="between files"),
        pytest.param(30, [10, 20, 30], 2, id="at the last"),
    ],
)
def test_a_fit_takes_back_the_steps_after_the_one_at_which_it_begins(tmp_path, begin, steps, left):
    stats = thirty_steps(tmp_path)
    take_back(tmp_path, begin)
    assert read_stats(tmp_path)["step"].unique().to_list() == read_outputs(tmp_path)["step"].to_list() == steps
    assert files(tmp_path) == files(tmp_path, "outputs") == ["000000.parquet", "000001.parquet"][:left]
    assert (stats / "cost.json").exists() == (begin > 0)
    if steps:
        assert polars.read_parquet(stats / "parameters" / "*.parquet")["step"].unique().sort().to_list() == steps
        assert read_stats(tmp_path).schema == polars.Schema(module_under_test.SCHEMA)


def test_a_directory_without_statistics_has_nothing_to_take_back(tmp_path):
    for step in (0, 5):
        take_back(tmp_path / "new", step)
    assert not (tmp_path / "new").exists()


def test_files_that_nothing_is_taken_from_stay_as_they_are(tmp_path):
    file = thirty_steps(tmp_path) / "parameters" / "000000.parquet"
    before = file.stat()
    take_back(tmp_path, 25)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("kind", ["parameters", "outputs"])
def test_a_broken_file_is_named_with_what_to_do(tmp_path, kind):
    file = thirty_steps(tmp_path) / kind / "000001.parquet"
    file.write_bytes(b"x")
    read = {"parameters": read_stats, "outputs": read_outputs}[kind]
    for ask in (read, lambda run_dir: take_back(run_dir, 20)):
        with pytest.raises(BuilderError, match=r"(?s)000001\.parquet: cannot be read: .*move it away") as raised:
            ask(tmp_path)
        assert raised.value.problems[0].address == str(file)
    take_back(tmp_path, 0)
    assert files(tmp_path) == files(tmp_path, "outputs") == []


def test_files_of_others_in_the_folder_are_neither_read_nor_taken_away(tmp_path):
    (thirty_steps(tmp_path) / "parameters" / "all.parquet").write_bytes(b"x")
    assert read_stats(tmp_path).height == 6
    Store(tmp_path, flush_every=1).append(columns(40))
    take_back(tmp_path, 0)
    assert files(tmp_path) == ["all.parquet"]


@pytest.mark.parametrize("kill", range(6))
def test_a_kill_while_steps_are_taken_back_leaves_the_first_ones_whole(tmp_path, kill):
    thirty_steps(tmp_path)
    code = f"""{KILL_AT}
import sys
from pathlib import Path
from builder.stats import store
calls = []
def counted(do):
    return lambda *given, **named: die() if calls.append(1) or len(calls) > {kill} else do(*given, **named)
Path.unlink, store.write_whole = counted(Path.unlink), counted(store.write_whole)
store.take_back(Path(sys.argv[1]), 15)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    for read in (read_stats, read_outputs):
        assert read(tmp_path)["step"].unique().sort().to_list() in ([10], [10, 20], [10, 20, 30])
    take_back(tmp_path, 15)
    assert read_stats(tmp_path)["step"].to_list() == [10, 10] and read_outputs(tmp_path)["step"].to_list() == [10]


def test_a_write_that_fails_leaves_no_file_and_keeps_the_rows(tmp_path, monkeypatch):
    store = Store(tmp_path, flush_every=2)
    store.append(columns(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            store.flush()
    assert read_stats(tmp_path).is_empty()
    store.flush()
    assert files(tmp_path) == ["000000.parquet"]
    assert read_stats(tmp_path)["step"].to_list() == [1, 1]


def test_opening_takes_away_the_parts_that_a_kill_left_and_nothing_else(tmp_path):
    store = Store(tmp_path, flush_every=1)
    store.append(columns(1), outputs(1))
    store.write_cost({"seconds": 0.5})
    whole = sorted(tmp_path.rglob("*"))
    for part in (".cost.json.123.part", "parameters/.000001.parquet.123.part", "outputs/.000001.parquet.123.part"):
        (tmp_path / "stats" / part).write_bytes(b"half")
    assert len(list(tmp_path.rglob("*.part"))) == 3
    Store(tmp_path, flush_every=1)
    assert sorted(tmp_path.rglob("*")) == whole


def test_a_file_of_an_older_version_reads_with_nulls(tmp_path):
    (tmp_path / "stats" / "parameters").mkdir(parents=True)
    old = polars.DataFrame(columns(1), schema=module_under_test.SCHEMA).drop("update_ratio")
    old.write_parquet(tmp_path / "stats" / "parameters" / "000000.parquet")
    Store(tmp_path, flush_every=1).append(columns(2))
    assert read_stats(tmp_path)["update_ratio"].to_list() == [None, None, 0.5, 0.5]


def test_outputs_have_a_folder_of_their_own_and_the_number_of_the_flush(tmp_path):
    store = Store(tmp_path, flush_every=1)
    store.append(columns(1))
    store.append(columns(2), outputs(2, ["fc", "act"]))
    store.append(columns(3), outputs(3, []))
    assert files(tmp_path) == ["000000.parquet", "000001.parquet", "000002.parquet"]
    assert files(tmp_path, "outputs") == ["000001.parquet", "000002.parquet"]
    rows = read_outputs(tmp_path)
    assert rows.columns == ["step", "epoch", "layer", "kind", "member", *OUTPUT_MEASURES]
    assert rows.select("step", "layer").rows() == [(2, "fc"), (2, "act")]


def test_members_are_told_apart(tmp_path):
    store = Store(tmp_path, flush_every=1)
    store.append(columns(1, ["a", "a"]) | {"member": [0, 1]})
    store.append(columns(1, ["a", "a"], 0.7) | {"member": [0, 1]})
    assert read_stats(tmp_path).select("member", "rms").rows() == [(0, 0.7), (1, 0.7)]


def test_histograms_come_back_as_lists(tmp_path):
    counts = list(range(BINS))
    Store(tmp_path, flush_every=1).append(columns(1) | {"histogram": [counts, None]})
    assert read_stats(tmp_path)["histogram"].to_list() == [counts, None]


def test_cost_is_written_beside_the_folders(tmp_path):
    store = Store(tmp_path, flush_every=1)
    for seconds in (0.5, 0.75):
        store.write_cost({"seconds": seconds})
    assert json.loads((tmp_path / "stats" / "cost.json").read_text()) == {"seconds": 0.75}
    assert sorted(file.name for file in (tmp_path / "stats").iterdir()) == ["cost.json", "outputs", "parameters"]


@pytest.mark.parametrize(
    ("reader", "code"),
    [
        pytest.param("polars", "len(polars.read_parquet(folder))", id="polars"),
        pytest.param("pandas", "len(pandas.read_parquet(folder))", id="pandas"),
        pytest.param("duckdb", "len(duckdb.sql(f\"select * from '{folder}/*.parquet'\").fetchall())", id="duckdb"),
    ],
)
def test_a_folder_is_read_by_one_line_of(tmp_path, reader, code):
    module = pytest.importorskip(reader)
    if reader == "pandas":
        pytest.importorskip("pyarrow")
    store = Store(tmp_path, flush_every=1)
    for step in (1, 2, 3):
        store.append(columns(step))
    assert eval(code, {reader: module, "folder": str(tmp_path / "stats" / "parameters")}) == 6


def test_a_run_without_statistics_has_no_rows_but_all_columns(tmp_path):
    assert read_stats(tmp_path).is_empty() and read_outputs(tmp_path).is_empty()
    assert read_stats(tmp_path).columns == ["step", "epoch", "name", "member", *MEASURES]


def test_a_run_directory_that_is_not_there_is_an_error(tmp_path):
    for read in (read_stats, read_outputs):
        with pytest.raises(BuilderError, match="is not a directory"):
            read(tmp_path / "missing")


def test_a_finished_run_is_read_without_importing_torch():
    code = "import sys, builder.stats.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


KILL_AT = """
import os, signal, polars
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
def half(self, file):
    file.write_bytes(b"PAR1 and no more")
    die()
"""

WRITER = """
import os, sys
from pathlib import Path
from builder.stats.store import Store
from builder.stats.columns import COUNTS, MEASURES
store = Store(Path(sys.argv[1]), flush_every=1)
step = int(sys.argv[2])
names = [f"layer{i}.weight" for i in range(2000)]
body = {m: [0 if m in COUNTS else 0.1 * i for i in range(2000)] for m in MEASURES}
body |= {"member": [None] * 2000, "histogram": [[i] for i in range(2000)]}
while step < 9999:
    step += 1
    store.append({"step": [step] * 2000, "epoch": [0] * 2000, "name": names, **body})
    print(step, flush=True)
"""


@pytest.mark.parametrize(
    ("point", "kept"),
    [
        pytest.param("polars.DataFrame.write_parquet = half", 0, id="half of a file written"),
        pytest.param("os.fsync = die", 0, id="written, not synced"),
        pytest.param("os.replace = die", 0, id="synced, not renamed"),
        pytest.param("os.open = die", 1, id="renamed, the folder not synced"),
    ],
)
def test_a_kill_inside_a_flush_leaves_the_file_whole_or_absent(tmp_path, point, kept):
    Store(tmp_path, flush_every=1).append(columns(1, ["a"]))
    code = WRITER.replace("while step < 9999:", f"{KILL_AT}{point}\nfor _ in range(3):")
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), "1"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_stats(tmp_path).height == 1 + 2000 * kept
    Store(tmp_path, flush_every=1).append(columns(9, ["a"]))
    assert read_stats(tmp_path).height == 2 + 2000 * kept
    assert files(tmp_path) == [f"{number:06d}.parquet" for number in range(2 + kept)], "nothing half-written stays"


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_the_store_opens_after_a_kill_at_any_moment(tmp_path, kills):
    """Whatever the writer reported as written is there, whole, and a new writer goes on from it."""
    written = 0
    moments = random.Random(0)
    for _ in range(kills):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(written)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            reported = [int(writer.stdout.readline()) for _ in range(3)]
            time.sleep(moments.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
            reported += [int(line) for line in writer.stdout]
        rows = read_stats(tmp_path)
        last = rows["step"].max()
        assert last in (reported[-1], reported[-1] + 1), "at most the step that was not reported yet"
        assert rows.height == 2000 * last, "each step from the first on, each with all its rows"
        written = last
