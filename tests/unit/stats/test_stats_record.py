"""One logged step: which values are there, which are null, and what it costs."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import builder
from builder.errors import BuilderError, Problem
from builder.names import Selector
from builder.stats import record
from builder.stats.columns import MEASURES
from builder.stats.distance import Start
from builder.stats.outputs import OutputWatch
from builder.stats.record import Recorder, Slower, chosen_parameters


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def step(module, recorder, number=1, lr=0.1):
    """One optimizer step, recorded; returns the columns and the weights before."""
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=lr)
    module(torch.ones(5, 3)).square().sum().backward()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    recorder.before_step()
    optimizer.step()
    return recorder.after_step(number, epoch=0).parameters, before


def rms(tensor):
    return tensor.double().square().mean().sqrt().item()


def test_a_row_holds_weight_gradient_and_update_of_its_parameter():
    module = two_layers()
    parameters = dict(module.named_parameters())
    columns, before = step(module, Recorder(parameters), number=7)
    assert columns["name"] == list(parameters)
    assert columns["step"] == [7] * 4 and columns["epoch"] == [0] * 4
    for row, (name, parameter) in enumerate(parameters.items()):
        weight, update = parameter.detach(), parameter.detach().double() - before[name].double()
        assert columns["mean"][row] == pytest.approx(weight.double().mean().item())
        assert columns["std"][row] == pytest.approx(weight.double().std(correction=0).item())
        assert columns["rms"][row] == pytest.approx(rms(weight))
        assert columns["gradient_rms"][row] == pytest.approx(rms(parameter.grad))
        assert columns["update_rms"][row] == pytest.approx(rms(update))
        assert columns["update_ratio"][row] == columns["update_rms"][row] / columns["rms"][row]
        assert columns["nonfinite"][row] == columns["gradient_nonfinite"][row] == 0


def test_a_second_step_is_measured_from_its_own_start():
    module = two_layers()
    recorder = Recorder(dict(module.named_parameters()))
    step(module, recorder)
    columns, before = step(module, recorder, number=2)
    expected = rms(module[0].weight.detach().double() - before["0.weight"].double())
    assert columns["update_rms"][0] == pytest.approx(expected)


def test_a_frozen_parameter_has_no_gradient_and_no_update():
    module = two_layers()
    recorder = Recorder(dict(module.named_parameters()))
    step(module, recorder)  # leaves a stale gradient behind
    module[0].weight.requires_grad_(False)
    columns, _ = step(module, recorder)
    for measure in ("gradient_rms", "gradient_nonfinite", "update_rms", "update_ratio"):
        assert columns[measure][0] is None
        assert None not in columns[measure][1:]
    assert columns["rms"][0] > 0


def test_a_parameter_unfrozen_later_is_measured_from_then_on():
    module = two_layers()
    module[0].weight.requires_grad_(False)
    recorder = Recorder(dict(module.named_parameters()))
    assert step(module, recorder)[0]["update_rms"][0] is None
    module[0].weight.requires_grad_(True)
    assert step(module, recorder)[0]["update_rms"][0] > 0


def test_a_parameter_that_the_loss_did_not_reach_has_an_update_but_no_gradient():
    module = two_layers()
    module.register_parameter("unused", nn.Parameter(torch.ones(2)))
    columns, _ = step(module, Recorder(dict(module.named_parameters())))
    row = columns["name"].index("unused")
    assert columns["gradient_rms"][row] is None
    assert columns["update_rms"][row] == columns["update_ratio"][row] == 0.0


def test_a_model_that_is_frozen_whole_is_recorded():
    module = two_layers().requires_grad_(False)
    recorder = Recorder(dict(module.named_parameters()))
    recorder.before_step()
    columns = recorder.after_step(1, epoch=0).parameters
    assert columns["update_rms"] == columns["gradient_rms"] == [None] * 4
    assert None not in columns["rms"]


def test_a_tied_parameter_appears_once_under_its_first_name():
    module = two_layers()
    module[2].weight = module[0].weight
    everything = dict(module.named_parameters(remove_duplicate=False))
    assert "2.weight" in everything
    recorder = Recorder(everything)
    recorder.before_step()
    assert recorder.after_step(1, epoch=0).parameters["name"] == ["0.weight", "0.bias", "2.bias"]
    assert list(chosen_parameters(module, Selector())) == ["0.weight", "0.bias", "2.bias"]


def test_nan_in_a_gradient_is_counted_under_its_own_name():
    module = two_layers()
    module(torch.ones(5, 3)).sum().backward()
    module[2].bias.grad[1] = math.nan
    recorder = Recorder(dict(module.named_parameters()))
    recorder.before_step()
    columns = recorder.after_step(1, epoch=0).parameters
    assert columns["gradient_nonfinite"] == [0, 0, 0, 1]
    assert math.isnan(columns["gradient_rms"][3])


def test_a_sparse_gradient_is_measured_over_the_whole_parameter():
    embedding = nn.Embedding(10, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    recorder = Recorder({"weight": embedding.weight})
    recorder.before_step()
    assert recorder.after_step(1, epoch=0).parameters["gradient_rms"] == [pytest.approx(math.sqrt(2 * 4 / 20))]


def test_parameters_of_several_dtypes_share_a_step():
    parameters = {"a": nn.Parameter(torch.ones(2).bfloat16()), "b": nn.Parameter(torch.ones(2).double())}
    recorder = Recorder(parameters)
    recorder.before_step()
    assert recorder.after_step(1, epoch=0).parameters["rms"] == [1.0, 1.0]


def watched_on(device):
    """A model with all that a recorder can watch, one step's gradients, and its recorder."""
    module = two_layers().to(device)
    module[2].weight.requires_grad_(False)
    outputs = OutputWatch(module, "*")
    outputs.attach()
    module(torch.ones(5, 3, device=device))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    named = dict(module.named_parameters())
    start = Start(named, lambda parts: [torch.zeros(named[name].shape) for name, _ in parts], resumed=named)
    slower = Slower(start, spectral_norm=True)
    return module, Recorder(named, slower=slower, outputs=outputs)


