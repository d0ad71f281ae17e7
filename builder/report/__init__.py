"""The report: what a run, or a sweep, left in its directory, as one HTML file that needs no network.

`read` (files of a run directory) -> `history` (statistics as matrices) -> `figures` -> `page` (HTML), with `markup` for
escaping and `assets` for what the browser runs. Nothing here imports torch or Lightning: a report is made of files, so
that a run which was killed, or is still going on, has one as well.
"""
