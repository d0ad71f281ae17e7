"""Freeze rules: what they come to, what is refused, which modules stay in eval mode, what the table says."""

# ruff: noqa: E501 (a row of a table reads better on one line)

import copy
import math

import pytest
import torch
from torch import nn

import builder
from builder.build import proof_of, prove
from builder.freeze import check_something_trains
from builder.hold import hold_frozen
from builder.lit_module import plan_run
from builder.table import as_data, render_table, rows, totals

MODEL = {
    "args": {"vocab": 10, "d": 4},
    "inputs": {"ids": {"shape": ["batch"], "dtype": "int64", "range": [0, "=vocab"]}},
    "blocks": {
        "Layer": {
            "args": ["d"],
            "inputs": ["x"],
            "layers": {
                "fc": {"kind": "Linear", "in_features": "=d", "out_features": "=d"},
                "bn": {"kind": "BatchNorm1d", "num_features": "=d"},
                "drop": {"kind": "Dropout", "p": 0.5},
                "gain": {"kind": "Parameter", "shape": ["=d"], "init": "ones"},
            },
            "forward": "drop(bn(fc(x))) * gain",
        }
    },
    "layers": {
        "act": {"kind": "ReLU"},
        "emb": {"kind": "Embedding", "num_embeddings": "=vocab", "embedding_dim": "=d"},
        "body": {"kind": "Layer", "d": "=d", "repeat": 2},
        "temperature": {"kind": "Parameter", "shape": [], "init": "ones"},
        "head": {"kind": "Linear", "in_features": "=d", "out_features": "=vocab", "bias": False},
    },
    "forward": "x = act(emb(ids))\nfor layer_ in body:\n    x = layer_(x)\nreturn head(x) * temperature",
}
TIED = {**MODEL, "tie": {"head.weight": "emb.weight"}}
IDS = torch.arange(10)


def with_rules(model=MODEL, /, **rules):
    return {**copy.deepcopy(model), "freeze": rules}


def plan(**rules):
    return prove(with_rules(**rules)).freeze


# ---- what is refused -----------------------------------------------------------------------------------------------

EMB = {"match": "emb.*"}


