import json
import subprocess
import sys
import textwrap

import pytest
from omegaconf import OmegaConf

from builder.sweep.callback import ResultsTable
from builder.sweep.results import metric_of_test


@pytest.mark.parametrize(
    ("monitor", "metric"),
    [
        pytest.param("val/accuracy", "test/accuracy", id="metric"),
        pytest.param("loss", "test/loss", id="no stage"),
        pytest.param("val/top/5", "test/top/5", id="slash in the name"),
    ],
)
def test_metric_of_test_follows_the_monitored_one(monitor, metric):
    assert metric_of_test(monitor) == metric


def config_of(sweep):
    return OmegaConf.create({"monitor": "val/loss", "mode": "min", "hydra": {"sweep": {"dir": str(sweep)}}})


def write_run(sweep, overrides, metrics):
    (sweep / "0").mkdir()
    result = {"overrides": overrides, "status": "ok", "error": None, "metrics": metrics, "seconds": 1.0}
    (sweep / "0" / "result.json").write_text(json.dumps(result))


def test_multirun_ends_with_a_table_and_two_files(tmp_path, capsys):
    write_run(tmp_path, ["lr=1"], {"test/loss": 0.25})
    ResultsTable().on_multirun_end(config_of(tmp_path))
    assert "0.2500" in capsys.readouterr().out
    assert {file.name for file in tmp_path.glob("*.csv")} == {"results.csv", "runs.csv"}


def test_report_ranks_by_the_metric_that_the_table_ranks_by(tmp_path):
    write_run(tmp_path, [], {"val/f1": 0.5})
    ResultsTable(metric="val/f1", mode="max").on_multirun_end(config_of(tmp_path))
    assert "Best mean of val/f1 first (max)" in (tmp_path / "report.html").read_text()


def test_sweep_without_runs_is_told_and_not_raised(tmp_path, capsys):
    ResultsTable().on_multirun_end(config_of(tmp_path))
    assert "name the directory of a multirun" in capsys.readouterr().out


def test_hydra_calls_it_after_a_real_multirun(tmp_path):
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
            import json, pathlib, hydra
            from hydra.core.hydra_config import HydraConfig

            @hydra.main(version_base="1.3", config_path=".", config_name="config")
            def main(cfg):
                h = HydraConfig.get()
                result = {"overrides": list(h.overrides.task), "status": "ok", "error": None, "seconds": 0.1,
                          "metrics": {"test/accuracy": cfg.lr + cfg.seed / 100}}
                if cfg.lr < 3:
                    pathlib.Path(h.runtime.output_dir, "result.json").write_text(json.dumps(result))

            main()
        """)
    )
    (tmp_path / "config.yaml").write_text(
        textwrap.dedent("""
            lr: 0
            seed: 0
            monitor: val/accuracy
            mode: max
            hydra: {sweep: {dir: sweep}, callbacks: {table: {_target_: builder.sweep.callback.ResultsTable}}}
        """)
    )
    command = [sys.executable, "-W", "error", "app.py", "-m", "lr=1,2,3", "seed=0,1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "2.0050 ± 0.0071" in done.stdout
    assert "no result (killed?)" in done.stdout
    rows = (tmp_path / "sweep" / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["lr", "2", "1", "3"]
