"""The page of a probe: its words and numbers, and figures that plotly knows."""

import base64
import dataclasses

import numpy
import plotly.graph_objects
import pytest
from report_runs import payload

from builder.build import prove
from builder.cli import main
from builder.probe import probe_model
from builder.report.probe import probe_page

MODEL = {
    "inputs": {"x": {"shape": ["batch", 8]}},
    "layers": {
        "low": {"kind": "Linear", "in_features": 8, "out_features": 6},
        "gate": {"kind": "Sigmoid"},
        "top": {"kind": "Linear", "in_features": 6, "out_features": 2},
    },
    "forward": "top(gate(low(x)).relu())",
}


@pytest.fixture(scope="module")
def found():
    return probe_model(prove(MODEL))


def figures(page):
    return payload(page)["figures"]


def across(trace):
    return numpy.frombuffer(base64.b64decode(trace["x"]["bdata"]), trace["x"]["dtype"])


def test_page_says_what_the_probe_found(found):
    page = probe_page(found, "<model>")
    assert "Probe of &lt;model&gt;" in page and "Nothing was found beyond the bounds" in page
    for layer in found.layers:
        assert layer.layer in page
    words = f"The rms of the output is {found.layers[0].rms:.3g} in low and {found.layers[-1].rms:.3g} in top."
    assert words in page
    assert "No layer has dead units. No layer has saturated units." in page


def test_page_says_what_was_not_judged_and_that_zeros_are_not_all_well(found):
    assert "Not judged: outputs of the layers and gradients of the outputs by depth" in probe_page(found, "m")
    page = probe_page(dataclasses.replace(found, is_healthy=False), "m")
    assert "All numbers are finite." in page and "Nothing was found beyond the bounds" not in page


def test_figures_hold_a_point_for_each_layer_and_are_ones_that_plotly_knows(found):
    drawn = figures(probe_page(found, "m"))
    assert list(drawn) == ["outputs", "gradients", "dead"]
    for drawing in drawn.values():
        plotly.graph_objects.Figure(drawing["data"], drawing["layout"])
        assert drawing["rows"] == ["low", "gate", "relu()", "top"]
    assert across(drawn["outputs"]["data"][0]) == pytest.approx([layer.rms for layer in found.layers], rel=1e-3)
    assert [trace["name"] for trace in drawn["dead"]["data"]] == ["dead", "saturated"]


def test_verdicts_and_numbers_that_are_none_are_shown():
    found = probe_model(prove({**MODEL, "init": {"huge": {"policy": "constant", "val": 3e38, "min_ndim": 2}}}))
    page = probe_page(found, "m")
    assert "NaN or infinite" in page
    assert not numpy.isinf(across(figures(page)["outputs"]["data"][0])).any(), "plotly draws no line to infinity"


def test_a_model_without_layers_has_a_page(found):
    page = probe_page(dataclasses.replace(found, layers=()), "m")
    assert "No layer gave out numbers." in page and figures(page) == {}


def test_one_layer_is_not_compared_with_itself(found):
    page = probe_page(dataclasses.replace(found, layers=found.layers[:1]), "m")
    assert f"The rms of the output is {found.layers[0].rms:.3g} in low.<" in page


def test_command_writes_the_page_beside_what_it_prints(tmp_path, capsys, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    file = tmp_path / "new" / "probe.html"
    assert main(["probe", "--html", str(file), "conf/model/digits_mlp.yaml"]) == 0
    assert "healthy: " in capsys.readouterr().out
    assert "Probe of conf/model/digits_mlp.yaml" in file.read_text()


def test_a_place_that_cannot_be_written_is_refused(tmp_path, capsys, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    (tmp_path / "file").touch()
    assert main(["probe", "--html", str(tmp_path / "file" / "probe.html"), "conf/model/digits_mlp.yaml"]) == 2
    assert "probe.html: cannot be written" in capsys.readouterr().err