@pytest.mark.parametrize(
    ("rules", "address", "cause", "remedy"),
    [
        pytest.param({"f": {**EMB, "rows": [0, 11]}}, "freeze.f.rows", "'emb.weight' of shape (10, 4) has rows 0:10", "stay within [0, 10]", id="rows beyond the end"),
        pytest.param({"f": {**EMB, "rows": [-1, 3]}}, "freeze.f.rows", "rows -1:3 are not all there", "stay within [0, 10]", id="negative rows"),
        pytest.param({"f": {**EMB, "rows": ["=vocab // 2", 5]}}, "freeze.f.rows", "rows 5:5 are none", "low below high", id="no rows"),
        pytest.param({"f": {**EMB, "rows": ["=vocab / 2", 10]}}, "freeze.f.rows.0", "=vocab / 2 is 5.0", "a whole number", id="half a row"),
        pytest.param({"f": {**EMB, "rows": [0, "=vocap"]}}, "freeze.f.rows.1", "unknown name 'vocap'", "did you mean 'vocab'", id="rows over an unknown name"),
        pytest.param({"f": {**EMB, "rows": [0]}}, "freeze.f.rows", "got [0]", "[low, high]", id="one row bound"),
        pytest.param({"f": {**EMB, "rows": 3}}, "freeze.f.rows", "got 3", "[low, high]", id="rows that are a number"),
        pytest.param({"f": {**EMB, "rows": [False, 3]}}, "freeze.f.rows", "False is a bool", "a whole number or an `=` expression", id="a bool for a row"),
        pytest.param({"f": {"match": "temperature", "rows": [0, 1]}}, "freeze.f.rows", "a single number", "leave rows out", id="rows of a single number"),
        pytest.param({"f": {**EMB, "until": {"epoch": True}}}, "freeze.f.until", "epoch is True", "a whole number", id="a bool for an epoch"),
        pytest.param({"f": {**EMB, "until": {"step": -1}}}, "freeze.f.until", "step is -1", "zero or more", id="a negative step"),
        pytest.param({"f": {**EMB, "until": {"epcoh": 3}}}, "freeze.f.until", "unknown key 'epcoh'", "did you mean 'epoch'", id="until misspelt within"),
        pytest.param({"f": {**EMB, "from": {}}}, "freeze.f.from", "neither epoch nor step", "write {epoch: 3}", id="an empty from"),
        pytest.param({"f": {**EMB, "from": 3}}, "freeze.f.from", "3 is a int", "write {epoch: 3}", id="from that is a number"),
        pytest.param({"f": {**EMB, "until": {"epoch": 1, "step": 9}}}, "freeze.f.until", "epoch and step together", "or {step: 100}", id="epoch and step together"),
        pytest.param({"f": {**EMB, "from": {"epoch": 1}, "until": {"step": 9}}}, "freeze.f", "from counts epochs and until counts steps", "one unit", id="two units"),
        pytest.param({"f": {**EMB, "from": {"epoch": 3}, "until": {"epoch": 3}}}, "freeze.f", "freezes nothing: until epoch 3", "raise until", id="until that is from"),
        pytest.param({"f": {**EMB, "until": {"step": 0}}}, "freeze.f", "freezes nothing: until step 0", "raise until", id="until the start"),
        pytest.param({"f": {**EMB, "untill": {"epoch": 3}}}, "freeze.f.untill", "unknown key 'untill'", "did you mean 'until'", id="until misspelt"),
        pytest.param({"f": {**EMB, "eval": "yes"}}, "freeze.f.eval", "valid boolean", "", id="eval that is text"),
        pytest.param({"f": {"match": "temperature", "eval": True}}, "freeze.f.eval", "holds no module", "leave eval out", id="eval of a raw Parameter"),
        pytest.param({"f": {"match": "head", "eval": True}}, "freeze.f.eval", "changes nothing", "match them: head.*", id="eval of a Linear alone"),
        pytest.param({"f": {"match": "act", "eval": True}}, "freeze.f.eval", "changes nothing", "remove it", id="eval of an activation"),
        pytest.param({"f": {"match": "*.dorp", "eval": True}}, "freeze.f", "matches no parameter", "the model has: emb.weight", id="eval that matches nothing"),
        pytest.param({"f": EMB, "g": {**EMB, "rows": [0, 3]}}, "freeze.g", "decides nothing: freeze.f froze all", "remove it", id="rows of what is frozen whole"),
        pytest.param({"g": {**EMB, "rows": [0, 3]}, "f": EMB}, "freeze.g", "decides nothing: freeze.f froze all", "remove it", id="rows of what is frozen whole, in the other order"),
        pytest.param(
            {"f": {**EMB, "rows": [0, 4]}, "g": {**EMB, "rows": [4, 8]}, "h": {**EMB, "rows": [2, 6]}},
            "freeze.h", "decides nothing: freeze.f, freeze.g froze all", "remove it", id="rows that two others freeze",
        ),
        pytest.param(
            {"f": {**EMB, "until": {"epoch": 3}}, "g": {**EMB, "from": {"epoch": 1}, "until": {"epoch": 2}}},
            "freeze.g", "decides nothing: freeze.f", "remove it", id="a period within another",
        ),
        pytest.param(
            {"f": {"match": "body.*", "eval": True}, "g": {"kind": "Dropout", "eval": True}},
            "freeze.g", "decides nothing: freeze.f", "remove it", id="modules that are in eval mode already",
        ),
    ],
)  # fmt: skip
def test_wrong_rule_is_refused_with_address_cause_and_remedy(rules, address, cause, remedy, given, refusal):
    problem = refusal(builder.build, given(with_rules(**rules)))
    assert (problem.address, cause in problem.what, remedy in problem.hint) == (address, True, True), str(problem)


