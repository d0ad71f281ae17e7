"""What a row of statistics holds: the one list of measures that recording, storing and showing go by.

It stands alone so that a finished run can be read without importing torch. Null means that there was nothing to
measure at this step; NaN and inf are values as measured.

Parameters, one row for each (step, name[, member]):

- `mean std rms min max l2`: of the weight after the step; `std` divides by n.
- `zeros`: the fraction of exact zeros. `nonfinite`: how many values are NaN or infinite.
- `distance cosine`: l2 norm of what the weight moved from its initial value, and the cosine between the two. On their
  own, slower schedule.
- `histogram`: counts by power of two (see `bin_edges`). `histogram_share`: what part of the values was counted.
- `spectral_norm effective_rank`: the largest singular value, and the exponential of the entropy of all of them (Roy
  and Vetterli 2007). Where they are asked for.
- `gradient_rms gradient_max gradient_nonfinite`: of the gradient that the step was taken with, before clipping; `max`
  is of absolute values. `clipped_gradient_rms`: after clipping, where something clips.
- `update_rms`: of the difference that the step made. `update_ratio`: over the weight's `rms` after the step.

Layer outputs, one row for each (step, layer[, member]):

- `mean std rms nonfinite`: of all values of the output.
- `dead`: the fraction of units (features, or channels) that are exactly 0 for the whole batch; of ReLU-like layers, and
  where 16 values from 2 samples stand behind each unit.
- `saturated`: the fraction of values beyond 0.97 in absolute value (tanh-like), outside [0.03, 0.97] (sigmoid-like) or
  at a bound (hardtanh); not of what the model returns.
"""

from __future__ import annotations

BASE_MEASURES = ("mean", "std", "rms", "min", "max", "l2", "zeros", "nonfinite")
START_MEASURES = ("distance", "cosine")
SPECTRAL_MEASURES = ("spectral_norm", "effective_rank")
GRADIENT_MEASURES = ("gradient_rms", "gradient_max", "gradient_nonfinite")
CLIPPED = "clipped_gradient_rms"
UPDATE_MEASURES = ("update_rms", "update_ratio")
HISTOGRAM, HISTOGRAM_SHARE = "histogram", "histogram_share"
MEASURES = (
    *BASE_MEASURES,
    *START_MEASURES,
    HISTOGRAM,
    HISTOGRAM_SHARE,
    *SPECTRAL_MEASURES,
    *GRADIENT_MEASURES,
    CLIPPED,
    *UPDATE_MEASURES,
)
OUTPUT_MEASURES = ("mean", "std", "rms", "dead", "saturated", "nonfinite")
COUNTS = ("nonfinite", "gradient_nonfinite")
SCALARS = tuple(measure for measure in MEASURES if measure != HISTOGRAM)

POWERS = 34  # bins on each side of zero
BINS = 2 * POWERS + 1
LOWEST = -26  # exponent floor(log2|x|) of the bins nearest to zero, which also hold all below

Columns = dict[str, list[int] | list[str] | list[int | None] | list[int | float | None] | list[list[int] | None]]
"""One logged step, as lists of equal length by the names of the columns; None where there was nothing to measure."""


def bin_edges() -> list[tuple[float, float]]:
    """Least and greatest absolute value of the bins POWERS + 1, POWERS + 2, ...; POWERS - k mirrors POWERS + k.

    The bin POWERS holds exact zeros. The first bin of each side also holds what is smaller, the last what is greater.

    >>> bin_edges()[0], bin_edges()[-1]
    ((0.0, 2.9802322387695312e-08), (128.0, inf))
    """
    inner = [(2.0 ** (LOWEST + k), 2.0 ** (LOWEST + k + 1)) for k in range(1, POWERS - 1)]
    return [(0.0, 2.0 ** (LOWEST + 1)), *inner, (2.0 ** (LOWEST + POWERS - 1), float("inf"))]
