"""What `python train.py --help` prints; it needs neither torch nor Hydra, so that it answers at once."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"

_HELP = """builder: YAML to ordinary PyTorch, with every parameter accounted for

python train.py [+recipes=NAME] [GROUP=NAME ...] [KEY=VALUE ...]

Examples
  python train.py                                     digits with a small MLP
  python train.py +recipes=char_gpt                   a complete experiment
  python train.py init=orthogonal optimizer.lr=0.01   another init, another learning rate
  python train.py model.args.hidden=256 trainer.max_epochs=5
  python train.py ckpt_path=RUN/checkpoints/last.ckpt trainer.max_epochs=60 scheduler.T_max=30
  python train.py -m init=default,orthogonal init_seed=0,1,2
  python train.py --cfg job                           print the config and stop
  python train.py --hydra-help                        Hydra's own options

Groups (GROUP=NAME)
{groups}

Keys (KEY=VALUE)
  seed, init_seed, rng, monitor, mode, early_stopping.patience, ckpt_path, test,
  and every key of a group: optimizer.lr, trainer.max_epochs, stats.every_n_steps, ..."""


def help_text() -> str:
    """What `python train.py --help` prints; Hydra's own loads every file of every group."""
    folders = [*sorted(path for path in CONF.iterdir() if path.is_dir()), ROOT / "recipes"]
    groups = [f"  {path.name}: {', '.join(sorted(file.stem for file in path.glob('*.yaml')))}" for path in folders]
    return _HELP.format(groups="\n".join(groups))