def test_eval_of_a_layer_whose_parameters_are_tied_names_the_owner(refusal):
    problem = refusal(prove, with_rules(TIED, f={"match": "head", "eval": True}))
    assert (problem.address, problem.hint) == ("freeze.f.eval", "to freeze its parameters, match them: emb.weight")


def test_wrong_rules_are_reported_all_at_once():
    wrong = {"f": {**EMB, "rows": [0, 11]}, "g": {"match": "no"}, "h": {"match": "temperature", "rows": [0, 1]}}
    with pytest.raises(builder.BuilderError) as caught:
        prove(with_rules(**wrong))
    assert [problem.address for problem in caught.value.problems] == ["freeze.f.rows", "freeze.g", "freeze.h.rows"]


@pytest.mark.parametrize(
    ("rules", "address", "cause", "remedy"),
    [
        pytest.param({"f": {"mach": "*"}}, "freeze.f.mach", "unknown key", "did you mean 'match'", id="unknown key"),
        pytest.param({"f": {"until": {"epoc": 1}}}, "freeze.f.until", "unknown key 'epoc'", "'epoch'", id="unit"),
        pytest.param({"f": {"rows": [0, 99]}}, "freeze.f.rows", "are not all there", "except it", id="rows"),
        pytest.param(
            {"f": {"match": "head.*"}}, "freeze.f", "tied to 'emb.weight'", "'emb.weight' instead", id="alias"
        ),
        pytest.param(
            {"f": {**EMB, "until": {"epoch": 0}}},
            "freeze.f",
            "freezes nothing",
            "raise until",
            id="a period of nothing",
        ),
    ],
)
def test_wrong_rule_from_outside_is_refused(rules, address, cause, remedy, given, refusal):
    problem = refusal(builder.build, given(TIED), freeze=rules)
    assert (problem.address, cause in problem.what, remedy in problem.hint) == (address, True, True), str(problem)


def test_rule_of_the_file_may_be_overtaken_from_outside_but_not_the_other_way(refusal):
    model = with_rules(vocab={**EMB, "rows": [0, 3]})
    assert prove(model, freeze={"embeddings": {"kind": "Embedding"}}).frozen == {"emb.weight": "freeze.embeddings"}
    wider = with_rules(embeddings={"kind": "Embedding"})
    assert refusal(prove, wider, freeze={"vocab": {**EMB, "rows": [0, 3]}}).address == "freeze.vocab"


@pytest.mark.parametrize(
    ("rules", "cause"),
    [
        pytest.param({"all": {}}, "everything is frozen: all 145 parameters (by freeze.all)", id="for ever"),
        pytest.param(
            {"a": {"except": "emb.*"}, "b": {**EMB, "rows": [0, 5]}, "c": {**EMB, "rows": [5, "=vocab"]}},
            "everything is frozen: all 145 parameters (by freeze.a, freeze.b, freeze.c)",
            id="by rows that are all rows",
        ),
        pytest.param(
            {"all": {"until": {"epoch": 2}}},
            "everything is frozen at epoch 0, step 0: all 145 parameters (by freeze.all)",
            id="at the start",
        ),
        pytest.param(
            {"a": {"match": "*.*", "from": {"step": 5}}, "b": {"match": "temperature"}},
            "everything is frozen at epoch 0, step 5: all 145 parameters (by freeze.a, freeze.b)",
            id="later",
        ),
    ],
)
def test_nothing_left_to_train_is_a_problem(rules, cause):
    (problem,) = check_something_trains(plan(**rules))
    assert (problem.address, problem.what) == ("freeze", cause)
    assert "leave something to train" in problem.hint


# ---- what rules come to --------------------------------------------------------------------------------------------


def test_what_is_frozen_is_the_union_of_the_rules_of_that_moment():
    found = plan(
        vocab={**EMB, "rows": [0, "=vocab // 2"]},
        warm={**EMB, "until": {"epoch": 3}},
        late={**EMB, "rows": [4, 8], "from": {"step": 100}},
    )
    assert found.spans("emb.weight", 0, 0) == ((0, 10),)
    assert found.spans("emb.weight", 2, 500) == ((0, 10),)
    assert found.spans("emb.weight", 3, 50) == ((0, 5),)
    assert found.spans("emb.weight", 3, 100) == ((0, 8),)
    assert found.spans("head.weight", 0, 0) == ()
    assert (found.times("epoch"), found.times("step")) == ((3,), (100,))
    assert (found.forever, found.scheduled, found.frozen_values("emb.weight")) == ({}, ("emb.weight",), 20)


