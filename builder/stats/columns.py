"""What a row of statistics holds: the one list of measures that recording, storing and showing go by.

It stands alone so that a finished run can be read without importing torch.
"""

from __future__ import annotations

WEIGHT_MEASURES = ("mean", "std", "rms", "nonfinite")
GRADIENT_MEASURES = ("gradient_rms", "gradient_nonfinite")
UPDATE_MEASURES = ("update_rms", "update_ratio")
MEASURES = (*WEIGHT_MEASURES, *GRADIENT_MEASURES, *UPDATE_MEASURES)
COUNTS = ("nonfinite", "gradient_nonfinite")

Columns = dict[str, list[int] | list[str] | list[int | float | None]]
"""`step`, `epoch`, `name` and each measure, as lists of equal length; None where there was nothing to measure."""
