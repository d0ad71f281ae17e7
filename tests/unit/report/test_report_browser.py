"""The page in headless Chromium: it draws all its figures, asks nobody for anything, and can be used."""

import json

import numpy
import polars
import pytest
from browser import PROGRAM, Browser, Page
from report_runs import SIX, thousand, write_run, write_stats, write_words

from builder.report.write import write_report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium")

FIGURES = [
    "curve-loss", "curve-accuracy", "curve-learning-rate", "ratio", "map-update_ratio", "map-gradient_rms", "map-rms",
    "map-distance", "histogram", "measures", "outputs", "dead",
]  # fmt: skip
DRAWN = """[...document.querySelectorAll(".plot")].filter(plot => {
  const marks = [...plot.querySelectorAll(".heatmaplayer image, .scatterlayer .trace path")];
  return marks.some(mark => mark.getBoundingClientRect().width > 50 && mark.getBoundingClientRect().height > 1);
}).map(plot => plot.dataset.figure)"""
SHOWN = "[...document.querySelectorAll('#table-parameters tbody tr')].filter(row => !row.hidden)"
WAIT = "new Promise(resolve => setTimeout(resolve, 400))"
ENTER, TAB = ("Enter", 13), ("Tab", 9)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("six")))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("large"), thousand(), steps=200))


@pytest.fixture(scope="module")
def opened(browser, six):
    """A page for tests that leave its figures as they were."""
    return Page(browser, six)


@pytest.fixture(scope="module")
def phone(browser, six):
    return Page(browser, six, width=390, height=844)


def names_shown(page):
    return page.evaluate(SHOWN + ".map(row => row.cells[0].textContent)")


def labels(page, figure):
    find = f"document.querySelector('[data-figure=\"{figure}\"]').querySelectorAll('.ytick text')"
    return page.evaluate(f"[...{find}].map(text => text.textContent)")


def ranges(page, figure):
    find = f"document.querySelector('[data-figure=\"{figure}\"]')"
    return page.evaluate(f"[{find}.layout.xaxis.range, {find}.layout.yaxis.range]")


def said_of_one(page):
    """What the page says that it shows of one parameter."""
    return page.evaluate(
        "document.querySelector('[data-figure=measures]').parentNode.querySelector('figcaption').textContent"
    )


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_figure_is_drawn_without_a_complaint_or_a_request(browser, six, width, dark):
    page = Page(browser, six, width, dark=dark)
    assert page.evaluate(DRAWN) == FIGURES
    assert page.complaints == []
    assert page.requests == []
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing is wider than the page"


def test_thousand_parameters_over_two_hundred_steps_load_fast_and_weigh_little(browser, large):
    assert large.stat().st_size < 10_000_000
    page = Page(browser, large)
    assert page.busy_seconds < 3, "until every figure is drawn; all but a little of loading is the main thread's"
    assert page.evaluate(DRAWN) == FIGURES
    assert page.complaints == [] and page.requests == []
    assert len(names_shown(page)) == 1000


def test_rows_are_named_by_block_and_by_parameter_after_zooming_in(browser, large):
    page = Page(browser, large)
    named = labels(page, "map-rms")
    assert named[:2] == ["transformer.wte", "transformer.h.2"] and 10 < len(named) < 45
    zoom = "Plotly.relayout(document.querySelector('[data-figure=map-rms]'), {}).then(() => 0)"
    page.evaluate(zoom.format("{'yaxis.range[0]': 9.5, 'yaxis.range[1]': 1.5}"))
    page.evaluate(WAIT)
    assert labels(page, "map-rms")[:2] == ["transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias"]
    page.evaluate(zoom.format("{'yaxis.autorange': true}"))
    page.evaluate(WAIT)
    assert labels(page, "map-rms") == named


def test_mouse_on_a_heat_map_tells_name_and_value_and_a_click_chooses(browser, six):
    page = Page(browser, six)
    place = "document.querySelector('[data-figure=map-rms] .heatmaplayer image').getBoundingClientRect()"
    page.evaluate(f"scrollBy(0, {place}.top - 300)")
    x, y, wide, high = (page.evaluate(f"{place}.{side}") for side in ("x", "y", "width", "height"))
    at = {"x": x + wide - 1, "y": y + high * 5.5 / 6, "button": "left", "clickCount": 1}
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=at["x"], y=at["y"])
    page.evaluate(WAIT)
    assert page.evaluate("tip.hidden") is False
    assert page.evaluate("tip.textContent").startswith("head.bias · step 10,000 · 0.06")
    page.send("Input.dispatchMouseEvent", type="mousePressed", **at)
    page.send("Input.dispatchMouseEvent", type="mouseReleased", **at)
    page.evaluate(WAIT)
    assert page.evaluate("chosen.value") == "head.bias"