def test_union_does_not_depend_on_the_order_of_rules():
    rules = {"a": {**EMB, "rows": [0, 3]}, "b": {**EMB, "rows": [2, 7]}, "c": {**EMB, "until": {"epoch": 1}}}
    first, second = plan(**rules), plan(**dict(reversed(rules.items())))
    for epoch in range(3):
        assert first.spans("emb.weight", epoch, 0) == second.spans("emb.weight", epoch, 0)


def test_rows_that_are_all_rows_freeze_the_parameter_whole():
    model = builder.build(with_rules(a={**EMB, "rows": [0, 6]}, b={**EMB, "rows": [6, 10]}))
    assert not model.emb.weight.requires_grad
    assert proof_of(model).frozen == {"emb.weight": "freeze.a, freeze.b"}


def test_from_the_start_for_ever_is_no_schedule():
    assert plan(f={**EMB, "from": {"epoch": 0}}).forever == {"emb.weight": "freeze.f"}


def test_built_model_is_at_the_start_of_its_schedule():
    model = builder.build(with_rules(f={**EMB, "until": {"epoch": 1}}, g={"match": "head.*", "from": {"epoch": 1}}))
    assert (model.emb.weight.requires_grad, model.head.weight.requires_grad) == (False, True)


# ---- the table -----------------------------------------------------------------------------------------------------

TOLD = with_rules(
    vocab={**EMB, "rows": [0, 3]},
    warm={**EMB, "until": {"epoch": 2}},
    body={"match": "body.0.*"},
    late={"match": "head.*", "from": {"step": 5}, "until": {"step": 9}},
)


@pytest.mark.parametrize("of", [pytest.param(lambda proof: None, id="proof"), pytest.param(lambda proof: builder.build(TOLD), id="model")])  # fmt: skip
def test_table_tells_rows_and_schedule(of):
    proof = prove(TOLD)
    table = rows(proof, of(proof))
    by_name = {row.name: row for row in table}
    assert by_name["emb.weight"].held == ("rows 0:3 (freeze.vocab)", "until epoch 2 (freeze.warm)")
    assert (by_name["emb.weight"].frozen_by, by_name["emb.weight"].frozen, by_name["emb.weight"].trainable) == (
        None,
        12,
        True,
    )
    assert by_name["head.weight"].held == ("from step 5 until step 9 (freeze.late)",)
    assert (by_name["body.0.fc.weight"].frozen_by, by_name["body.0.fc.weight"].held) == ("freeze.body", ())
    state = dict(zip(by_name, render_table(table, "").columns[5]._cells, strict=True))
    assert state["emb.weight"] == "frozen rows 0:3 (freeze.vocab), until epoch 2 (freeze.warm)"
    assert state["head.weight"] == "frozen from step 5 until step 9 (freeze.late)"
    assert state["body.0.fc.weight"] == "frozen (freeze.body)"
    assert state["body.1.fc.weight"] == "trainable"
    body = 4 * 4 + 4 + 4 + 4 + 4
    assert {key: totals(table)[key] for key in ("parameters", "trainable", "frozen")} == {
        "parameters": 145, "trainable": 145 - 12 - body, "frozen": 12 + body,
    }  # fmt: skip
    assert as_data(table)["parameters"][0]["held"] == by_name["emb.weight"].held


def test_frozen_rows_of_a_tie_are_counted_once():
    table = rows(prove(with_rules(TIED, vocab={**EMB, "rows": [0, 3]})))
    assert totals(table)["frozen"] == 12
    assert {row.name: row.frozen for row in table if row.name in ("emb.weight", "head.weight")} == {
        "emb.weight": 12,
        "head.weight": 0,
    }


