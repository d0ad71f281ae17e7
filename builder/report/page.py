"""The page of a run: what matters first, then figures, then everything to look up.

Tables and words are HTML, readable without a script; figures carry a caption that says in words what they show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars

from builder.report.assets import document
from builder.report.curves import curves, logged
from builder.report.depth import outputs_by_depth
from builder.report.figures import Drawing
from builder.report.history import LAYER_MEASURES, MEASURES, History, block, histograms, history, taken
from builder.report.maps import heat_maps, ratio_band, sent, sent_histograms
from builder.report.markup import Html, join, tag
from builder.report.read import RunFiles, number, read_run
from builder.report.tables import Column, sortable
from builder.report.words import count_of, duration, numel_of, shape_of, state_of, value_text
from builder.report.worst import BAND, SUMMARISED, Summary, Worst, all_clear, summaries, worst
from builder.stats.verdicts import ALL_CLEAR, Verdict

REPORT = "report.html"
_SHOWN = 6  # names of a verdict, and numbers
_WORST_SHOWN = 10
_UNWATCHED = History((), {})
_NO_STATISTICS = "No statistics of parameters were taken."


def run_page(directory: Path) -> str:
    """The report of a run as HTML."""
    try:
        return _run_page(read_run(directory))
    except (OSError, polars.exceptions.PolarsError):  # a file whose footer is sound and whose middle is not
        return _run_page(read_run(directory, thorough=True))


def _run_page(run: RunFiles) -> str:
    order = [row["name"] for row in run.table]
    watched, summarised = _UNWATCHED, dict[str, Summary]()
    if run.parameters is not None:
        rows = taken(run.parameters, tuple(dict.fromkeys((*MEASURES, *SUMMARISED))))
        watched, summarised = history(rows, order), summaries(rows)
    worse = worst(list(summarised.values()))
    sections = [
        _overview(run, worse, summarised),
        _curves(run),
        _maps(watched, run.cost),
        _parameter(watched, worse),
        _outputs(run),
        _table(run, summarised, watched.names),
        _files(run),
    ]
    return page(run.name, _header(run), sections, watched, run.parameters)


class Section:
    """A part of the page under a heading, with the figures that it has."""

    def __init__(self, key: str, title: str, *content: str, drawings: Sequence[Drawing] = ()) -> None:
        self.drawings = list(drawings)
        heading = tag("h2", title, id=f"{key}-title")
        self.html = tag("section", heading, *content, id=key, data_title=title, aria_labelledby=f"{key}-title")


def page(
    name: str,
    header: Html,
    sections: Sequence[Section],
    watched: History = _UNWATCHED,
    parameters: polars.LazyFrame | None = None,
) -> str:
    """A whole page of some sections, with the history of its parameters, where it has any, for the browser."""
    drawings = [drawing for section in sections for drawing in section.drawings]
    figures = {drawing.key: _figure_sent(drawing) for drawing in drawings}
    payload = {"figures": figures, "parameters": _parameters_sent(watched, parameters)}
    return document(f"{name} · builder report", _frame(name, header, sections), payload)


def _frame(name: str, header: Html, sections: Sequence[Section]) -> Html:
    """What is around the sections: a link past the head, the theme, and the way to each section."""
    themes = [tag("option", theme, value=theme) for theme in ("auto", "light", "dark")]
    theme = tag("label", "Theme ", tag("select", *themes, id="theme", autocomplete="off"), class_="theme")
    return join(
        tag("a", "Skip to the results", class_="skip", href="#main"),
        tag(
            "header",
            tag("div", tag("h1", name), theme, class_="title"),
            header,
            tag("nav", aria_label="Sections", id="nav"),
        ),
        tag("noscript", tag("p", "Figures, sorting and searching need JavaScript; all tables are here without it.")),
        tag("main", *(section.html for section in sections), id="main"),
        tag("footer", "Made by builder. This file loads nothing from anywhere."),
        tag("div", id="tip", hidden=True, aria_hidden="true"),
    )


def _figure_sent(drawing: Drawing) -> dict[str, Any]:
    return {"data": drawing.data, "layout": drawing.layout, "rows": list(drawing.rows), "matrix": drawing.matrix}


def _parameters_sent(watched: History, parameters: polars.LazyFrame | None) -> dict[str, Any]:
    found = histograms(parameters, watched.names) if parameters is not None and watched.names else None
    return {
        "names": list(watched.names),
        "blocks": [block(name) for name in watched.names],
        "matrices": {measure: sent(matrix) for measure, matrix in watched.matrices.items()},
        "histograms": None if found is None else sent_histograms(found),
    }


def quiet(words: str) -> Html:
    """A paragraph that stands back."""
    return tag("p", words, class_="quiet")


def figure(drawing: Drawing, controls: str = "") -> Html:
    """A figure's place in the page, with its heading, its words and what steers it."""
    key = f"figure-{drawing.key}"
    return tag(
        "figure",
        tag("div", tag("h3", drawing.title, id=f"{key}-title"), controls, class_="figure-head"),
        tag("div", class_="plot", data_figure=drawing.key, role="img", aria_labelledby=f"{key}-title {key}-words"),
        tag("figcaption", drawing.summary, id=f"{key}-words"),
    )