def test_search_leaves_the_rows_that_hold_all_words_and_says_how_many(browser, large):
    page = Page(browser, large)
    page.evaluate("document.querySelector('[data-search]').focus()")
    page.send("Input.insertText", text="H.7. bias")
    assert len(names_shown(page)) == 6
    assert all("h.7." in name and name.endswith("bias") for name in names_shown(page))
    assert page.evaluate("document.querySelector('[data-count]').textContent") == "6 of 1,000 rows"


def test_header_sorts_by_keyboard_both_ways_numbers_as_numbers(browser, six):
    page = Page(browser, six)
    header = "document.querySelectorAll('#table-parameters th[scope=col]')[{}]"
    page.evaluate(header.format(7) + ".querySelector('button').focus()")
    values = SHOWN + ".map(row => Number(row.cells[7].dataset.value))"
    page.press(*ENTER)
    up = page.evaluate(values)
    assert up == sorted(up) and page.evaluate(header.format(7) + ".ariaSort") == "ascending"
    page.press(*ENTER)
    assert page.evaluate(values) == up[::-1]
    assert page.evaluate(header.format(7) + ".ariaSort") == "descending"
    page.evaluate(header.format(0) + ".querySelector('button').focus()")
    page.press(*ENTER)
    assert names_shown(page) == sorted(SIX)
    assert page.evaluate(header.format(7) + ".ariaSort") == "none"


def test_empty_cells_stay_last_whichever_way_the_table_is_sorted(browser, tmp_path):
    write_run(tmp_path, steps=4)
    table = json.loads((tmp_path / "parameters.json").read_text())["parameters"]
    table.insert(0, {**table[0], "name": "alias", "tied_to": "fc1.weight"})
    (tmp_path / "parameters.json").write_text(json.dumps({"parameters": table}))
    page = Page(browser, write_report(tmp_path))
    for _ in range(2):
        page.evaluate("document.querySelectorAll('#table-parameters th button')[7].click()")
        assert names_shown(page)[-1] == "alias"


def test_name_in_the_table_shows_that_parameter(browser, six):
    page = Page(browser, six)
    assert said_of_one(page).startswith("fc1.weight at the end: ")
    page.evaluate("document.querySelector('[data-choose=\"head.bias\"]').focus()")
    page.press(*ENTER)
    page.evaluate(WAIT)
    assert said_of_one(page).startswith("head.bias at the end: weight rms ")
    assert page.evaluate("document.activeElement.id") == "chosen"


def test_tab_key_reaches_the_results_first(browser, six):
    page = Page(browser, six)
    page.press(*TAB)
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"


def test_theme_is_a_choice_that_reaches_the_figures(browser, six):
    page = Page(browser, six, dark=False)
    ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
    before = page.evaluate(ink)
    page.evaluate("theme.value = 'dark'; theme.dispatchEvent(new Event('change'))")
    page.evaluate("new Promise(resolve => setTimeout(resolve, 1000))")
    assert page.evaluate(ink) != before
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    page.evaluate("localStorage.clear()")


def test_log_scale_is_a_switch(browser, six):
    page = Page(browser, six)
    page.evaluate("document.querySelector('[data-log=curve-loss]').click()")
    page.evaluate(WAIT)
    assert page.evaluate("document.querySelector('[data-figure=curve-loss]').layout.yaxis.type") == "log"


def test_figures_are_as_wide_as_the_page_again_after_printing(opened):
    widths = "[...document.querySelectorAll('.plot')].map(plot => [plot.clientWidth, plot.layout.width])"
    before = opened.evaluate(widths)
    opened.send("Page.printToPDF")
    assert opened.evaluate(widths) == before
    assert all(room == wide > 600 for room, wide in before)


def test_figures_out_of_view_wait_for_idle_moments_and_are_all_there_on_paper(opened):
    opened.send("Page.addScriptToEvaluateOnNewDocument", source="window.requestIdleCallback = () => {}")
    opened.send("Page.reload")
    opened.wait("performance.getEntriesByName('figures in view').length")
    assert opened.evaluate(DRAWN) == FIGURES[:2]
    opened.send("Page.printToPDF")
    assert opened.evaluate(DRAWN) == FIGURES


@pytest.mark.parametrize("figure", ["map-rms", "histogram", "measures", "ratio"])
def test_steps_are_written_in_full(opened, figure):
    find = f"document.querySelector('[data-figure=\"{figure}\"]').querySelectorAll('.xtick text')"
    assert {"2,000", "10,000"} <= set(opened.evaluate(f"[...{find}].map(text => text.textContent)"))


def test_finger_scrolls_the_page_and_leaves_figures_as_they_are(phone):
    find = "document.querySelector('[data-figure=map-rms]')"
    phone.evaluate(find + ".scrollIntoView({block: 'center', behavior: 'instant'})")
    before, top = ranges(phone, "map-rms"), phone.evaluate("scrollY")
    for across, down in ((-12, -2), (1, -10)):
        phone.touch(200, 422, across, down)
        phone.evaluate(WAIT)
        assert ranges(phone, "map-rms") == before
    assert 60 < phone.evaluate("scrollY") - top < 120, "it did not jump to the parameter under the finger"