# ---- modules in eval mode ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "lines"),
    [
        pytest.param({"match": "body.*"}, ["self.body.eval()"], id="all within a list"),
        pytest.param({"match": "body.1.*"}, ["self.body[1].eval()"], id="one of a list"),
        pytest.param({"match": "*"}, ["self.act.eval()", "self.emb.eval()", "self.body.eval()", "self.head.eval()"], id="everything"),
        pytest.param({"kind": "Dropout"}, ["self.body[0].drop.eval()", "self.body[1].drop.eval()"], id="by kind, without parameters"),
        pytest.param({"kind": "BatchNorm*", "match": "body.0.*"}, ["self.body[0].bn.eval()"], id="by kind and path"),
        pytest.param({"match": "*.bn.weight"}, ["self.body[0].bn.eval()", "self.body[1].bn.eval()"], id="by its parameter"),
        pytest.param({"match": "body.*", "except": "body.0.*"}, ["self.body[1].eval()"], id="with an exception"),
        pytest.param({"match": "body.*", "except": "*.drop"}, ["self.body[0].fc.eval()", "self.body[0].bn.eval()", "self.body[1].fc.eval()", "self.body[1].bn.eval()"], id="but the dropout"),
        pytest.param({"min_ndim": 2, "match": "body.0.*"}, ["self.body[0].fc.eval()"], id="by the dimensions of its parameters"),
    ],
)  # fmt: skip
def test_source_keeps_the_topmost_modules_of_a_rule_in_eval_mode(rule, lines, given):
    model = with_rules(f={**rule, "eval": True})
    source = builder.code(given(model))
    assert [line.strip() for line in source.split("super().train(mode)\n")[1].splitlines()] == [*lines, "return self"]


def test_printed_source_alone_keeps_modules_in_eval_mode():
    model = with_rules(f={"match": "body.0.*", "eval": True})
    namespace = {}
    exec(builder.code(model), namespace)
    alone, built = namespace["Model"](), builder.build(model)
    for each in (alone, built):
        modes = {name: module.training for name, module in each.named_modules()}
        assert not any(modes[name] for name in modes if name.startswith("body.0"))
        assert modes["body.1.drop"] and modes["body"] and modes[""]
        assert each.train() is each and not each.body[0].drop.training
        assert not each.eval().body[1].drop.training
        assert each.train().body[1].drop.training and not each.body[0].bn.training
    for compiled in (torch.compile(built, backend="eager"), nn.Sequential(built), copy.deepcopy(built)):
        compiled.eval()
        compiled.train()
        inner = [module for name, module in compiled.named_modules() if name.endswith("body.0.bn")]
        assert len(inner) == 1 and not inner[0].training


def test_without_eval_no_train_is_written():
    assert "def train" not in builder.code(with_rules(f={"match": "body.0.*"}))


# ---- holding against an optimizer of one's own -----------------------------------------------------------------------


def take_step(model, optimizer):
    optimizer.zero_grad()
    loss = model(IDS).square().mean()
    loss.backward()
    optimizer.step()


def test_hold_keeps_rows_in_a_loop_of_ones_own():
    model = builder.build(with_rules(vocab={**EMB, "rows": [2, 7]}))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    hold_frozen(model, optimizer)
    before = model.emb.weight.detach().clone()
    for _ in range(5):
        take_step(model, optimizer)
    moved = (model.emb.weight != before).all(1)
    assert moved.tolist() == [True, True, False, False, False, False, False, True, True, True]
    assert not model.emb.weight.grad[2:7].any() and model.emb.weight.grad[:2].any()


def test_hold_of_a_model_without_parameters_says_so(refusal):
    model = builder.build({"inputs": {"x": {"shape": [2]}}, "layers": {"act": {"kind": "ReLU"}}})
    problem = refusal(hold_frozen, model, torch.optim.SGD([{"params": []}]))
    assert problem.what == "there is nothing to train: the model has no parameters"


