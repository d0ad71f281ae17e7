"""Compose, check, build, fit, test: `python train.py --help` shows how.

A config that is refused ends with exit code 2 and one message. In a sweep (`-m`) a run that fails is recorded, the
others go on, and the sweep ends with exit code 1.
"""

from __future__ import annotations

import sys

from builder.help import help_text


def main() -> int:
    """Runs the command line; returns the exit code."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return 0
    from builder.launch import launch  # here: `--help` needs no Hydra

    return launch()


if __name__ == "__main__":
    sys.exit(main())
