"""What tests share: every model is given as a plain dict and as a DictConfig, and must come out unchanged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import builder

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["dict", "DictConfig"])
def given(request):
    """Turns plain data into the kind of source under test; afterwards, every source must be as it was."""
    taken = []

    def give(data):
        source = copy.deepcopy(data) if request.param == "dict" else OmegaConf.create(copy.deepcopy(data))
        taken.append((source, copy.deepcopy(source)))
        return source

    yield give
    for source, before in taken:
        assert repr(source) == repr(before), "the input was changed"


@pytest.fixture
def refusal():
    """The only problem with which a call is refused."""

    def of(call, *args, **kwargs):
        with pytest.raises(builder.BuilderError) as caught:
            call(*args, **kwargs)
        return caught.value.problems[0]

    return of


@pytest.fixture
def conf_models():
    """The project's own model files by name."""
    return {file.stem: file for file in sorted((ROOT / "conf" / "model").glob("*.yaml"))}
