"""The page: its text is escaped, its figures are ones that plotly knows, and commands write it where they say."""

import base64
import gzip
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy
import plotly
import plotly.graph_objects
import polars
import pytest
from report_runs import SIX, payload, write_run, write_words

from builder.cli import main
from builder.errors import BuilderError
from builder.report.assets import PLOTLY
from builder.report.curves import MOST_POINTS, curves
from builder.report.figures import LINES, brief, log_range, log_ticks
from builder.report.history import History, Matrix
from builder.report.maps import heat_maps, ratio_band, sent
from builder.report.markup import Html, join, tag
from builder.report.page import run_page
from builder.report.write import write_report

HOSTILE = '</script><script>window.broken=1</script><img src=x onerror="window.broken=1">&lt;b&gt;'
ASSETS = Path(__file__).parents[3] / "builder" / "report" / "assets"


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the headings' texts."""

    def __init__(self, page):
        super().__init__()
        self.found, self.headings, self._heading = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._heading = tag in ("h1", "h2", "h3")

    def handle_data(self, data):
        if self._heading:
            self.headings.append(data)
            self._heading = False

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def history_of(values, steps=None, measure="rms"):
    values = numpy.asarray(values, dtype=float)
    steps = numpy.arange(1, values.shape[1] + 1) if steps is None else steps
    return History(tuple(f"p.{i}.w" for i in range(values.shape[0])), {measure: Matrix(steps, values, 1)})


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", steps=20)


@pytest.fixture
def hostile(tmp_path):
    """A run in which every text that comes from a file tries to break out."""
    directory = write_run(tmp_path / "run", names=(HOSTILE, f"{HOSTILE}.1.weight", "fc.weight"), steps=5)
    result = {
        "status": HOSTILE,
        "error": HOSTILE,
        "metrics": {HOSTILE: 1.0},
        "references": {HOSTILE: HOSTILE},
        "overrides": [HOSTILE],
    }
    (directory / "result.json").write_text(json.dumps(result))
    verdict = {
        "kind": HOSTILE,
        "severity": HOSTILE,
        "text": HOSTILE,
        "names": [HOSTILE] * 9,
        "step": 1,
        "numbers": {HOSTILE: HOSTILE},
    }
    (directory / "verdicts.json").write_text(json.dumps([verdict]))
    quoted = json.dumps(HOSTILE)
    (directory / "config.yaml").write_text(f"model: {{layers: {{a: {quoted}}}}}\ninit: {quoted}\n")
    (directory / "model.py").write_text(HOSTILE)
    header = HOSTILE.replace('"', '""')
    (directory / "metrics.csv").write_text(f'step,"{header}"\n1,2.0\n2,1.0\n')
    return directory


def test_page_has_what_matters_first(run):
    headings = Elements(run_page(run)).headings
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS


SECTIONS = [
    "What matters", "Final metrics", "Verdicts", "Parameters to look at first", "Curves", "Parameters over time",
    "One parameter", "Layer outputs by depth", "Parameter table", "Files",
]  # fmt: skip