def test_norm_of_the_gradient_leaves_frozen_rows_out():
    def norm(**rules):
        model = builder.build(with_rules(**rules)).eval()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        hold_frozen(model, optimizer)
        model(IDS).square().mean().backward()
        others = [p.grad for name, p in model.named_parameters() if name != "emb.weight"]
        of_free_rows = torch.nn.utils.get_total_norm([model.emb.weight.grad[5:], *others])
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]), of_free_rows

    found, expected = norm(vocab={**EMB, "rows": [0, 5]})
    assert torch.allclose(found, expected)
    found, of_free_rows = norm()
    assert found > of_free_rows


def test_switch_clears_the_stale_gradient_and_the_optimizer_state_of_that_parameter_alone():
    model = builder.build(with_rules(f={**EMB, "from": {"step": 3}, "until": {"step": 5}}))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    frozen = hold_frozen(model, optimizer)
    for step in range(8):
        frozen.at(0, step)
        if step in (3, 4):
            assert model.emb.weight.grad is None and not model.emb.weight.requires_grad
            assert model.emb.weight not in optimizer.state
        take_step(model, optimizer)
    assert optimizer.state[model.emb.weight]["step"] == 3
    assert optimizer.state[model.head.weight]["step"] == 8


def test_parameter_that_thaws_joins_fused_momentum_as_it_joins_the_plain_one():
    """Fused SGD of torch 2.13 takes no parameter without momentum beside others that have it."""

    def trained(**way):
        model = builder.build(with_rules(f={**EMB, "until": {"step": 2}})).eval()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1, **way)
        frozen = hold_frozen(model, optimizer)
        for step in range(5):
            frozen.at(0, step)
            take_step(model, optimizer)
        return model.emb.weight

    fused, plain = trained(fused=True), trained()
    assert torch.allclose(fused, plain, atol=1e-6)


def test_switch_of_rows_clears_the_moments_that_decay_made_of_them():
    model = builder.build(with_rules(f={**EMB, "rows": [0, 5], "until": {"step": 2}}))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    frozen = hold_frozen(model, optimizer)
    for step in range(2):
        frozen.at(0, step)
        take_step(model, optimizer)
    assert optimizer.state[model.emb.weight]["momentum_buffer"][:5].any()
    frozen.at(0, 2)
    assert model.emb.weight not in optimizer.state and model.head.weight in optimizer.state


