"""A task is data: what it computes, and what it refuses."""

import pytest
import torch
from torch import nn

from builder.errors import BuilderError
from builder.task import read_task

TASK = {
    "batch": ["x", "y"],
    "outputs": {"logits": "model(x)"},
    "loss": "cross_entropy(logits, y)",
    "metrics": {"accuracy": {"_target_": "torchmetrics.Accuracy", "task": "multiclass", "num_classes": 3}},
}
BATCH = (torch.eye(3), torch.tensor([0, 1, 1]))


def test_loss_is_what_it_says(given):
    task, model = read_task(given(TASK)), nn.Linear(3, 3)
    assert torch.equal(task.loss(model, BATCH), nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]))


def test_metrics_are_given_the_first_output_and_the_last_part_of_the_batch():
    task, model = read_task(TASK), nn.Identity()
    loss, inputs = task.evaluate(model, BATCH)
    assert torch.equal(loss, task.loss(model, BATCH))
    metric = task.make_metrics()["accuracy"]
    metric.update(*inputs["accuracy"])
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_metrics_are_given_what_of_names():
    metrics = {"error": {"_target_": "torchmetrics.MeanSquaredError", "of": ["logits * 2", "x"]}}
    _, inputs = read_task({**TASK, "metrics": metrics}).evaluate(nn.Identity(), BATCH)
    assert torch.equal(inputs["error"][0], 2 * BATCH[0])


def test_each_call_makes_new_metrics():
    task = read_task(TASK)
    assert task.make_metrics()["accuracy"] is not task.make_metrics()["accuracy"]


def test_outputs_are_computed_once_in_order():
    task = read_task({"batch": ["x"], "outputs": {"a": "model(x)", "b": "a * a"}, "loss": "b.sum()"})
    assert task.source.count("model(x)") == 2, "once in each of the two functions"
    assert task.loss(nn.Identity(), (torch.tensor([3.0]),)).item() == 9


@pytest.mark.parametrize(
    ("change", "address", "what"),
    [
        pytest.param({"los": "x"}, "task.los", "unknown key 'los'", id="unknown key"),
        pytest.param({"batch": []}, "task.batch", "at least 1", id="no batch"),
        pytest.param({"batch": ["x", "class"]}, "task.batch.1", "cannot be an attribute", id="a keyword"),
        pytest.param({"loss": "cross_entropy(logts, y)"}, "task.loss", "unknown name 'logts'", id="unknown name"),
        pytest.param({"loss": "open('x')"}, "task.loss", "open", id="a function outside the language"),
        pytest.param({"outputs": {"logits": "model(z)"}}, "task.outputs.logits", "unknown name 'z'", id="in an output"),
        pytest.param({"metrics": {"m": {"_target_": "os.getcwd"}}}, "task.metrics.m._target_", "not a metric", id="os"),
        pytest.param(
            {"metrics": {"m": {"_target_": "torchmetrics.Accuracy", "task": "nope"}}},
            "task.metrics.m",
            "Accuracy:",
            id="arg",
        ),
        pytest.param(
            {"metrics": {"m": {"_target_": "torchmetrics.MeanMetric", "of": "x"}}},
            "task.metrics.m.of",
            "got 'x'",
            id="of",
        ),
    ],
)
def test_task_is_refused(change, address, what, refusal):
    problem = refusal(read_task, {**TASK, **change})
    assert problem.address == address
    assert what in problem.what


def test_all_problems_of_a_task_are_told_at_once():
    with pytest.raises(BuilderError, match="2 problems"):
        read_task({**TASK, "loss": "a", "outputs": {"logits": "b"}})