def refuse(parts):
    raise BuilderError("init", [Problem(name, "cannot be drawn") for name, _ in parts])


def test_a_logged_step_makes_one_transfer_and_waits_for_nothing_else(monkeypatch):
    """On meta every look at a value raises, so a second synchronisation of any kind fails the test."""
    transfers = []

    def transfer(results):
        transfers.append(tuple(results.shape))
        return torch.ones(results.shape, dtype=torch.float64)

    monkeypatch.setattr(record, "_to_host", transfer)
    _, recorder = watched_on("meta")
    recorder.before_step()
    assert transfers == []
    recorded = recorder.after_step(1, epoch=0, more=True, clips=True, clock=(0.1, 0.2))
    assert len(transfers) == 1
    assert recorded.parameters["update_rms"] == [1.0] * 4 and recorded.outputs["layer"] == ["0", "1", "2"]
    assert recorded.parameters["distance"] == [1.0] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_waits_in_the_transfer_alone(monkeypatch):
    def transfer(results):
        torch.cuda.set_sync_debug_mode("default")
        return results.cpu()

    monkeypatch.setattr(record, "_to_host", transfer)
    _, recorder = watched_on("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        recorder.before_step()
        columns = recorder.after_step(1, epoch=0, more=True, clips=True).parameters
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert columns["update_rms"] == [0.0, 0.0, None, 0.0]


def test_the_clipped_gradient_is_measured_where_something_clips():
    module = two_layers()
    module(torch.ones(5, 3)).sum().backward()
    recorder = Recorder(dict(module.named_parameters()))
    recorder.before_step()
    raw = [rms(p.grad) for p in module.parameters()]
    torch.nn.utils.clip_grad_value_(module.parameters(), 1e-3)
    clipped = [rms(p.grad) for p in module.parameters()]
    columns = recorder.after_step(1, epoch=0, clips=True).parameters
    assert columns["gradient_rms"] == pytest.approx(raw)
    assert columns["clipped_gradient_rms"] == pytest.approx(clipped) and clipped != raw
    recorder.before_step()
    assert recorder.after_step(2, epoch=0).parameters["clipped_gradient_rms"] == [None] * 4


def test_slower_measures_are_there_when_they_are_asked_for():
    module = two_layers()
    slower = Slower(Start(dict(module.named_parameters()), refuse), spectral_norm=True, effective_rank=3)
    recorder = Recorder(dict(module.named_parameters()), slower=slower)
    columns, before = step(module, recorder)
    for measure in ("distance", "cosine", "spectral_norm", "effective_rank"):
        assert columns[measure] == [None] * 4
    recorder.before_step()
    columns = recorder.after_step(2, epoch=0, more=True).parameters
    for row, (name, parameter) in enumerate(module.named_parameters()):
        moved = parameter.detach().double() - before[name].double()
        assert columns["distance"][row] == pytest.approx(moved.norm().item())
        if parameter.ndim == 2:
            largest = torch.linalg.svdvals(parameter.detach().double())[0].item()
            assert columns["spectral_norm"][row] == pytest.approx(largest, rel=1e-4)
            assert 1 < columns["effective_rank"][row] <= 3
    assert columns["spectral_norm"][1] is None, "a vector has none"
    assert recorder.extra_seconds > 0


def test_cosine_is_null_beside_a_zero_vector_and_nan_beside_a_nan():
    parameters = {"zero": nn.Parameter(torch.zeros(3)), "nan": nn.Parameter(torch.ones(3))}
    recorder = Recorder(parameters, slower=Slower(Start(parameters, refuse)))
    recorder.before_step()
    parameters["nan"].data[0] = math.nan
    columns = recorder.after_step(1, epoch=0, more=True).parameters
    assert columns["cosine"][0] is None and math.isnan(columns["cosine"][1])
    assert columns["distance"][0] == 0.0 and math.isnan(columns["distance"][1])


def test_a_parameter_without_values_is_null_throughout():
    parameters = {"none": nn.Parameter(torch.zeros(0, 3)), "some": nn.Parameter(torch.ones(3))}
    recorder = Recorder(parameters, slower=Slower(Start(parameters, refuse), spectral_norm=True))
    recorder.before_step()
    columns = recorder.after_step(1, epoch=0, more=True).parameters
    assert all(columns[measure][0] is None for measure in MEASURES)
    assert columns["rms"][1] == 1.0


def test_each_member_of_a_stacked_model_has_its_own_row():
    members = [two_layers() for _ in range(3)]
    for number, member in enumerate(members):
        for parameter in member.parameters():
            parameter.data.mul_(number + 1)
    names = [name for name, _ in members[0].named_parameters()]
    stacks = {
        name: nn.Parameter(torch.stack([member.get_parameter(name).detach() for member in members])) for name in names
    }
    stacks["0.bias"].requires_grad_(False)
    slower = Slower(Start(stacks, refuse, stacked=True), spectral_norm=True)
    recorder = Recorder(stacks, stacked=True, slower=slower)
    for stack in stacks.values():
        stack.grad = torch.ones_like(stack) * torch.arange(3.0).view(3, *[1] * (stack.ndim - 1))
    recorder.before_step()
    with torch.no_grad():
        for stack in stacks.values():
            stack += 0.25 * stack.grad if stack.requires_grad else 0.0
    columns = recorder.after_step(1, epoch=0, more=True, clips=True).parameters
    assert columns["name"] == [name for name in names for _ in members]
    assert columns["member"] == [0, 1, 2] * 4
    assert columns["gradient_rms"] == [0, 1, 2, None, None, None, 0, 1, 2, 0, 1, 2]
    assert columns["update_rms"][:3] == pytest.approx([0, 0.25, 0.5], rel=1e-6)
    assert columns["update_rms"][3:6] == [None] * 3
    assert columns["distance"][:3] == pytest.approx([0, 0.25 * 12**0.5, 0.5 * 12**0.5], rel=1e-6)
    for row in range(12):
        alone = stacks[columns["name"][row]][columns["member"][row]].detach()
        assert columns["rms"][row] == pytest.approx(rms(alone))
        assert sum(columns["histogram"][row]) == alone.numel()


def test_a_selector_chooses_by_the_owning_layers_kind():
    module = two_layers()
    module.register_parameter("scale", nn.Parameter(torch.ones(())))
    assert list(chosen_parameters(module, Selector(kind="Parameter"))) == ["scale"]
    assert list(chosen_parameters(module, Selector(kind="Linear", ndim=1))) == ["0.bias", "2.bias"]


def test_a_selector_that_matches_nothing_names_what_there_is():
    with pytest.raises(BuilderError, match=r"stats\.select: match: '0\.wieght' matches no parameter") as raised:
        chosen_parameters(two_layers(), Selector(match="0.wieght"))
    assert "did you mean '0.weight'?" in str(raised.value)


def test_a_selector_that_matches_only_a_tied_name_is_told_the_owner():
    module = two_layers()
    module[2].weight = module[0].weight
    with pytest.raises(BuilderError, match=r"'2\.weight' is tied to '0\.weight', which owns the values") as raised:
        chosen_parameters(module, Selector(match="2.weight"))
    assert raised.value.problems[0].hint == "select '0.weight' instead"
    assert list(chosen_parameters(module, Selector(match="2.*"))) == ["2.bias"]


def test_a_selector_that_matches_only_a_transposed_tie_is_told_the_owner():
    data = {
        "inputs": {"x": {"shape": ["batch", 4]}},
        "layers": {
            "low": {"kind": "Linear", "in_features": 4, "out_features": 4},
            "head": {"kind": "Parameter", "shape": [4, 4]},
        },
        "tie": {"head": {"source": "low.weight", "transpose": True}},
        "forward": "low(x) @ head",
    }
    with pytest.raises(BuilderError, match=r"'head' is tied to 'low\.weight'"):
        chosen_parameters(builder.build(data), Selector(match="head"))


def test_what_thaws_later_is_trainable():
    data = {
        "inputs": {"x": {"shape": ["batch", 4]}},
        "layers": {name: {"kind": "Linear", "in_features": 4, "out_features": 4} for name in ("a", "b", "c")},
    }
    freeze = {"a": {"match": "a.*"}, "b": {"match": "b.*", "until": {"epoch": 1}}}
    model = builder.build(data, freeze=freeze).requires_grad_(False)
    model.c.requires_grad_(True)  # as a fit has it at its start
    assert list(chosen_parameters(model, Selector(trainable=True))) == ["b.weight", "b.bias", "c.weight", "c.bias"]
    assert list(chosen_parameters(model, Selector(trainable=False))) == ["a.weight", "a.bias"]


def test_parameters_of_a_parametrized_layer_are_chosen_by_its_kind():
    module = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh())
    chosen = chosen_parameters(module, Selector(kind="Linear"))
    assert [name.rpartition(".")[2] for name in chosen] == ["bias", "original0", "original1"]


def test_complex_parameters_are_refused_all_at_once_and_can_be_left_out():
    module = two_layers()
    module.register_parameter("z", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    module.register_parameter("y", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    with pytest.raises(BuilderError, match=r"'z' is complex.*\n.*stats\.select\.except") as raised:
        chosen_parameters(module, Selector())
    assert len(raised.value.problems) == 2
    assert "z" not in chosen_parameters(module, Selector(**{"except": ("y", "z")}))


def test_a_sharded_parameter_is_chosen_and_a_partial_sum_refused():
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, distribute_module

    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        module = distribute_module(two_layers(), mesh)
        assert len(chosen_parameters(module, Selector())) == 4
        partial = DTensor.from_local(torch.ones(4), mesh, [Partial()])
        module.register_parameter("summed", nn.Parameter(partial))
        with pytest.raises(BuilderError, match=r"'summed' is placed as a partial sum"):
            chosen_parameters(module, Selector())
    finally:
        destroy_process_group()