@pytest.mark.parametrize("load_first", [True, False], ids=["loaded, then held", "held, then loaded"])
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_hold_goes_on_from_a_checkpoint_in_either_order(load_first, at):
    rules = {"a": {**EMB, "rows": [0, 5], "until": {"step": 2}}, "b": {"match": "head.*", "from": {"epoch": 1}}}

    def start(seed):
        model = builder.build(with_rules(**rules), seed=seed).eval()
        return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)

    def run(model, optimizer, frozen, steps):
        for step in steps:
            frozen.at(step // 3, step)
            take_step(model, optimizer)

    model, optimizer = start(0)
    frozen = hold_frozen(model, optimizer)
    run(model, optimizer, frozen, range(at))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    run(model, optimizer, frozen, range(at, 8))

    other, other_optimizer = start(1)
    frozen = None if load_first else hold_frozen(other, other_optimizer)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    run(other, other_optimizer, frozen or hold_frozen(other, other_optimizer), range(at, 8))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_schedule_that_a_checkpoint_knows_nothing_of_clears_the_state_that_came_with_it():
    model = builder.build(with_rules()).eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    take_step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    model = builder.build(with_rules(f={**EMB, "until": {"step": 3}})).eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    frozen = hold_frozen(model, optimizer)
    optimizer.load_state_dict(saved)
    assert model.emb.weight in optimizer.state
    for step in (1, 2):
        frozen.at(0, step)
        take_step(model, optimizer)
    frozen.at(0, 3)
    assert model.emb.weight not in optimizer.state, "stale momentum would move it as it thaws"
    assert model.head.weight in optimizer.state


def test_scheduled_eval_returns_after_train_and_ends_with_its_period():
    model = builder.build(with_rules(f={"match": "body.0.*", "eval": True, "until": {"epoch": 2}}, g={"match": "body.0.drop", "eval": True}))  # fmt: skip
    frozen = hold_frozen(model, torch.optim.SGD(model.parameters(), 0.1))
    for epoch in range(4):
        model.train()
        frozen.at(epoch, 10 * epoch)
        assert model.body[0].bn.training == (epoch >= 2)
        assert model.body[1].bn.training and not model.body[0].drop.training
    model.eval()
    frozen.at(0, 0)
    frozen.at(2, 20)
    assert not model.body[0].bn.training, "thawing puts no module into train mode in a model that is not"


def test_rows_are_held_with_sparse_gradients():
    layers = {"emb": {"kind": "Embedding", "num_embeddings": 10, "embedding_dim": 4, "sparse": True}}
    data = {"inputs": {"ids": {"dtype": "int64"}}, "layers": layers, "freeze": {"f": {"rows": [2, 7]}}}
    model = builder.build(data)
    optimizer = torch.optim.SparseAdam(model.parameters())
    hold_frozen(model, optimizer)
    before = model.emb.weight.detach().clone()
    for _ in range(3):
        take_step(model, optimizer)
    assert sorted(set(model.emb.weight.grad.coalesce().indices()[0].tolist())) == [0, 1, 7, 8, 9]
    assert (model.emb.weight != before).any(1).tolist() == [True] * 2 + [False] * 5 + [True] * 3


def test_rows_are_held_under_lbfgs():
    model = builder.build(with_rules(f={**EMB, "rows": [2, 7]})).eval()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4)
    hold_frozen(model, optimizer)
    with torch.no_grad():
        model.emb.weight[3] = -0.0  # which adding zero would turn into 0.0
    before = model.emb.weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = model(IDS).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(model.emb.weight.view(torch.int32)[2:7], before.view(torch.int32)[2:7])
    assert not torch.equal(model.emb.weight[:2], before[:2])


def test_lbfgs_with_a_schedule_is_refused(refusal):
    model = builder.build(with_rules(f={**EMB, "until": {"epoch": 2}}))
    problem = refusal(hold_frozen, model, torch.optim.LBFGS(model.parameters()))
    assert (problem.address, problem.what.startswith("freezes until epoch 2, which LBFGS")) == ("freeze.f", True)
    assert "another optimizer" in problem.hint


def test_parameter_that_thaws_outside_the_optimizer_is_refused(refusal):
    model = builder.build(with_rules(f={**EMB, "until": {"epoch": 2}}))
    only = [parameter for parameter in model.parameters() if parameter.requires_grad]
    problem = refusal(hold_frozen, model, torch.optim.SGD(only, 0.1))
    assert (problem.address, problem.hint) == ("emb.weight", "give it to the optimizer")
    assert "until epoch 2 (freeze.f)" in problem.what


def test_rows_of_a_sharded_parameter_are_refused(refusal):
    """Its slices are copies, so that nothing would be held."""
    model = builder.build(with_rules(f={**EMB, "rows": [2, 7]}, g={"match": "head.*"}))
    model.emb.weight.device_mesh = model.head.weight.device_mesh = "as of a DTensor"
    problem = refusal(hold_frozen, model, torch.optim.SGD(model.parameters(), 0.1))
    assert (problem.address, problem.what) == ("emb.weight", "is sharded, and frozen rows 2:7 (freeze.f)")
    assert "do not shard it" in problem.hint


def test_module_of_others_is_refused(refusal):
    linear = nn.Linear(2, 2)
    assert "was not built by builder" in refusal(hold_frozen, linear, torch.optim.SGD(linear.parameters())).what


def test_moment_at_which_everything_is_frozen_is_refused_when_it_comes(refusal):
    model = builder.build(with_rules(a={**EMB, "from": {"epoch": 1}}, b={"except": "emb.*", "from": {"step": 5}}))
    frozen = hold_frozen(model, torch.optim.SGD(model.parameters(), 0.1))
    frozen.at(1, 4)
    problem = refusal(frozen.at, 1, 5)
    assert problem.what == "everything is frozen at epoch 1, step 5: all 145 parameters (by freeze.a, freeze.b)"


