"""Every wrong config ends in exit code 2 and one message with address, cause and remedy; nothing else is written."""

# ruff: noqa: E501 (a row of the table reads better on one line)

import pytest
import torch

from builder.config import composed
from builder.errors import BuilderError

RUN = ["stats=none", "trainer=cpu"]
PARAMETER = "+model.layers.w={kind:Parameter,shape:[10]}"


@pytest.mark.parametrize(
    ("overrides", "address", "cause", "remedy"),
    [
        # What Hydra composes
        pytest.param(["optimizer.lrr=1"], "optimizer.lrr:", "no such group or key", "did you mean 'lr'?", id="unknown key"),
        pytest.param(["nokey=3"], "nokey:", "no such group or key", "known: callbacks", id="unknown key at the top"),
        pytest.param(
            ["init=kaimng_normal"], "init/kaimng_normal:", "no config 'kaimng_normal'", "did you mean 'kaiming_normal'?",
            id="unknown choice of a group",
        ),
        pytest.param(["+recipes=char_gtp"], "recipes/char_gtp:", "no config", "did you mean 'char_gpt'?", id="unknown recipe"),
        pytest.param(["seed=[1"], "seed=[1:", "no viable alternative", "override_grammar", id="broken override"),
        pytest.param(
            ["data.seed=${nope}"], "data.seed (override", "Interpolation key 'nope' not found", "give the value",
            id="unresolved interpolation",
        ),
        pytest.param(["~callbacks"], "callbacks (override", "is missing", "leave it in", id="a section taken out"),
        pytest.param(["~stats"], "stats (override", "is missing", "stats=none is without", id="a group taken out"),
        pytest.param(["~stats.enabled"], "stats.enabled (override", "given None", "true or false", id="whether statistics are on"),
        # The model
        pytest.param(
            ["+model.layer={}"], "layer (override +model.layer={}):", "unknown key 'layer'", "did you mean 'layers'?",
            id="unknown key of the model",
        ),
        pytest.param(
            ["model.layers.fc1.kind=Linaer"], "layers.fc1.kind (override model.layers.fc1.kind=Linaer):",
            "unknown kind 'Linaer'", "did you mean 'Linear'?", id="unknown kind",
        ),
        pytest.param(
            ["+model.layers.fc1.out_feature=3"], "layers.fc1.out_feature (override", "has no argument 'out_feature'",
            "did you mean 'out_features'?", id="misspelt argument",
        ),
        pytest.param(
            ["model.layers.fc2.in_features=7"], "layers.fc2 (digits_mlp.yaml:", "X [7,", "fc2.weight (",
            id="shapes that do not fit between layers",
        ),
        pytest.param(
            ["model.args.hidden=true"], "layers.fc1.out_features (digits_mlp.yaml:", "is a number, got True",
            "YAML reads yes/no/on/off/true/false as bools", id="a bool for a number",
        ),
        pytest.param(
            ["model.args.hidden=-3"], "layers.fc1.out_features (digits_mlp.yaml:", "is -3", "one or more",
            id="a negative size",
        ),
        pytest.param(
            [PARAMETER, '+model.forward="head(act1(fc1(x))) + w"'], "layers.w (override", "without an init",
            "give it init: normal", id="a raw Parameter without an init",
        ),
        pytest.param(
            ['model.layers.fc1.out_features="=hiden*2"'], "layers.fc1.out_features (override", "unknown name 'hiden'",
            "did you mean 'hidden'?", id="unknown name in an expression",
        ),
        pytest.param(
            ['model.layers.fc1.out_features="=hidden*"'], "layers.fc1.out_features (override", "hidden*",
            "", id="an expression that does not parse",
        ),
        pytest.param(
            ['+model.forward="head(fc1(z))"'], "forward (override", "unknown name 'z'", "known:",
            id="unknown name in forward",
        ),
        pytest.param(
            ["+init.x={match:'encoder.*',policy:zeros}"], "init.x (override", "matches no parameter", "the model has: fc1.weight",
            id="an init rule that matches nothing",
        ),
        pytest.param(
            ["+init.x={match:'head.*',policy:kaimng_uniform}"], "init.x.policy (override", "unknown policy 'kaimng_uniform'",
            "did you mean 'kaiming_uniform'?", id="unknown policy",
        ),
        pytest.param(
            ["+freeze.x={match:'encoder.*'}"], "freeze.x (override", "matches no parameter", "the model has: fc1.weight",
            id="a freeze rule that matches nothing",
        ),
        pytest.param(
            ["+freeze.all={match:'*'}"], "freeze (override", "everything is frozen", "leave something to train",
            id="everything frozen",
        ),
        pytest.param(
            ["+model.tie={head.weight:fc1.weight}"], "tie.head.weight (override", "'fc1.weight' is (", "equal shapes",
            id="a tie of different shapes",
        ),
        pytest.param(
            ["+model.tie={fc2.bias:fc1.bias,fc1.bias:fc2.bias}"], "tie.fc2.bias (override", "a cycle: fc2.bias -> fc1.bias",
            "remove its tie", id="a cycle of ties",
        ),
        # The task
        pytest.param(
            ['task.loss="cross_entropy(logts, y)"'], "task.loss (override", "unknown name 'logts'", "did you mean 'logits'?",
            id="unknown name in the loss",
        ),
        pytest.param(
            ["+task.los=x"], "task.los (override", "unknown key 'los'", "did you mean 'loss'?", id="unknown key of the task",
        ),
        pytest.param(
            ["task.metrics.accuracy._target_=torchmetrics.Acuracy"], "task.metrics.accuracy._target_ (override",
            "is not a metric of torchmetrics", "did you mean 'Accuracy'?", id="unknown metric",
        ),
        pytest.param(
            ["task.metrics.accuracy._target_=os.system"], "task.metrics.accuracy._target_ (override",
            "'os.system' is not a metric of torchmetrics", "torchmetrics.NAME", id="a metric that is a command",
        ),
        pytest.param(
            ["+task.metrics.accuracy.nclasses=3"], "task.metrics.accuracy (task/classification.yaml", "nclasses", "mend its arguments",
            id="unknown argument of a metric",
        ),
        pytest.param(
            ["task.batch=[x,y,z]"], "task.batch (override", "batches of 2, the task names 3: x, y, z", "name each part",
            id="a batch of another arity",
        ),
        pytest.param(
            ["task.loss=logits"], "task.loss (override", "the loss is (64, 10) float32", "mean()", id="a loss that is no scalar"
        ),
        pytest.param(
            ['task.loss="mse_loss(logits, x)"'], "task (task/classification.yaml", "on the first batch ((64, 64) float32, (64,) int64)",
            "compare loss, outputs and metrics", id="a loss of two shapes",
        ),
        pytest.param(
            ["+recipes=three_kinds", "model.inputs.ids.range=null", "model.layers.embedding.num_embeddings=40"],
            "layers.embedding (three_kinds.yaml:", "'embedding' has rows 0 to 39", "raise num_embeddings",
            id="an index out of an Embedding's range in the first batch",
        ),
        pytest.param(
            ["+recipes=three_kinds", "model.args.vocab=50"], "inputs.ids.range (three_kinds.yaml:",
            "declared 0 to below 50", "mend the data, or the args", id="a batch out of the declared range",
        ),
        # Optimizer, scheduler, trainer
        pytest.param(
            ["+optimizer.momentun=0"], "optimizer.momentun (override", "has no argument 'momentun'", "known:",
            id="unknown argument of the optimizer",
        ),
        pytest.param(["optimizer.lr=fast"], "optimizer.lr (override", "lr is a number, got 'fast'", "write 0.001", id="text for lr"),
        pytest.param(["optimizer.lr=-1"], "optimizer.lr (override", "lr is -1", "zero or more", id="a negative lr"),
        pytest.param(
            ["optimizer._target_=torch.optim.Adan"], "optimizer._target_ (override", "is not a class of torch.optim",
            "did you mean 'Adam'?", id="unknown optimizer",
        ),
        pytest.param(
            ["optimizer=adamw", "optimizer.betas=[0.9]"], "optimizer (optimizer/adamw.yaml", "AdamW does not run with", "mend its arguments",
            id="an argument that torch refuses when the optimizer is made",
        ),
        pytest.param(
            ["scheduler=cosine", "scheduler.T_max=often"], "scheduler (scheduler/cosine.yaml", "CosineAnnealingLR does not run with",
            "mend its arguments", id="an argument that torch refuses at the first step",
        ),
        pytest.param(
            ["scheduler=cosine", "scheduler.interval=hourly"], "scheduler.interval (override", "unknown interval 'hourly'",
            "known: epoch, step", id="unknown interval of the scheduler",
        ),
        pytest.param(
            ["+trainer.max_epoch=3"], "trainer.max_epoch (override", "no argument 'max_epoch'", "did you mean 'max_epochs'?",
            id="unknown key of the trainer",
        ),
        pytest.param(
            ["trainer.max_epochs=many", "scheduler=none"], "trainer.max_epochs (override", "got 'many'", "Optional[int]",
            id="text for a number of epochs",
        ),
        pytest.param(
            ["trainer=gpu"], "trainer (trainer/gpu.yaml", "No supported gpu backend", "trainer=auto or trainer=cpu", id="no GPU at hand",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        # The run
        pytest.param(
            ["monitor=val/acuracy"], "monitor (override", "no metric 'val/acuracy'", "did you mean 'val/accuracy'?",
            id="unknown metric to monitor",
        ),
        pytest.param(["mode=most"], "mode (override", "unknown mode 'most'", "known: max, min", id="unknown mode"),
        pytest.param(["seed=true"], "seed (override", "got True", "a whole number from 0", id="a bool for a seed"),
        pytest.param(["seed=-1"], "seed (override", "got -1", "a whole number from 0", id="a negative seed"),
        pytest.param(["rng=torhc"], "rng (override", "unknown rng 'torhc'", "did you mean 'torch'?", id="unknown rng"),
        pytest.param(["test=maybe"], "test (override", "got 'maybe'", "true or false", id="text for a bool"),
        pytest.param(
            ["early_stopping.patience=soon"], "early_stopping.patience (override", "got 'soon'", "a whole number", id="text for patience"
        ),
        pytest.param(
            ["ckpt_path=nowhere/last.ckpt"], "ckpt_path (override", "no checkpoint 'nowhere/last.ckpt'", "RUN/checkpoints",
            id="missing checkpoint",
        ),
        pytest.param(
            ["stats=default", "stats.every_n_steps=0"], "stats.every_n_steps (override", "given 0", "at least 1",
            id="a bad distance of statistics",
        ),
        pytest.param(
            ["stats=default", "stats.select={match:'encoder.*'}"], "stats.select (override", "matches no parameter",
            "known: fc1.bias", id="statistics that select nothing",
        ),
        pytest.param(
            ["stats=default", "stats.enabled=perhaps"], "stats.enabled (override", "given 'perhaps'", "true or false",
            id="a word for whether statistics are on",
        ),
        pytest.param(
            ["+stats.onnonfinite=warn"], "stats.onnonfinite (override", "unknown key", "did you mean 'on_nonfinite'?",
            id="unknown key of statistics that are off",
        ),
        pytest.param(
            ["stats.on_nonfinite=stopp"], "stats.on_nonfinite (override", "unknown action 'stopp'", "did you mean 'stop'?",
            id="a bad value of statistics that are off",
        ),
        pytest.param(
            ["stats=default", "+stats.everyn=3"], "stats.everyn (override", "unknown key", "did you mean 'every_n_steps'?",
            id="unknown key of statistics",
        ),
        pytest.param(["+stats.directory=x"], "stats.directory (override", "unknown key", "known:", id="the statistics' directory"),
        pytest.param(["+stats.stacked=true"], "stats.stacked (override", "unknown key", "known:", id="stacked statistics"),
        pytest.param(
            ["stats=default", "stats.to_loggers=null"], "stats.to_loggers (override", "given None", "[]: none", id="null for measures",
        ),
        pytest.param(
            ["stats=default", "stats.to_loggers=3"], "stats.to_loggers (override", "given 3", "list of measures",
            id="a number for measures",
        ),
        pytest.param(
            ["stats=default", "stats.select=fc1*"], "stats.select (override", "given 'fc1*'", "{match: 'fc1*'}",
            id="a glob for a selector",
        ),
        pytest.param(
            ["stats=default", "stats.select={min_ndim:3}"], "stats.select (override", "matches no parameter",
            "without min_ndim it matches fc1.weight", id="statistics of dimensions that nothing has",
        ),
        pytest.param(
            ["stats=default", "stats.outputs=[fc1,fc9]"], "stats.outputs (override", "'fc9' matches no layer", "did you mean 'fc",
            id="statistics of a layer that is not there",
        ),
        pytest.param(["data.batch_size=0"], "data.batch_size (override", "0 given", "at least 1", id="a bad argument of the data"),
        pytest.param(
            ["+data.shufle=1"], "data (data/digits.yaml", "unexpected keyword argument 'shufle'", "mend data._target_ or its arguments",
            id="unknown argument of the data",
        ),
        pytest.param(
            ["logger.csv._target_=nowhere.Logger"], "logger.csv (override", "No module named 'nowhere'", "mend logger.csv._target_",
            id="unknown logger",
        ),
        pytest.param(
            ["+callbacks.x._target_=collections.OrderedDict"], "callbacks.x (override", "makes a OrderedDict, not a Callback",
            "mend callbacks.x._target_", id="a callback that is none",
        ),
        pytest.param(["callbacks=3"], "callbacks (override", "got 3", "by name", id="a number for the callbacks"),
        pytest.param(
            ["+callbacks.y={_target_: pytorch_lightning.callbacks.Timer}", "+callbacks.z={_target_: pytorch_lightning.callbacks.Timer}"],
            "callbacks (config.yaml", "more than one stateful callback of type `Timer`", "leave all but one out",
            id="two callbacks that a checkpoint cannot tell apart",
        ),
        pytest.param(
            ["stats=default", "+callbacks.x={_target_: builder.stats.callback.ParameterStatistics}"], "stats.directory",
            "more than one callback would write statistics", "a directory of its own",
            id="a callback that the run has already",
        ),
    ],
)  # fmt: skip
def test_wrong_config_is_refused_with_address_cause_and_remedy(command, overrides, address, cause, remedy):
    ended = command(*RUN, *overrides)
    assert ended.code == 2
    assert f"  {address}" in ended.err
    assert cause in ended.err
    assert remedy in ended.err
    assert "Traceback" not in ended.err + ended.out
    assert ended.written == []


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("stats=null", "stats: got null"), ("optimizer=NULL", "optimizer: got null"), ("+recipes=5", "recipes: got 5"),
        ("stats=true", "stats: got True"), ("model=gpt,3", "model: got 3"),
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_group_is_refused_with_its_files(text, given):
    with pytest.raises(BuilderError, match=f"{given}: a group needs one of its files\n"):
        composed([text])


def test_problems_of_a_stage_are_told_at_once(command):
    ended = command(*RUN, "mode=most", "test=maybe", "monitor=val/x")
    assert ended.err.startswith("config: 3 problems\n")


def test_checkpoint_of_another_model_or_training_is_refused_by_what_differs(command):
    small = ["model.args.hidden=8", "trainer.max_epochs=1", "test=false", "logger=none"]
    made = command(*RUN, *small, into="made")
    saved = f"ckpt_path={made.directory}/checkpoints/last.ckpt"
    ended = command(*RUN, *small, "model.args.hidden=9", saved)
    assert (ended.code, ended.written) == (2, [])
    assert "the checkpoint is of another model: fc1.weight is (8, 64), the model's (9, 64); " in ended.err
    for override, refused in [
        ("optimizer=sgd", "its optimizer was no SGD: one has "),
        ("optimizer.lr=0.5", "lr is 0.5 in the config and 0.003 in the checkpoint, which replaces it"),
        ("scheduler=none", "the checkpoint's run had a scheduler, and this one has no"),
        ("trainer.max_epochs=60", "give scheduler.T_max=1: a run goes on with what it had"),
    ]:
        ended = command(*RUN, *small, saved, override)
        assert (ended.code, ended.written) == (2, []), override
        assert refused in ended.err


def test_file_that_is_no_checkpoint_is_refused(command, tmp_path):
    (tmp_path / "text.ckpt").write_text("text")
    ended = command(*RUN, f"ckpt_path={tmp_path}/text.ckpt")
    assert (ended.code, ended.written) == (2, [])
    assert "is not a checkpoint" in ended.err
