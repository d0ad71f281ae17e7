"""Models of the zoo that transformers has as well: the same outputs and gradients from the package's own checkpoints.

A reference is small, has random values everywhere, and saves itself as the published checkpoints are saved; the weights
go over by the schemes `conf/init/*_huggingface.yaml` alone. So do the gradients, as one more checkpoint.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from equality import GRADIENTS, MODES, OUTPUTS, Case, backward, check_tools, leaves
from omegaconf import OmegaConf
from torch import nn

import builder
from builder.build import proof_of, prove
from builder.cli import main

transformers = pytest.importorskip("transformers", reason='install the extra "zoo"')

STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
INIT = Path(__file__).parents[2] / "conf" / "init"


@dataclass(frozen=True, kw_only=True)
class Published(Case):
    """A model file, and the model of transformers that it must equal.

    Attributes:
        path: Rule of the scheme that takes the path.
        saved: The part of the reference that published checkpoints hold.
        numel: Parameters of the file's default, as published.
        float32_norms: Whether the reference computes its norms in float32 whatever its dtype.
        same_start: Whether the reference's own init is that of the file.
    """

    names: str = ""
    path: str = ""
    saved: object = lambda reference: reference
    numel: int = 0
    float32_norms: bool = False
    same_start: bool = True

    def made_reference(self):
        """The reference with random values, running statistics among them."""
        reference = super().made_reference()
        for name, buffer in reference.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
        return reference

    def scheme(self, folder):
        """The init scheme of the file, with the path of a checkpoint."""
        scheme = OmegaConf.load(INIT / f"{self.model}_huggingface.yaml")
        scheme[self.path].path = str(folder / "model.safetensors")
        return OmegaConf.to_container(OmegaConf.create({"init": scheme}), resolve=True)["init"]

    def built(self, reference, folder):
        """The model, with the reference's values, running statistics among them, by the scheme alone."""
        self.saved(reference).save_pretrained(folder)
        return builder.build(self.file, args=self.args, init=self.scheme(folder))


def load_statistics(model, reference):
    """Copies the running statistics of a reference, for comparison."""
    theirs = dict(reference.named_buffers())
    for name, buffer in model.named_buffers():
        owner, _, local = name.rpartition(".")
        (key,) = proof_of(model).decisions[f"{owner}.weight"].arguments["key"]
        buffer.copy_(theirs[f"{key.rpartition('.')[0]}.{local}"])


def ids_of(batch, vocab=50, time=11):
    return torch.randint(0, vocab, (batch, time))


def mask_of(batch, time=11):
    return torch.arange(time) < torch.randint(1, time + 1, (batch, 1))


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=12, n_embd=24, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=None,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=500000.0, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def bert():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=12, type_vocab_size=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertModel(config)


