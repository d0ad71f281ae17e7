"""Compiled loops, and what is done where nothing can be kept of them."""

import os
import subprocess
import sys

import numpy as np
import pytest

from builder.compiled import compiled
from builder.stats import kernels


def test_what_can_be_kept_in_no_folder_is_compiled_all_the_same():
    scope = {}
    exec("def double(x):\n    return 2 * x", scope)  # of a function without a file numba keeps nothing
    assert compiled("f8(f8)")(scope["double"])(1.5) == 3.0


@pytest.mark.slow
@pytest.mark.parametrize("module", ["builder.stats.kernels", "builder.initialize.normal"])
def test_a_later_process_takes_what_was_compiled_before(module, tmp_path):
    known = {"NUMBA_CACHE_DIR": str(tmp_path), "PATH": os.environ["PATH"]}
    sizes = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", f"import {module}"], env=known, check=True, timeout=120)
        sizes.append(sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.rglob("*.nb*")))
    assert sizes[0] and sizes[0] == sizes[1]


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_loops_take_any_number_of_values(count):
    x = np.arange(count, dtype=np.float32)
    total, squares, _, _, zeros, moved = kernels.sums(x, x.view(np.int32), x[:0])
    assert (total, squares, zeros, moved) == (x.sum(), (x * x).sum(), min(count, 1), 0)
