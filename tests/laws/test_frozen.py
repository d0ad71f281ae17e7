"""Law L5: what is frozen keeps every bit through every optimizer, and across save and resume; the rest is trained."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_models import D, batch, models

import builder
from builder.build import materialise, prove
from builder.hold import hold_frozen

STEPS = 6
STEPS_AN_EPOCH = 2
OPTIMIZERS = {
    "SGD with momentum": lambda parameters, **how: torch.optim.SGD(
        parameters, lr=0.05, momentum=0.9, weight_decay=0.1, **how
    ),
    "Adam": lambda parameters, **how: torch.optim.Adam(parameters, lr=0.01, **how),
    "Adam with decay": lambda parameters, **how: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1, **how),
    "AdamW": lambda parameters, **how: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, **how),
}
WAYS = [{}, {"foreach": True}, {"fused": True}]


@st.composite
def periods(draw):
    """Nothing, `until`, `from` or both, by epoch or by step, as a rule has them."""
    unit = draw(st.sampled_from(["step", "epoch"]))
    last = STEPS if unit == "step" else STEPS // STEPS_AN_EPOCH
    start, length = draw(st.integers(0, last - 1)), draw(st.integers(1, last))
    given_as = draw(st.sampled_from(["for ever", "until", "from", "from and until"]))
    period = {"from": {unit: start}, "until": {unit: start + length}}
    return {key: period[key] for key in period if key in given_as} if given_as != "until" else {"until": {unit: length}}


@st.composite
def frozen_models(draw):
    """A random model with freeze rules over some of its layers, and one layer that is free."""
    data = draw(models(least=2))
    aliases = {alias.partition(".")[0] for alias in data.get("tie", {})}
    owners = [name for name in data["layers"] if name not in aliases or name.startswith("linear")]
    assume(len(owners) >= 2)
    layers = draw(st.lists(st.sampled_from(owners[1:]), min_size=1, max_size=3, unique=True))
    rules = {}
    for number, layer in enumerate(layers):
        match = {"match": [layer, f"{layer}.*"]}
        if layer.startswith(("batch", "block")) and draw(st.booleans()):
            match["eval"] = True
        low = draw(st.integers(0, D - 2))
        some = {**match, "rows": [low, draw(st.integers(low + 1, D - 1))]}
        kind = draw(st.sampled_from(["whole", "rows", "rows and whole"]))
        if kind == "rows and whole":
            rules[f"rows{number}"] = some
            period = draw(periods())
            rules[f"whole{number}"] = {**match, **(period if period else {"until": {"step": 2}})}
            rules[f"whole{number}"].pop("eval", None)
            if rules[f"whole{number}"].get("from") in ({"step": 0}, {"epoch": 0}) and "until" not in period:
                del rules[f"whole{number}"]
        else:
            rules[f"{kind}{number}"] = {**(some if kind == "rows" else match), **draw(periods())}
    return {**data, "freeze": rules}


def is_on(rule, step):
    now = {"step": step, "epoch": step // STEPS_AN_EPOCH}
    begun = all(now[unit] >= count for unit, count in rule.get("from", {}).items())
    return begun and all(now[unit] < count for unit, count in rule.get("until", {}).items())


def frozen_rows(data, name, size, step):
    """The rows of a parameter that its rules freeze at a step, by the rules' own words."""
    found = set()
    for rule in data["freeze"].values():
        layer = rule["match"][0]
        if (name == layer or name.startswith(f"{layer}.")) and is_on(rule, step):
            found |= set(range(*rule.get("rows", (0, size))))
    return found


def bits(tensor):
    return tensor.detach().clone().view(torch.int32) if tensor.is_floating_point() else tensor.detach().clone()


def start(proof, make, way, seed):
    model = materialise(proof, seed=seed)
    optimizer = make(list(model.parameters()), **way)
    return model, optimizer, hold_frozen(model, optimizer)


def train(model, optimizer, frozen, steps, clip=None):
    """Takes steps; yields the step, and what the model's tensors were before it, bit for bit."""
    for step in steps:
        frozen.at(step // STEPS_AN_EPOCH, step)
        before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
        torch.manual_seed(step)  # of the dropout
        optimizer.zero_grad()
        loss = model(**batch(step)).square().mean()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        yield step, before


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    frozen_models(), st.sampled_from(list(OPTIMIZERS)), st.sampled_from(WAYS), st.sampled_from([None, 0.1]), st.data()
)
def test_frozen_values_keep_every_bit_and_others_move_also_after_resume(data, name, way, clip, draw):
    make = OPTIMIZERS[name]
    proof = prove(data)
    model, optimizer, frozen = start(proof, make, way, seed=0)
    saved_at = draw.draw(st.integers(1, STEPS - 1), label="saved after step")
    aliases = data.get("tie", {})
    for step, before in train(model, optimizer, frozen, range(STEPS), clip):
        after = {key: bits(tensor) for key, tensor in model.state_dict().items()}
        for key, parameter in model.named_parameters():
            if key in aliases:
                continue
            size = parameter.shape[0]
            held = frozen_rows(data, key, size, step)
            moved = (before[key] != after[key]).reshape(size, -1).any(1)
            assert not moved[sorted(held)].any(), f"{key} moved at step {step}"
            if parameter.grad is None:
                assert not moved.any()
                continue
            gradient = parameter.grad.reshape(size, -1).abs().amax(1)
            assert not gradient[sorted(held)].any()
            reached = [row for row in range(size) if row not in held and gradient[row] > 1e-3]
            assert moved[reached].all(), f"{key} did not move at step {step}"
        for rule in data["freeze"].values():
            if rule.get("eval") and is_on(rule, step):
                inside = [key for key, _ in model.named_buffers() if key.startswith(f"{rule['match'][0]}.")]
                assert all(torch.equal(before[key], after[key]) for key in inside)
        if step + 1 == saved_at:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    resumed, other, again = start(proof, make, way, seed=1)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for _ in train(resumed, other, again, range(saved_at, STEPS), clip):
        pass
    for key, tensor in model.state_dict().items():
        assert torch.equal(bits(tensor), bits(resumed.state_dict()[key])), f"{key} differs after resume"