# ---- sections ------------------------------------------------------------------------------------------------------


def _header(run: RunFiles) -> Html:
    result = run.result or {}
    status = str(result.get("status") or "not ended")
    facts = [tag("span", {"ok": "finished"}.get(status, status), class_=f"badge {'ok' if status == 'ok' else 'bad'}")]
    seconds = number(result.get("seconds"))
    if seconds is not None:
        facts.append(tag("span", duration(seconds)))
    if run.table:
        values = sum(int(number(row.get("numel")) or 0) for row in run.table if row.get("kind") != "buffer")
        facts.append(tag("span", f"{values:,} parameters"))
    overrides = result.get("overrides")
    if isinstance(overrides, list) and overrides:
        facts.append(tag("span", *(tag("code", str(each)) for each in overrides), class_="overrides"))
    return tag("p", *facts, class_="facts")


def _overview(run: RunFiles, worse: Sequence[Worst], summarised: Mapping[str, Summary]) -> Section:
    content = [_error(run), _cards(run), verdict_list(run.verdicts), _worst_table(worse, summarised)]
    if run.notes:
        notes = tag("ul", *(tag("li", note) for note in run.notes))
        content.append(
            tag("details", tag("summary", f"Not in this report ({len(run.notes)})"), notes, class_="notes", open=True)
        )
    return Section("overview", "What matters", *content)


def _error(run: RunFiles) -> Html:
    error = (run.result or {}).get("error")
    return tag("pre", str(error), class_="error", tabindex=0) if error else Html("")


def _cards(run: RunFiles) -> Html:
    result = run.result or {}
    metrics, compared = _mapping(result, "metrics"), _mapping(result, "references")
    title = "Final metrics"
    if not metrics and run.metrics is not None:
        title = "Last logged metrics"
        last = {name: run.metrics[name].drop_nulls() for name in logged(run.metrics)}
        metrics = {name: values[-1] for name, values in last.items() if len(values)}
    if not metrics:
        return quiet("No metric was written.")
    cards = [tag("div", tag("dt", name), tag("dd", value_text(value))) for name, value in _tests_first(metrics)]
    cards += [
        tag("div", tag("dt", "for comparison: ", name), tag("dd", value_text(value)), class_="reference")
        for name, value in compared.items()
    ]
    return join(tag("h3", title), tag("dl", *cards, class_="cards"))


