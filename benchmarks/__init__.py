"""Ratios, measured side by side in one run; each says with `--help` what it compares."""
