"""One file, one model (law L4 and section 2 of the design): over random models, a spec survives YAML, and the generated
source, run with torch and the standard library alone, is the built module to the bit."""

import builtins
import types

import torch
import yaml
from hypothesis import given, settings
from random_models import batch, models

import builder
from builder.load import load

LAW = settings(max_examples=100, deadline=None, derandomize=True)


@LAW
@given(data=models())
def test_spec_written_as_yaml_is_read_as_the_same_spec(data, tmp_path_factory):
    spec = load(data).spec
    file = tmp_path_factory.getbasetemp() / "model.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump(mode="json", by_alias=True, exclude_unset=True), sort_keys=False))
    assert load(file).spec == spec


def run_alone(source):
    """The class of a source, run where nothing but torch and math can be imported."""

    def guarded(name, *rest):
        assert name.partition(".")[0] in ("torch", "math"), f"the source imports {name}"
        return __import__(name, *rest)

    module = types.ModuleType("alone")
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": guarded}
    exec(compile(source, "alone.py", "exec"), module.__dict__)
    return module.Model


@LAW
@given(data=models())
def test_source_alone_is_the_built_module(data):
    built = builder.build(data, seed=3)
    alone = run_alone(builder.code(data))()
    alone.load_state_dict(built.state_dict())
    assert list(alone.state_dict()) == list(built.state_dict())
    for training in (True, False):
        given_bits = []
        for module in (built, alone):
            module.train(training)
            torch.manual_seed(0)  # of dropout
            given_bits.append(module(**batch()))
        assert torch.equal(*given_bits)
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), built.state_dict().values(), strict=True))