def _tests_first(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    parts = ("test/", "val/", "train/")
    return sorted(
        metrics.items(), key=lambda item: next((i for i, part in enumerate(parts) if item[0].startswith(part)), 3)
    )


def verdict_list(verdicts: Sequence[Verdict] | None) -> Html:
    """What the numbers say, each with the numbers behind it; None: nobody has looked."""
    heading = tag("h3", "Verdicts")
    if verdicts is None:
        return join(heading, quiet("This run was not judged."))
    if not verdicts:
        return join(heading, tag("p", f"✓ {ALL_CLEAR}", class_="healthy"))
    return join(heading, tag("ul", *map(_verdict, verdicts), class_="verdicts"))


def _verdict(verdict: Verdict) -> Html:
    sign = {"error": "✕", "warning": "▲", "info": "ℹ"}[verdict.severity]
    facts = {} if verdict.step is None else {"step": verdict.step}
    facts |= {key: value for key, value in verdict.numbers.items() if key not in verdict.names}
    names = [_named(name, verdict.numbers) for name in verdict.names]
    numbers = [tag("span", f"{key}: {value_text(value)}") for key, value in facts.items()]
    rest = [*names[_SHOWN:], *numbers[_SHOWN:]]
    more = [tag("details", tag("summary", f"{len(rest):,} more"), *(join(each, " ") for each in rest))] if rest else []
    return tag(
        "li",
        tag("p", tag("strong", f"{sign} {verdict.severity}"), " ", tag("span", verdict.text)),
        tag("div", *names[:_SHOWN], *numbers[:_SHOWN], *more, class_="behind"),
        class_=verdict.severity,
    )


def _named(name: str, numbers: Mapping[str, Any]) -> Html:
    """A name, with the number that a verdict has of it."""
    number_of = f" {value_text(numbers[name])}" if name in numbers else ""
    return tag("span", tag("code", name), number_of)


def _worst_table(worse: Sequence[Worst], summarised: Mapping[str, Summary]) -> Html:
    heading = tag("h3", "Parameters to look at first")
    if not summarised:
        return join(heading, quiet(_NO_STATISTICS))
    if not worse:
        return join(heading, tag("p", f"✓ {all_clear(list(summarised.values()))}", class_="healthy"))
    words = (
        "Those with NaN or inf, those that never moved, and those whose median update ratio over the run is outside "
        f"the band {BAND} in which most weights train well; the gravest first."
    )
    rows = [tag("li", _choose(entry.name), tag("span", entry.why)) for entry in worse[:_WORST_SHOWN]]
    rest = [quiet(f"and {len(worse) - _WORST_SHOWN:,} more")] if len(worse) > _WORST_SHOWN else []
    return join(heading, quiet(words), tag("ol", *rows, class_="worst"), *rest)


def _curves(run: RunFiles) -> Section:
    drawings = curves(run.metrics) if run.metrics is not None else []
    if not drawings:
        return Section("curves", "Curves", quiet("No metric was logged over time."))
    return Section("curves", "Curves", curve_grid(drawings), drawings=drawings)


def curve_grid(drawings: Sequence[Drawing]) -> Html:
    """Curves beside one another, each with a switch to a logarithmic axis."""
    return tag("div", *(figure(drawing, _log_switch(drawing)) for drawing in drawings), class_="grid")


def _log_switch(drawing: Drawing) -> Html:
    name = f"log scale of {drawing.title}"
    box = tag("input", type="checkbox", data_log=drawing.key, autocomplete="off", aria_label=name)
    return tag("label", box, " log scale")


def _maps(watched: History, cost: Mapping[str, Any] | None) -> Section:
    title = "Parameters over time"
    band, maps = ratio_band(watched), heat_maps(watched)
    if not maps:
        return Section("maps", title, quiet(_NO_STATISTICS))
    words = (
        "Rows are parameters in the model's order, named by block where there are many; columns are logged steps. "
        "With a mouse, drag to zoom in and double-click to zoom out; a click on a row shows that parameter below."
    )
    above = [] if band is None else [band]
    grid = tag("div", *map(figure, maps), class_="grid")
    return Section("maps", title, quiet(words), *map(figure, above), grid, _cost(cost or {}), drawings=[*above, *maps])


def _cost(cost: Mapping[str, Any]) -> Html:
    seconds, share, steps = (number(cost.get(key)) for key in ("seconds", "share", "steps_logged"))
    if seconds is None:
        return Html("")
    took = f"Watching took {duration(seconds)}"
    took += f" over {steps:,.0f} logged steps" if steps is not None else ""
    took += f", {share:.2%} of the fit" if share is not None else ""
    every = cost.get("every_n_steps")
    pairs = [pair for pair in every if isinstance(pair, list) and len(pair) == 2] if isinstance(every, list) else []
    widened = ", then ".join(f"every {interval} from step {step}" for step, interval in pairs)
    return quiet(f"{took}{'; ' if widened else ''}{widened}.")


def _parameter(watched: History, worse: Sequence[Worst]) -> Section:
    title = "One parameter"
    if not watched.names:
        return Section("parameter", title, quiet(_NO_STATISTICS))
    chosen = worse[0].name if worse else watched.names[0]
    blocks: dict[str, list[Html]] = {}
    for name in watched.names:
        blocks.setdefault(block(name), []).append(tag("option", name, value=name, selected=name == chosen))
    if len(blocks) == len(watched.names):
        options = [option for found in blocks.values() for option in found]
    else:
        options = [tag("optgroup", *found, label=name) for name, found in blocks.items()]
    choice = tag("select", *options, id="chosen", autocomplete="off")
    drawings = Drawing("histogram", "Its values over time", ""), Drawing("measures", "Its measures over time", "")
    grid = tag("div", *map(figure, drawings), class_="grid")
    return Section("parameter", title, tag("p", tag("label", "Parameter ", choice)), grid)


def _outputs(run: RunFiles) -> Section:
    title = "Layer outputs by depth"
    drawings = []
    if run.outputs is not None:
        drawings = outputs_by_depth(history(taken(run.outputs, LAYER_MEASURES, "layer"), (), LAYER_MEASURES))
    if not drawings:
        return Section("outputs", title, quiet("No statistics of layer outputs were taken."))
    return Section("outputs", title, tag("div", *map(figure, drawings), class_="grid"), drawings=drawings)


def _table(run: RunFiles, summarised: Mapping[str, Summary], watched: Sequence[str]) -> Section:
    title = "Parameter table"
    rows = run.table or tuple({"name": name} for name in watched)
    if not rows:
        return Section("parameters", title, quiet("There is no parameter table."))
    names = [row["name"] for row in rows]
    found = [summarised.get(name, Summary(name)) for name in names]
    columns = [
        Column("name", names, [_choose(name) if name in summarised else name for name in names]),
        Column("shape", [numel_of(row) for row in rows], [shape_of(row) for row in rows]),
        Column("dtype", [str(row.get("dtype", "")) for row in rows]),
        Column("kind", [str(row.get("kind", "")) for row in rows]),
        Column("decided by", ["" if row.get("tied_to") else str(row.get("rule", "")) for row in rows]),
        Column("state", [state_of(row) for row in rows]),
        Column("values", [numel_of(row) for row in rows], [count_of(row) for row in rows]),
        Column("weight rms", [each.rms for each in found]),
        Column("gradient rms", [each.gradient_rms for each in found]),
        Column("update ratio", [each.update_ratio for each in found]),
    ]
    words = "Weight, gradient and update as at the last logged step." if summarised else ""
    table = sortable("parameters", title, columns, search="names, kinds, rules")
    return Section("parameters", title, table, quiet(words))


def _files(run: RunFiles) -> Section:
    title = "Files"
    found = [
        _text_file("Model file", "model, init and freeze, as resolved", run.model_file),
        _text_file("Generated source", "model.py", run.source),
        _text_file("Resolved config", "config.yaml", run.config),
    ]
    return Section("files", title, *found)


def _text_file(title: str, what: str, text: str | None) -> Html:
    if text is None:
        return quiet(f"{title}: not in this run.")
    lines = tag("pre", tag("code", text), tabindex=0, aria_label=title)
    return tag("details", tag("summary", title, " ", tag("span", what, class_="quiet")), lines)


# ---- parts ---------------------------------------------------------------------------------------------------------


def _choose(name: str) -> Html:
    """A name that shows its parameter when it is pressed."""
    return tag("button", name, type="button", class_="name", data_choose=name, title=f"show {name}")


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