BATCH_NORM = {
    "inputs": {"x": {"shape": ["batch", D]}},
    "layers": {
        "norm": {"kind": "BatchNorm1d", "num_features": D},
        "drop": {"kind": "Dropout", "p": 0.5},
        "fc": {"kind": "Linear", "in_features": D, "out_features": D},
    },
}


def test_batch_norm_keeps_its_statistics_only_under_eval():
    x = batch()["x"]
    for held in (True, False):
        model = builder.build(BATCH_NORM, freeze={"norm": {"match": "norm.*", "eval": held}})
        before = {name: tensor.clone() for name, tensor in model.named_buffers()}
        for _ in range(3):
            model.eval()
            model.train()(x)
        kept = all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
        assert kept == held


def test_dropout_is_off_under_eval():
    model = builder.build(BATCH_NORM, freeze={"all": {"match": ["norm.*", "drop"], "eval": True}}).train()
    x = batch()["x"]
    assert torch.equal(model(x), model(x))
    assert not torch.equal(*(builder.build(BATCH_NORM).train()(x) for _ in range(2)))


FINE_TUNE = {
    "args": {"old": 30, "vocab": 40, "d": 8},
    "inputs": {"ids": {"shape": ["batch", 3], "dtype": "int64", "range": [0, "=vocab"]}},
    "layers": {
        "emb": {"kind": "Embedding", "num_embeddings": "=vocab", "embedding_dim": "=d"},
        "head": {"kind": "Linear", "in_features": "=d", "out_features": "=vocab"},
    },
    "forward": "head(emb(ids).mean(1))",
    "freeze": {"old_words": {"match": "emb.weight", "rows": [0, "=old"]}},
}


@pytest.mark.parametrize("way", WAYS, ids=["as torch chooses", "foreach", "fused"])
def test_first_rows_of_an_embedding_stay_through_a_thousand_steps_of_adamw(way):
    model = builder.build(FINE_TUNE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, **way)
    hold_frozen(model, optimizer)
    before = bits(model.emb.weight)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(1000):
        ids = torch.randint(0, 40, (16, 3), generator=generator)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids), ids[:, 0])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = bits(model.emb.weight)
    assert torch.equal(after[:30], before[:30])
    assert (after[30:] != before[30:]).any(1).all()
    assert sum(losses[-100:]) < sum(losses[:100])


def test_rows_are_the_same_bits_with_and_without_their_neighbours_decay():
    """The control: without the rule, decay alone moves a row that no batch names."""
    moved = {}
    for rules in ({}, FINE_TUNE["freeze"]):
        model = builder.build({**FINE_TUNE, "freeze": rules})
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        hold_frozen(model, optimizer)
        before = bits(model.emb.weight)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.full((4, 3), 35)).square().mean().backward()
            optimizer.step()
        moved[bool(rules)] = (bits(model.emb.weight) != before).any(1)
    assert moved[False].all() and not moved[True][:30].any() and moved[True][30:].all()


def test_two_switches_in_a_row_are_what_each_is_alone():
    """Gradual unfreezing: at each switch one more layer moves, and those still frozen keep their bits."""
    layers = {name: {"kind": "Linear", "in_features": D, "out_features": D} for name in ("a", "b", "c")}
    rules = {"a": {"match": "a.*", "until": {"epoch": 2}}, "b": {"match": "b.*", "until": {"epoch": 1}}}
    model = builder.build({"inputs": {"x": {"shape": ["batch", D]}}, "layers": layers, "freeze": rules})
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    frozen = hold_frozen(model, optimizer)
    seen = [{name: bits(p) for name, p in model.named_parameters()}]
    for epoch in range(3):
        frozen.at(epoch, epoch)
        optimizer.zero_grad()
        model(batch()["x"]).square().mean().backward()
        optimizer.step()
        seen.append({name: bits(p) for name, p in model.named_parameters()})
    moved = [
        "".join(n for n in "abc" if not torch.equal(x[f"{n}.weight"], y[f"{n}.weight"])) for x, y in pairwise(seen)
    ]
    assert moved == ["c", "bc", "abc"]
