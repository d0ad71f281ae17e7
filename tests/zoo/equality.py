"""What it means that a model of the zoo equals its reference: the same outputs and gradients from the same weights."""

import copy
import pickle
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import builder
from builder.build import proof_of

CONF = Path(__file__).parents[2] / "conf" / "model"
OUTPUTS = {torch.float32: 1e-5, torch.float64: 1e-10}  # greatest difference
GRADIENTS = {torch.float32: 1e-4, torch.float64: 1e-9}  # greatest difference, of the reference's greatest value
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in OUTPUTS]
MODES = [pytest.param(True, id="train"), pytest.param(False, id="eval")]


@dataclass(frozen=True)
class Case:
    """A model file, and what it must equal.

    Attributes:
        model: Name of the file in conf/model.
        args: Its args.
        names: The `pretrained` rules, as YAML, that say which tensors of the reference go where; without the path.
        reference: Makes the reference.
        inputs: Makes the model's inputs by name: `inputs(batch)`.
        call: Calls the reference with the model's inputs.
        idle: Globs of parameters on which the outputs do not depend, so that their gradient is rounding alone.
    """

    model: str
    args: dict
    names: str
    reference: object
    inputs: object
    call: object = field(default=lambda reference, inputs: reference(**inputs))
    idle: tuple = ()

    @property
    def file(self):
        """The model file."""
        return CONF / f"{self.model}.yaml"

    def made_reference(self):
        """The reference, with values that have nothing of an init's symmetry (zeros, ones)."""
        torch.manual_seed(3)
        reference = self.reference()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return reference

    def built(self, reference, folder):
        """The model, with the reference's values by `pretrained` rules alone."""
        path = str(folder / "reference.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in reference.state_dict().items()}, path)
        common = {"policy": "pretrained", "path": path}
        rules = {name: {**rule, **common} for name, rule in yaml.safe_load(self.names).items()}
        return builder.build(self.file, args=self.args, init=rules)

    def made_inputs(self, dtype, batch=3):
        """The model's inputs, the floating ones of a dtype."""
        torch.manual_seed(7)
        made = self.inputs(batch)
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}


def leaves(output):
    """The tensors of an output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [leaf for part in (output.values() if isinstance(output, dict) else output) for leaf in leaves(part)]


def backward(output):
    """Leaves the gradient of a weighted sum of all outputs."""
    generator = torch.Generator().manual_seed(11)
    total = 0.0
    for leaf in leaves(output):
        total = total + (leaf * torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)).sum()
    total.backward()


def check_equal(case, folder, dtype, *, training):
    """Compares outputs and every parameter's gradient, in one dtype and mode."""
    reference = case.made_reference()
    model = case.built(reference, folder).to(dtype).train(training)
    reference = reference.to(dtype).train(training)
    inputs = case.made_inputs(dtype)
    ours, theirs = model(**inputs), case.call(reference, inputs)
    assert [leaf.shape for leaf in leaves(ours)] == [leaf.shape for leaf in leaves(theirs)]
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        assert a.dtype == b.dtype == dtype
        assert (a - b).abs().max() <= OUTPUTS[dtype]
        assert b.abs().max() > 100 * OUTPUTS[dtype], "the reference says something"
    backward(ours)
    backward(theirs)
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    greatest = max(gradient.abs().max() for gradient in gradients.values())
    taken = set()
    for name, parameter in model.named_parameters():
        rule = proof_of(model).decisions[name].arguments
        expected = torch.cat([gradients[key] for key in rule["key"]], rule.get("dim", 0))
        expected = expected.T if rule.get("transpose") else expected
        if any(fnmatchcase(name, glob) for glob in case.idle):
            assert max(expected.abs().max(), parameter.grad.abs().max()) <= GRADIENTS[dtype] * greatest, name
        else:
            assert expected.abs().max() > GRADIENTS[dtype] * greatest, name
            assert (parameter.grad - expected).abs().max() <= GRADIENTS[dtype] * expected.abs().max(), name
        taken.update(rule["key"])
    assert taken == set(gradients), "every value of the reference has its place"


def from_source(model, text):
    """The module that generated source makes by itself, with the values of a built one."""
    made = {}
    exec(text, made)
    alone = made[type(model).__name__]()
    alone.load_state_dict(model.state_dict())
    return alone.eval()


def check_tools(case):
    """Compiles without a graph break, exports with a free batch size, copies, pickles and stands as source alone."""
    model = builder.build(case.file, args=case.args).eval()
    inputs = case.made_inputs(torch.float32)
    expected = leaves(model(**inputs))

    def same(output, most=1e-6):
        for a, b in zip(leaves(output), expected, strict=True):
            assert (a - b).abs().max() <= most

    torch.compiler.reset()
    same(torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs))
    same(copy.deepcopy(model)(**inputs), 0)
    same(pickle.loads(pickle.dumps(model))(**inputs), 0)
    same(from_source(model, builder.code(case.file, args=case.args))(**inputs), 0)
    shapes = {name: spec.shape for name, spec in proof_of(model).loaded.spec.inputs.items()}
    free = {name: {shapes[name].index("batch"): torch.export.Dim.DYNAMIC} for name in inputs}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=free).module()
    same(exported(**inputs))
    more = case.made_inputs(torch.float32, batch=5)
    for a, b in zip(leaves(exported(**more)), leaves(model(**more)), strict=True):
        assert (a - b).abs().max() <= 1e-6
