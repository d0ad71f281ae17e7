"""A sweep goes on past a run that fails, and ends with one table over all of them."""

import csv

import pytest

SMALL = ["trainer=cpu", "trainer.max_epochs=1", "stats=none", "logger=none"]


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_sweep_tabulates_all_runs_and_fails_with_those_that_failed(command):
    ended = command(*SMALL, "init=default,zeros", "init_seed=0,1", "model.args.hidden=8,true", sweep=True)
    assert ended.code == 1
    groups = rows(ended.directory / "results.csv")
    assert len(groups) == 4
    assert sorted((g["init"], g["model.args.hidden"], g["runs"], g["failed"]) for g in groups) == [
        ("default", "8", "2", "0"), ("default", "True", "2", "2"),
        ("zeros", "8", "2", "0"), ("zeros", "True", "2", "2"),
    ]  # fmt: skip
    assert groups[0]["init"] == "default" and groups[0]["model.args.hidden"] == "8", "best first"
    assert float(groups[0]["test/accuracy std"]) >= 0
    assert all("digits_mlp.yaml" in g["errors"] for g in groups if g["failed"] == "2")

    runs = rows(ended.directory / "runs.csv")
    assert len(runs) == 8
    assert sum(bool(run["error"]) for run in runs) == 4
    assert "8 runs, best test/accuracy first" in ended.out
    assert "failed:" in ended.out
    assert "results.csv" in ended.out
    assert "is a number, got True" in ended.err
    assert "Traceback" not in ended.err


def test_failed_run_of_a_sweep_leaves_its_error_and_nothing_of_a_model(command):
    ended = command(*SMALL, "model.args.hidden=true", "seed=0,1", sweep=True)
    assert ended.code == 1
    assert [file for file in ended.files if file.startswith("0/") and ".hydra" not in file] == [
        "0/config.yaml",
        "0/result.json",
    ]


def test_sweep_in_which_all_runs_end_has_exit_code_0(command):
    ended = command(*SMALL, "model.args.hidden=8", "seed=0,1", sweep=True)
    assert ended.code == 0
    assert [(g["runs"], g["failed"]) for g in rows(ended.directory / "results.csv")] == [("2", "0")]


@pytest.mark.filterwarnings("ignore")  # what wandb warns of is its own
@pytest.mark.parametrize(("rate", "code"), [("1e-3", 0), ("1e9", 1)], ids=["that end", "that fail"])
def test_each_job_of_a_sweep_is_a_run_of_its_own_at_wandb(command, monkeypatch, rate, code):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    overrides = ["trainer=cpu", "trainer.max_epochs=1", "stats=none", "logger=wandb", "seed=0,1"]
    ended = command(*overrides, f"optimizer.lr={rate}", sweep=True)
    assert (ended.code, wandb.run) == (code, None)
    assert [len(list(ended.directory.glob(f"{job}/wandb/offline-run-*/run-*.wandb"))) for job in (0, 1)] == [1, 1]
