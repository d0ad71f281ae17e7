"""A run ends with its report; a report that cannot be made takes nothing from a run."""

import builder.run
from builder.cli import main

SMALL = ["trainer=cpu", "trainer.max_epochs=2", "model.args.hidden=8", "stats.every_n_steps=10"]


def test_run_ends_with_a_report_of_itself(command):
    ended = command(*SMALL)
    assert ended.code == 0
    page = (ended.directory / "report.html").read_text()
    for name in ("fc1.weight", "head.bias", "test/accuracy", "finished", 'data-figure="map-update_ratio"', "lr-AdamW"):
        assert name in page
    assert "There is no metrics.csv" not in page and "There are no statistics of parameters" not in page


def test_report_of_a_run_can_be_made_again(command, capsys):
    ended = command(*SMALL)
    file = ended.directory / "report.html"
    written = file.read_text()
    file.unlink()
    assert main(["report", str(ended.directory)]) == 0
    assert file.read_text() == written


def test_run_without_statistics_and_loggers_has_a_report(command):
    ended = command(*SMALL[:-1], "stats=none", "logger=none")
    assert ended.code == 0
    page = (ended.directory / "report.html").read_text()
    assert "There is no metrics.csv" in page and "There are no statistics of parameters." in page


def test_run_stands_when_its_report_fails(command, monkeypatch):
    def fail(directory):
        raise OSError("disk full")

    monkeypatch.setattr(builder.run, "write_report", fail)
    ended = command(*SMALL[:-1], "stats=none")
    assert ended.code == 0
    assert ended.result["status"] == "ok"
    assert "no report was written: OSError: disk full" in ended.out
    assert "report.html" not in ended.files


def test_sweep_of_runs_has_a_report_that_leads_to_theirs(command, capsys):
    ended = command(*SMALL[:-1], "stats=none", "seed=0,1", sweep=True)
    assert ended.code == 0
    assert main(["report", str(ended.directory)]) == 0
    page = (ended.directory / "report.html").read_text()
    assert 'href="./0/report.html"' in page and 'href="./1/report.html"' in page
    assert 'data-figure="curve-val-loss"' in page