def test_all_that_an_optimizer_has_is_frozen_for_ever_which_is_refused_unless_it_has_more(refusal):
    model, head = builder.build(with_rules(all={})), nn.Linear(2, 2)
    assert "everything is frozen" in refusal(hold_frozen, model, torch.optim.SGD(model.parameters())).what
    hold_frozen(model, torch.optim.SGD([*model.parameters(), *head.parameters()])).at(3, 7)


class BreaksOff(torch.optim.SGD):
    """Moves everything and is interrupted before its step has ended."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.5)
        raise KeyboardInterrupt


def test_rows_moved_by_a_step_that_broke_off_can_be_put_back():
    model = builder.build(with_rules(f={**EMB, "rows": [2, 7]}))
    optimizer = BreaksOff(model.parameters(), 0.1)
    frozen = hold_frozen(model, optimizer)
    before = model.emb.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert not torch.equal(model.emb.weight[2:7], before[2:7])
    frozen.restore()
    assert torch.equal(model.emb.weight[2:7], before[2:7])


def test_removed_hold_holds_no_longer():
    model = builder.build(with_rules(f={**EMB, "rows": [2, 7]}))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hold_frozen(model, optimizer).remove()
    before = model.emb.weight.detach().clone()
    take_step(model, optimizer)
    assert not torch.equal(model.emb.weight[2:7], before[2:7])


def test_values_loaded_later_are_the_ones_that_are_held():
    model = builder.build(with_rules(f={**EMB, "rows": [2, 7]}))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    hold_frozen(model, optimizer)
    take_step(model, optimizer)
    other = builder.build(MODEL, seed=5)
    model.load_state_dict(other.state_dict())
    take_step(model, optimizer)
    assert torch.equal(model.emb.weight[2:7], other.emb.weight[2:7])


# ---- a run ---------------------------------------------------------------------------------------------------------


def config(optimizer="torch.optim.SGD", **rules):
    return {
        "model": with_rules(**rules),
        "task": {"batch": ["ids", "y"], "loss": "cross_entropy(model(ids), y)"},
        "optimizer": {"_target_": optimizer, "lr": 0.1},
    }


def test_run_with_nothing_to_train_or_a_schedule_under_lbfgs_is_refused(refusal, given):
    everything = refusal(plan_run, given(config(all={})))
    assert (everything.address, "everything is frozen: all 145" in everything.what) == ("freeze", True)
    scheduled = refusal(plan_run, given(config("torch.optim.LBFGS", f={**EMB, "until": {"epoch": 2}})))
    assert (scheduled.address, "LBFGS" in scheduled.what) == ("freeze.f", True)
    plan_run(given(config("torch.optim.LBFGS", f=EMB)))


def test_schedule_in_several_processes_is_refused(refusal, monkeypatch):
    lit = builder.lightning_module(config(f={**EMB, "until": {"epoch": 2}}))
    monkeypatch.setattr(type(lit), "trainer", type("Trainer", (), {"world_size": 2}))
    problem = refusal(lit.setup, "fit")
    assert (problem.address, "2 processes" in problem.what) == ("freeze", True)
    assert "trainer.devices=1" in problem.hint
    lit.setup("test")


def test_scheduled_parameters_are_in_the_optimizer_and_those_that_never_thaw_are_not():
    lit = builder.lightning_module(config(f={**EMB, "until": {"epoch": 2}}, g={"match": "body.0.*"}, h={"match": "head.*", "rows": [0, 2]}))  # fmt: skip
    held = {id(p) for group in lit.configure_optimizers().param_groups for p in group["params"]}
    names = {name for name, parameter in lit.model.named_parameters() if id(parameter) in held}
    assert names == {name for name, _ in lit.model.named_parameters() if not name.startswith("body.0")}
    assert math.isfinite(lit.task.loss(lit.model, (IDS, IDS)).item())