def test_zoom_out_is_offered_after_zooming_and_can_be_tapped(phone):
    find = "document.querySelector('[data-figure=curve-loss]')"
    before = ranges(phone, "curve-loss")
    button = find + ".parentNode.querySelector('.back')"
    assert phone.evaluate(button + ".checkVisibility()") is False
    phone.evaluate(f"Plotly.relayout({find}, {{'xaxis.range': [100, 200], 'yaxis.range': [1, 2]}}).then(() => 0)")
    assert phone.evaluate(button + ".checkVisibility()") is True
    phone.evaluate(button + ".scrollIntoView({block: 'center', behavior: 'instant'})")
    x, y = (phone.evaluate(f"{button}.getBoundingClientRect().{side} + 5") for side in ("x", "y"))
    phone.touch(x, y)
    phone.evaluate(WAIT)
    assert ranges(phone, "curve-loss") == before
    assert phone.evaluate(button + ".checkVisibility()") is False


def test_without_a_script_names_are_text_and_the_notice_stands_in_line(browser, six):
    page = Page(browser, six)
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    page.send("Page.reload")
    page.wait("document.querySelector('noscript p') && document.querySelector('footer')")
    colour = "getComputedStyle(document.querySelector('{}')).color"
    assert page.evaluate(colour.format("table button.name")) == page.evaluate(colour.format("body"))
    left = (
        "(({{x}}, {{paddingLeft}}) => x + parseFloat(paddingLeft))({0}.getBoundingClientRect(), getComputedStyle({0}))"
    )
    notice, results = (f"document.querySelector('{name}')" for name in ("noscript p", "main"))
    assert page.evaluate(left.format(notice)) == page.evaluate(left.format(results))


def test_steps_unevenly_apart_have_columns_of_one_width(browser, tmp_path):
    rows = {"step": [*range(1, 41), 100_000], "epoch": [0] * 41, "name": ["w"] * 41, "rms": [1e9] * 40 + [2e9]}
    write_words(tmp_path, ("w",), numpy.arange(1, 21))
    write_stats(tmp_path, "parameters", polars.DataFrame(rows))
    page = Page(browser, write_report(tmp_path))
    at = "document.querySelector('[data-figure=map-rms]').data[0].x"
    assert page.evaluate(f"[{at}.length, {at}[0], {at}[40]]") == [41, "1", "100,000"]
    assert page.evaluate("document.querySelector('[data-figure=map-rms]').layout.xaxis.type") == "category"
    assert "1e9" in labels(page, "measures"), "as words and colour bars have it"
    assert page.complaints == []


def test_text_from_files_runs_nothing(browser, tmp_path):
    hostile = "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'><a href='x'>b</a>"
    write_run(tmp_path, (hostile, f"{hostile}.2.w", "fc.weight"), steps=20)
    (tmp_path / "model.py").write_text(hostile)
    page = Page(browser, write_report(tmp_path))
    assert page.evaluate("typeof window.broken") == "undefined"
    assert page.complaints == [] and page.requests == []
    assert page.evaluate(DRAWN) == FIGURES
    assert any("<" in label for label in labels(page, "map-rms")), "a label shows what the name is"
    assert page.evaluate("document.querySelectorAll('.plot a').length") == 0
    assert page.evaluate("document.getElementById('chosen').value") in (hostile, f"{hostile}.2.w", "fc.weight")


def partial(directory, kind):
    """A run directory that lacks something."""
    if kind == "config alone":
        (directory / "config.yaml").write_text("model: {layers: {}}\n")
    elif kind == "no statistics":
        write_words(directory, SIX, numpy.arange(1, 21))
    elif kind == "one logged step":
        write_run(directory, steps=1)
    else:
        write_words(directory, SIX, numpy.arange(1, 21))
        bad = {
            "step": [1, 2, 2],
            "epoch": [0] * 3,
            "name": ["fc1.weight", "fc1.weight", "odd"],
            "rms": [1.0, float("nan"), None],
        }
        write_stats(directory, "parameters", polars.DataFrame(bad).with_columns(update_ratio=polars.col("rms") / 0))
    return directory


@pytest.mark.parametrize("kind", ["config alone", "no statistics", "one logged step", "NaN and inf"])
def test_partial_run_opens_without_a_complaint(browser, tmp_path, kind):
    page = Page(browser, write_report(partial(tmp_path, kind)))
    assert page.complaints == []
    assert page.evaluate("document.querySelectorAll('.plot:not([data-drawn])').length") == 0


def test_sweep_opens_and_sorts(browser, tmp_path):
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        write_words(tmp_path / str(number), SIX, numpy.arange(1, 21) * 50)
    page = Page(browser, write_report(tmp_path))
    assert page.complaints == [] and page.requests == []
    assert len(page.evaluate(DRAWN)) == 4
    page.evaluate("for (const _ of [1, 2]) document.querySelector('#table-runs th button').click()")
    assert page.evaluate("[...document.querySelectorAll('#table-runs tbody th')].map(cell => cell.textContent)") == [
        "2",
        "1",
        "0",
    ]
