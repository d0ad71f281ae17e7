"""What stands at the top of a page is true: verdicts, parameters to look at, files that cannot be read or written."""

import json
import re

import polars
import pytest
from report_runs import SIX, write_run

from builder.cli import main
from builder.report.curves import curves
from builder.report.page import run_page, verdict_list
from builder.report.worst import Summary, all_clear, summaries, worst
from builder.stats.verdicts import ALL_CLEAR, Verdict


def verdict(names, numbers, step=None):
    return verdict_list([Verdict("dead", "warning", tuple(names), step, "So it is.", numbers)])


def outside_details(page):
    return re.sub(r"<details>.*?</details>", "", page)


def test_number_of_a_name_stands_beside_it_and_the_name_is_as_it_is():
    page = verdict(["h.0.c_fc.weight"], {"h.0.c_fc.weight": 0.93}, step=7)
    assert "<span><code>h.0.c_fc.weight</code> 0.93</span><span>step: 7</span>" in page


def test_numbers_without_a_name_keep_their_key():
    assert "<span>from_layer: 2</span>" in verdict(["a"], {"from_layer": 2.0})


def test_six_names_and_six_numbers_are_shown_and_the_rest_is_folded():
    names = [f"h.{i}.c_fc.weight" for i in range(9)]
    page = verdict(names, {name: 0.5 for name in names})
    assert outside_details(page).count("c_fc.weight") == 6
    assert "<summary>3 more</summary>" in page and all(f"<code>{name}</code> 0.5" in page for name in names)
    page = verdict([], {f"key {i}": i for i in range(8)})
    assert outside_details(page).count("key") == 6 and "<summary>2 more</summary>" in page


def test_page_without_a_verdict_says_which_bounds_were_kept():
    page = verdict_list([])
    assert ALL_CLEAR in page and "by more than 0.1 or less than 1e-06 of their size" in page


def test_all_clear_says_of_what_it_is_true():
    late_in_a_decay = Summary("a", update_ratio=2e-5, median_ratio=2e-3)
    assert worst([late_in_a_decay]) == []
    assert all_clear([late_in_a_decay]).endswith("(1) the median update ratio over the run is 1e-4 to 0.01.")
    assert all_clear([Summary("a")]) == "None stands out: all are finite; no update ratio was measured."


def test_parameter_that_no_gradient_reached_is_told_from_one_that_had_one():
    rows = {"step": [1, 1], "label": ["apart", "still"], "gradient_rms": [None, 2e-3], "update_rms": [0.0, 0.0]}
    found = {entry.name: entry.why for entry in worst(list(summaries(polars.DataFrame(rows)).values()))}
    assert found == {
        "apart": "no logged step moved it, and none had a gradient of it: the loss may not reach it",
        "still": "no logged step moved it, though it had a gradient, of rms 0.002 at last",
    }


def test_list_of_parameters_says_what_it_is_and_how_many_it_leaves_out(tmp_path):
    run = write_run(tmp_path, names=tuple(f"fc{i}.weight" for i in range(14)), steps=4)
    for file in (run / "stats" / "parameters").iterdir():
        polars.read_parquet(file).with_columns(update_ratio=polars.lit(0.05)).write_parquet(file)
    page = run_page(run)
    assert "outside the band 1e-4 to 0.01 in which most weights train well" in page
    assert page.count("updates are large for its size: median ratio 0.05 over the run") == 10
    assert '<p class="quiet">and 4 more</p>' in page


def test_file_of_statistics_that_is_broken_in_the_middle_is_left_out(tmp_path):
    run = write_run(tmp_path, steps=20)
    file = run / "stats" / "parameters" / "000000.parquet"
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    file.write_bytes(content)
    page = run_page(run)
    assert "Not in this report (1)" in page and "parameters/000000.parquet cannot be read: " in page
    assert 'data-figure="map-rms"' in page, "the other file is shown"


@pytest.mark.parametrize("place", ["folder", "file/report.html"], ids=["a directory", "below a file"])
def test_place_that_cannot_be_written_is_refused_with_a_way_out(tmp_path, capsys, place):
    run = write_run(tmp_path / "run", steps=2)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert main(["report", str(run), "--output", str(tmp_path / place)]) == 2
    said = capsys.readouterr().err
    assert f"{place}: cannot be written: " in said and "give another place by --output FILE" in said


def test_value_of_a_test_is_not_said_to_be_of_its_step():
    rows = {"step": [1.0, 2.0, 3.0], "val/loss": [2.0, 1.0, 1.5], "test/loss": [None, None, 1.1]}
    (drawing,) = curves(polars.DataFrame(rows))
    words = "test/loss 1.1, of the weights that were tested, which need not be those of step 3."
    assert drawing.summary.endswith(words)


def test_each_switch_is_named_after_its_figure(tmp_path):
    run = write_run(tmp_path, names=SIX, steps=10)
    names = re.findall(r'aria-label="(log scale of [^"]+)"', run_page(run))
    assert names == ["log scale of loss", "log scale of accuracy", "log scale of learning rate"]


def test_verdicts_of_a_file_are_shown_with_their_numbers(tmp_path):
    run = write_run(tmp_path, steps=2)
    entry = {"kind": "dead", "severity": "warning", "names": ["a_b"], "step": 3, "text": "x", "numbers": {"a_b": 0.5}}
    (run / "verdicts.json").write_text(json.dumps([entry]))
    assert "<code>a_b</code> 0.5" in run_page(run)