def test_page_can_be_used_by_keyboard_and_screen_reader(run):
    page = Elements(run_page(run))
    names = [name for name, _ in page.found]
    assert all(names.count(landmark) == 1 for landmark in ("header", "nav", "main", "footer", "h1"))
    assert page.named("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id stands for one element"
    for plot in (a for a in page.named("div") if a.get("class") == "plot"):
        assert plot["role"] == "img"
        assert set(plot["aria-labelledby"].split()) <= set(ids), "a figure has its words"
    assert all(section["aria-labelledby"] in ids for section in page.named("section"))
    sortable = [th for th in page.named("th") if th.get("scope") == "col"]
    assert len(sortable) == 10 and all(th["aria-sort"] == "none" for th in sortable)
    assert [th for th in page.named("th") if th.get("scope") == "row"], "a row has a header"
    assert ("caption", {"class": "unseen"}) in page.found
    assert names.count("select") + names.count("input") <= names.count("label")


def test_text_from_files_stays_text(hostile):
    page = write_report(hostile).read_text()
    elements = Elements(page)
    assert not elements.named("img")
    assert len(elements.named("script")) == 3
    assert not [attributes for _, attributes in elements.found if "onerror" in attributes]
    labels = [
        trace["name"] for drawing in payload(page)["figures"].values() for trace in drawing["data"] if "name" in trace
    ]
    assert labels and not [label for label in labels if "<" in label], "plotly reads HTML in labels"


def test_only_the_page_own_script_may_run(run):
    page = run_page(run)
    (policy,) = [meta["content"] for meta in Elements(page).named("meta") if "http-equiv" in meta]
    nonce = re.search(r"script-src 'nonce-([0-9a-f]{32})'$", policy)[1]
    assert policy.startswith("default-src 'none'; ")
    assert f'nonce="{nonce}">"use strict"' in page


def test_page_is_the_same_each_time(run):
    assert run_page(run) == run_page(run)


def test_every_figure_is_one_that_plotly_knows(run):
    found = payload(run_page(run))["figures"]
    assert list(found) == [
        "curve-loss", "curve-accuracy", "curve-learning-rate", "ratio", "map-update_ratio", "map-gradient_rms",
        "map-rms", "map-distance", "outputs", "dead",
    ]  # fmt: skip
    for drawing in found.values():
        plotly.graph_objects.Figure(drawing["data"], drawing["layout"])


def luminance(colour):
    """Relative luminance as WCAG 2 defines it, of `#rrggbb`."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(theme):
    style = (ASSETS / "report.css").read_text()
    colours = {name: pair[theme] for name, *pair in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", style)}
    for text in ("text", "quiet", "link", "error", "warning", "good"):
        for ground in ("page", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert all(contrast(line, colours["page"]) >= 3 for line in LINES)


def test_plotly_js_is_the_version_that_its_file_is_named_after():
    source = gzip.decompress((ASSETS / PLOTLY).read_bytes()).decode()
    version = re.search(r"-([\d.]+)\.min", PLOTLY)[1]
    assert f"plotly.js (cartesian - minified) v{version}" in source[:200]
    assert "MIT License" in (ASSETS / "plotly-LICENSE.txt").read_text()


def test_matrix_is_sent_with_three_digits_of_each_value():
    values = [1e-3, 1.05e-2, 9.994, 9.996, 7.974, 1e-44, 1e-300, 1e300, 0.0, float("nan"), float("inf")]
    codes = numpy.frombuffer(base64.b64decode(sent(history_of([values]).matrices["rms"])["codes"]), "<u2")
    read = [(code % 900 + 100) / 100 * 10.0 ** (code // 900 - 44) for code in codes[:8].tolist()]
    assert read == pytest.approx([1e-3, 1.05e-2, 9.99, 10.0, 7.97, 1e-44, 1e-44, 9.99e27], rel=1e-9)
    assert codes[8:].tolist() == [65_534, 65_533, 65_535], "zero, nothing measured, NaN or inf"


def test_non_finite_values_get_a_layer_of_their_own():
    (calm,), (bad,) = heat_maps(history_of([[1.0, 2.0]])), heat_maps(history_of([[1.0, float("inf")]]))
    assert len(calm.data) == 1 and len(bad.data) == 2
    assert bad.summary.endswith("Checked black and white: NaN or inf, in 1 of 1 parameters.")


def test_few_parameters_have_a_line_each_and_many_their_spread():
    few = ratio_band(history_of(numpy.full((6, 3), 1e-3), measure="update_ratio"))
    assert [trace["name"] for trace in few.data] == [f"p.{i}.w" for i in range(6)]
    many = ratio_band(history_of(numpy.full((9, 3), 1e-3), measure="update_ratio"))
    assert [trace["name"] for trace in many.data] == ["highest", "5 %", "5 % to 95 %", "median", "lowest"]
    assert many.summary.endswith("the median of 9 of 9 parameters lies in the band around 1e-3.")
    assert ratio_band(history_of([[1.0]])) is None


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_ratios_that_are_all_zero_or_missing_are_drawn_in_no_band(value):
    assert ratio_band(history_of(numpy.full((9, 2), value), measure="update_ratio")) is None


def test_zeros_are_counted_in_words_and_invent_no_scale():
    some = history_of([[0.0, 0.0], [1e-3, 1e-3]], measure="update_ratio")
    assert "the median of 1 of 2 parameters" in ratio_band(some).summary
    assert "1 have some, 1 a median of 0" in ratio_band(some).summary
    (zeros,) = heat_maps(history_of([[0.0, 0.0]]))
    assert "Exact zeros, in 1 of 1 parameters" in zeros.summary
    assert "colorbar" not in zeros.data[0]


def test_long_curve_is_thinned_by_means():
    steps = numpy.arange(10_000)
    (drawing,) = curves(polars.DataFrame({"step": steps * 1.0, "train/loss": numpy.ones(10_000)}))
    values = numpy.frombuffer(base64.b64decode(drawing.data[0]["y"]["bdata"]), "<f4")
    assert values.size == MOST_POINTS and (values == 1).all()


def test_curve_says_where_it_is_not_finite():
    (drawing,) = curves(polars.DataFrame({"step": [1.0, 2.0, 3.0], "loss": [2.0, float("nan"), 1.0]}))
    assert (
        drawing.summary
        == "loss from 2 to 1, lowest 1 at step 3, highest 2 at step 1, not finite at 1 of 3 points, first at step 2."
    )


def test_metrics_that_were_never_logged_have_no_curve():
    assert (
        curves(
            polars.DataFrame({"step": [1.0], "loss": [None]}, schema={"step": polars.Float64, "loss": polars.Float64})
        )
        == []
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        pytest.param(-6, 0, "1e-6 1e-5 1e-4 1e-3 0.01 0.1 1", id="decades"),
        pytest.param(-30, 5, "1e-30 1e-24 1e-18 1e-12 1e-6 1", id="many decades"),
        pytest.param(-1.5, -0.8, "0.05 0.1", id="less than a decade"),
        pytest.param(0.02, 0.1, "", id="no round number"),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert " ".join(brief(10.0**tick, digits=1) for tick in log_ticks(low, high, most=7)) == expected


def test_range_of_values_that_are_all_one_is_not_empty():
    low, high = log_range(numpy.array([0.5, 0.5]))
    assert high - low == pytest.approx(0.1)
    assert log_range(numpy.array([])) == (-3.0, 0.0)


def test_html_is_escaped_unless_it_is_html():
    assert tag("p", "<", Html("<b>"), title='"', hidden=True, lang=None) == '<p title="&quot;" hidden>&lt;<b></p>'
    assert tag("meta", name="a") == '<meta name="a">'
    assert join("a&b", Html("&")) == "a&amp;b&"


def test_command_writes_the_report_and_prints_where(run, capsys, tmp_path):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert main(["report", str(run), "--output", str(tmp_path / "new" / "r.html")]) == 0
    assert (tmp_path / "new" / "r.html").read_text() == (run / "report.html").read_text()
    assert not list(run.glob(".report*")), "no unfinished file is left"


def test_report_that_cannot_be_put_in_its_place_leaves_the_old_one(run, tmp_path, monkeypatch):
    def fail(part, file):
        raise OSError("disk full")

    (tmp_path / "r.html").write_text("old")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(BuilderError, match="cannot be written: disk full\n      give another place by --output FILE"):
        write_report(run, tmp_path / "r.html")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "r.html").read_text() == "old"


def test_directory_that_is_none_is_refused(capsys, tmp_path):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: is not a directory\n      name the directory of a run or of a sweep" in capsys.readouterr().err


def test_directory_without_a_run_is_refused(capsys, tmp_path):
    assert main(["report", str(tmp_path)]) == 2
    assert "no run in it" in capsys.readouterr().err


def test_report_imports_neither_torch_nor_lightning_nor_plotly():
    barred = ["torch", "pytorch_lightning", "plotly", "hydra"]
    check = f"import sys, builder.report.write; assert not set({barred}) & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0


def test_sweep_has_its_runs_in_one_table_and_their_curves_over_one_another(tmp_path, capsys):
    for number in range(3):
        directory = tmp_path / str(number)
        directory.mkdir()
        write_words(directory, SIX, numpy.arange(1, 21) * 50)
        result = {
            "overrides": [f"init={HOSTILE}", f"seed={number}"],
            "status": "ok",
            "error": None,
            "seconds": 2.0,
            "metrics": {"test/accuracy": 0.9 + number / 100},
        }
        (directory / "result.json").write_text(json.dumps(result))
    (tmp_path / "2" / "result.json").write_text(
        json.dumps({**result, "status": "failed", "error": f"no {HOSTILE}\nmore", "metrics": {}})
    )
    (tmp_path / "0" / "report.html").touch()
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "3 runs" in page and "1 failed" in page
    assert "from 0.9 (run 0: seed=0) to 0.91 (run 1: seed=1)" in page
    elements = Elements(page)
    assert [a["href"] for a in elements.named("a")] == ["#main", "./0/report.html"]
    assert not elements.named("img") and len(elements.named("script")) == 3
    found = payload(page)["figures"]
    assert [len(drawing["data"]) for drawing in found.values()] == [3, 3, 3, 3]
    for drawing in found.values():
        plotly.graph_objects.Figure(drawing["data"], drawing["layout"])