def t5():
    config = transformers.T5Config(
        vocab_size=50, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=3, dropout_rate=0.0,
        relative_attention_num_buckets=8, relative_attention_max_distance=9,
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=12, patch_size=4,
        num_labels=5, layer_norm_eps=1e-6,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet(layer_type, stem):
    config = transformers.ResNetConfig(
        embedding_size=stem, hidden_sizes=[8, 12, 16], depths=[2, 1, 2], layer_type=layer_type, num_labels=5
    )
    return transformers.ResNetForImageClassification(config)


def logits(reference, inputs):
    return reference(*inputs.values()).logits


def masked(output):
    """Calls a reference that takes a mask."""

    def call(reference, inputs):
        names = {"ids": "input_ids", "segments": "token_type_ids", "mask": "attention_mask"}
        given = {names[name]: value.long() for name, value in inputs.items()}
        return output(reference(**given))

    return call


BERT = {"vocab": 50, "context": 12, "types": 3, "d": 24, "heads": 3, "depth": 2, "hidden": 40}
T5 = {"vocab": 50, "d": 24, "heads": 3, "width": 6, "depth": 2, "hidden": 40, "buckets": 8, "furthest": 9}
VIT = {"image": 12, "patch": 4, "classes": 5, "d": 24, "heads": 3, "depth": 2, "hidden": 40}
CASES = [
    Published(
        "gpt2",
        {"vocab": 50, "context": 12, "d": 24, "heads": 3, "depth": 2},
        reference=gpt2,
        inputs=lambda batch: {"ids": ids_of(batch)},
        call=logits,
        path="weights",
        saved=lambda reference: reference.transformer,
        numel=124_439_808,
    ),
    Published(
        "llama3",
        {"vocab": 50, "d": 32, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 40},
        reference=llama,
        inputs=lambda batch: {"ids": ids_of(batch)},
        call=logits,
        path="embed",
        numel=8_030_261_248,
        float32_norms=True,
    ),
    Published(
        "bert",
        BERT,
        reference=bert,
        inputs=lambda batch: {"ids": ids_of(batch), "segments": ids_of(batch, 3), "mask": mask_of(batch)},
        call=masked(lambda output: (output.last_hidden_state, output.pooler_output)),
        path="word",
        numel=4_385_920,
        same_start=False,  # transformers does not cut the normal distribution off, as the paper's own code does
    ),
    Published(
        "t5_encoder",
        T5,
        reference=t5,
        inputs=lambda batch: {"ids": ids_of(batch, time=30), "mask": mask_of(batch, 30)},
        call=masked(lambda output: output.last_hidden_state),
        path="shared",
        numel=35_330_816,
        float32_norms=True,
    ),
    Published(
        "vit",
        VIT,
        reference=vit,
        inputs=lambda batch: {"images": torch.randn(batch, 3, 12, 12)},
        call=logits,
        path="token",
        numel=86_567_656,
    ),
    Published(
        "resnet18",
        {"classes": 5, "widths": [8, 12, 16], "depths": [2, 1, 2]},
        reference=lambda: resnet("basic", 8),
        inputs=lambda batch: {"images": torch.randn(batch, 3, 40, 48)},
        call=logits,
        path="stem",
        numel=11_689_512,
    ),
    Published(
        "resnet50",
        {"classes": 5, "stem_width": 6, "widths": [8, 12, 16], "depths": [2, 1, 2]},
        reference=lambda: resnet("bottleneck", 6),
        inputs=lambda batch: {"images": torch.randn(batch, 3, 40, 48)},
        call=logits,
        path="stem",
        numel=25_557_032,
    ),
]
QUICK = ("gpt2", "t5_encoder", "resnet18")  # of the compiled ones, those that are not left to -m slow
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No network, no bars."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.disable_progress_bar()


def in_float64(reference, case):
    """A reference in float64; norms that go by way of float32 become torch's own."""
    for module in list(reference.modules()) if case.float32_norms else ():
        for name, child in list(module.named_children()):
            if type(child).__name__ in ("LlamaRMSNorm", "T5LayerNorm"):
                exact = nn.RMSNorm(child.weight.shape, child.variance_epsilon)
                exact.weight = child.weight
                setattr(module, name, exact)
    return reference.double()


def gradients(model, reference, case, folder):
    """The gradients of a reference under the names of the model: saved as weights and read by the same scheme."""
    holder = copy.deepcopy(reference).float()
    with torch.no_grad():
        for mine, theirs in zip(holder.parameters(), reference.parameters(), strict=True):
            mine.copy_(theirs.grad)
    return dict(case.built(holder, folder / "gradients").named_parameters())


@EACH
@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, id="float32"), pytest.param(torch.float64, id="float64")]
)
def test_model_equals_its_reference(case, dtype, training, tmp_path):
    reference = case.made_reference()
    model = case.built(reference, tmp_path)
    (report,) = proof_of(model).pretrained
    assert {key.rpartition(".")[2] for key in report.unexpected} <= STATISTICS, "every weight has its place"
    reference = in_float64(reference, case) if dtype == torch.float64 else reference
    model, reference = model.to(dtype).train(training), reference.train(training)
    inputs = case.made_inputs(dtype)
    ours, theirs = leaves(model(**inputs)), leaves(case.call(reference, inputs))
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype == dtype
        assert (a - b).abs().max() <= OUTPUTS[dtype]
        assert b.std() > 0.02, "the reference says something"
    backward(ours)
    backward(theirs)
    for name, expected in gradients(model, reference, case, tmp_path).items():
        found = model.get_parameter(name).grad
        assert (found - expected).abs().max() <= GRADIENTS[torch.float32] * expected.abs().max(), name
        assert expected.abs().max() > 0, name
    compare_statistics(model, reference, dtype)


def compare_statistics(model, reference, dtype):
    moved = copy.deepcopy(model)
    load_statistics(moved, reference)
    for (name, found), expected in zip(model.named_buffers(), moved.buffers(), strict=True):
        assert (found - expected).abs().max() <= OUTPUTS[dtype], name


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case.model in QUICK else pytest.mark.slow, id=case.model) for case in CASES],
)
def test_model_compiles_exports_copies_and_pickles(case):
    check_tools(case)


@EACH
def test_source_alone_gives_the_same_outputs(case):
    model = builder.build(case.file, args=case.args).eval()
    namespace = {"__name__": "alone"}
    exec(builder.code(case.file, args=case.args), namespace)
    alone = namespace[type(model).__name__](**proof_of(model).expansion.args).eval()
    alone.load_state_dict(model.state_dict())
    inputs = case.made_inputs(torch.float32)
    for a, b in zip(leaves(alone(**inputs)), leaves(model(**inputs)), strict=True):
        assert torch.equal(a, b)


@EACH
def test_default_is_the_published_size(case):
    parameters = {id(parameter): parameter for parameter in prove(case.file).meta.parameters()}
    assert sum(parameter.numel() for parameter in parameters.values()) == case.numel


@pytest.mark.parametrize("case", [case for case in CASES if case.same_start], ids=lambda case: case.model)
def test_model_starts_as_its_reference_does(case, tmp_path):
    torch.manual_seed(0)
    mine = dict(builder.build(case.file, args=case.args).named_parameters())
    theirs = dict(case.built(case.reference(), tmp_path).named_parameters())
    for name, expected in theirs.items():
        if expected.std() == 0:
            assert torch.equal(mine[name], expected), name
        else:
            assert abs(mine[name].std() / expected.std() - 1) < 6 / (2 * expected.numel()) ** 0.5, name
            assert abs(mine[name].mean()) < 6 * expected.std() / expected.numel() ** 0.5, name


@EACH
def test_scheme_without_a_path_says_which_key_to_give(case, capsys):
    assert main(["check", f"model={case.model}", f"init={case.model}_huggingface"]) == 2
    assert f"init.{case.path}.path" in capsys.readouterr().err
