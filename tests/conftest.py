"""What tests share: every model is given as a plain dict and as a DictConfig, and must come out unchanged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import builder

ROOT = Path(__file__).parent.parent

SMALL = {  # args under which a model file of published size is built in a test
    "bert": {"vocab": 50, "context": 16, "d": 32, "depth": 1, "hidden": 64},
    "complex": {"entities": 50, "relations": 10, "d": 8},
    "distmult": {"entities": 50, "relations": 10, "d": 8},
    "dlrm": {"bottom": [32], "top": [32], "tables": [20, 10]},
    "gpt2": {"vocab": 50, "context": 16, "d": 32, "heads": 2, "depth": 2},
    "llama3": {"vocab": 50, "d": 32, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 64},
    "lstm": {"features": 8, "hidden": 16},
    "mixer": {"image": 32, "patch": 8, "classes": 10, "d": 16, "depth": 2, "tokens": 8, "channels": 32},
    "resnet18": {"classes": 10, "widths": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "resnet50": {"classes": 10, "stem_width": 8, "widths": [16, 32, 32, 32], "depths": [1, 1, 1, 1]},
    "rotate": {"entities": 50, "relations": 10, "d": 8},
    "skipgram": {"vocab": 50, "d": 8},
    "t5_encoder": {"vocab": 50, "d": 32, "heads": 2, "width": 16, "depth": 2, "hidden": 64},
    "transe": {"entities": 50, "relations": 10, "d": 8},
    "transformer_encoder": {"d": 32, "heads": 2, "depth": 2, "hidden": 64},
    "vae": {"pixels": 49, "hidden": 16, "latent": 3},
    "vit": {"image": 32, "classes": 10, "d": 32, "heads": 2, "depth": 2, "hidden": 64},
}


@pytest.fixture
def small():
    """The args under which a model file of the project is small."""
    return lambda file: SMALL.get(Path(file).stem, {})


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
