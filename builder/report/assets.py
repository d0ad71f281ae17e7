"""What the page carries for the browser: style, script, plotly.js and the numbers, in one file and without a network.

plotly.js stands in `assets`: the published bundle of its cartesian figures, version 4.1.1, as the npm package
`plotly.js-cartesian-dist-min` has it. The bundle of the Python package is of all figures: 4.8 MB instead of 1.5, which
a browser takes a second longer to run, and which each run of a sweep would carry. It travels as gzip in base64, and so
do the numbers; browsers since 2023 inflate it themselves. Base64 also means that nothing in the data can end the script
element that holds it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from builder.report.markup import Html, join, tag

PLOTLY = "plotly-cartesian-4.1.1.min.js.gz"
_ASSETS = files("builder.report").joinpath("assets")


def document(title: str, body: Html, payload: Mapping[str, Any]) -> str:
    """A whole page.

    The browser is told to load nothing from anywhere and to run the page's own scripts alone: a script that text from a
    file smuggled in would lack their nonce.
    """
    numbers = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    nonce = hashlib.sha256(f"{body}{numbers}".encode()).hexdigest()[:32]
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(_asset("report.css"))),
    )
    data = join(_packed("numbers", _compressed(numbers)), _packed("plotly", _plotly()))
    script = tag("script", Html(_asset("report.js")), nonce=nonce)
    return f"<!doctype html>\n{tag('html', head, tag('body', body, data, script), lang='en')}\n"


def _packed(key: str, text: str) -> Html:
    return tag("script", Html(text), type="text/plain", id=key)


def _asset(name: str) -> str:
    return _ASSETS.joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    return base64.b64encode(_ASSETS.joinpath(PLOTLY).read_bytes()).decode()


def _compressed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
