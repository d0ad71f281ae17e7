"""Models of the zoo that have no reference in transformers, against torch and the papers' own formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from equality import DTYPES, MODES, Case, check_equal, check_tools
from torch import nn

import builder
from builder.cli import main

# ---- MLP-Mixer: the listing of appendix E, with Flax's names, layouts and defaults -----------------------------------


class Dense(nn.Module):
    def __init__(self, m, n):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(m, n) / math.sqrt(m))
        self.bias = nn.Parameter(torch.zeros(n))

    def forward(self, x):
        return x @ self.kernel + self.bias


class FlaxLayerNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d))
        self.bias = nn.Parameter(torch.zeros(d))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.scale + self.bias


class MlpBlock(nn.Module):
    def __init__(self, d, mlp_dim):
        super().__init__()
        self.Dense_0 = Dense(d, mlp_dim)
        self.Dense_1 = Dense(mlp_dim, d)

    def forward(self, x):
        y = self.Dense_0(x)
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return self.Dense_1(y)


class MixerBlock(nn.Module):
    def __init__(self, patches, d, tokens_mlp_dim, channels_mlp_dim):
        super().__init__()
        self.LayerNorm_0 = FlaxLayerNorm(d)
        self.token_mixing = MlpBlock(patches, tokens_mlp_dim)
        self.LayerNorm_1 = FlaxLayerNorm(d)
        self.channel_mixing = MlpBlock(d, channels_mlp_dim)

    def forward(self, x):
        y = self.LayerNorm_0(x)
        y = torch.swapaxes(y, 1, 2)
        y = self.token_mixing(y)
        y = torch.swapaxes(y, 1, 2)
        x = x + y
        y = self.LayerNorm_1(x)
        return x + self.channel_mixing(y)


class MlpMixer(nn.Module):
    def __init__(self, patches=4, num_classes=5, num_blocks=2, patch_size=4, hidden_dim=8):
        super().__init__()
        self.patch_size, self.num_blocks = patch_size, num_blocks
        self.stem = Dense(3 * patch_size**2, hidden_dim)  # a convolution of patches that do not overlap
        self.stem.kernel = nn.Parameter(torch.randn(hidden_dim, 3, patch_size, patch_size))
        for i in range(num_blocks):
            setattr(self, f"MixerBlock_{i}", MixerBlock(patches, hidden_dim, 10, 12))
        self.pre_head_layer_norm = FlaxLayerNorm(hidden_dim)
        self.head = Dense(hidden_dim, num_classes)

    def forward(self, images):
        n, _, height, width = images.shape
        s = self.patch_size
        x = images.reshape(n, 3, height // s, s, width // s, s)
        x = torch.einsum("nchywx,dcyx->nhwd", x, self.stem.kernel) + self.stem.bias
        x = x.reshape(n, -1, x.shape[-1])
        for i in range(self.num_blocks):
            x = getattr(self, f"MixerBlock_{i}")(x)
        x = self.pre_head_layer_norm(x)
        x = torch.mean(x, 1)
        return self.head(x)


MIXER = """
stem:       {match: stem.weight, key: stem.kernel}
dense_0:    {match: h.*.*.fc1.weight, key: "MixerBlock_{1}.{2}.Dense_0.kernel", transpose: true}
dense_1:    {match: h.*.*.fc2.weight, key: "MixerBlock_{1}.{2}.Dense_1.kernel", transpose: true}
bias_0:     {match: h.*.*.fc1.bias, key: "MixerBlock_{1}.{2}.Dense_0.bias"}
bias_1:     {match: h.*.*.fc2.bias, key: "MixerBlock_{1}.{2}.Dense_1.bias"}
scale_0:    {match: h.*.ln_1.weight, key: "MixerBlock_{1}.LayerNorm_0.scale"}
scale_1:    {match: h.*.ln_2.weight, key: "MixerBlock_{1}.LayerNorm_1.scale"}
shift_0:    {match: h.*.ln_1.bias, key: "MixerBlock_{1}.LayerNorm_0.bias"}
shift_1:    {match: h.*.ln_2.bias, key: "MixerBlock_{1}.LayerNorm_1.bias"}
last_scale: {match: ln_f.weight, key: pre_head_layer_norm.scale}
last_shift: {match: ln_f.bias, key: pre_head_layer_norm.bias}
head:       {match: head.weight, key: head.kernel, transpose: true}
others:     {match: [stem.bias, head.bias]}
"""


def images(batch):
    return {"images": torch.randn(batch, 3, 8, 8)}


# ---- LSTM and Transformer encoder: torch's own layers ----------------------------------------------------------------

LSTM = """
all: {match: layers.*.*, key: "{2}_l{1}"}
"""
TRANSFORMER = """
qkv_weight: {match: h.*.attn.qkv.weight, key: "layers.{1}.self_attn.in_proj_weight"}
qkv_bias:   {match: h.*.attn.qkv.bias, key: "layers.{1}.self_attn.in_proj_bias"}
proj:       {match: h.*.attn.proj.*, key: "layers.{1}.self_attn.out_proj.{2}"}
fc1:        {match: h.*.fc1.*, key: "layers.{1}.linear1.{2}"}
fc2:        {match: h.*.fc2.*, key: "layers.{1}.linear2.{2}"}
norms:      {match: "h.*.ln_*.*", key: "layers.{1}.norm{2}.{3}"}
"""


def sequences(batch):
    return {"x": torch.randn(batch, 3, 4)}


def sequences_with_states(batch):
    return {**sequences(batch), "h": torch.randn(2, batch, 6), "c": torch.randn(2, batch, 6)}


def sentences(batch):
    lengths = torch.arange(batch) % 5 + 2
    return {"x": torch.randn(batch, 6, 8), "mask": torch.arange(6) < lengths[:, None]}


def torch_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


# ---- DLRM: one sample and one pair of features at a time, with the names of the authors' dlrm_s_pytorch.py -----------

DLRM = """
tables:  {match: bags.*.weight, key: "emb_l.{1}.weight"}
bottom0: {match: bottom_mlp.fc.0.*, key: "bot_l.0.{1}"}
bottom1: {match: bottom_mlp.fc.1.*, key: "bot_l.2.{1}"}
top0:    {match: top_mlp.fc.0.*, key: "top_l.0.{1}"}
top1:    {match: top_mlp.fc.1.*, key: "top_l.2.{1}"}
last:    {match: last.*, key: "top_l.4.{1}"}
"""
TABLES = [7, 5, 9]


class DlrmByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb_l = nn.ModuleList(nn.EmbeddingBag(rows, 4) for rows in TABLES)
        self.bot_l = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
        self.top_l = nn.Sequential(
            nn.Linear(4 + 6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 1), nn.Sigmoid()
        )

    def forward(self, features, ids):
        return torch.stack([self.probability(dense, bags) for dense, bags in zip(features, ids, strict=True)])

    def probability(self, dense, bags):
        x = self.bot_l(dense)
        vectors = [x] + [sum(self.emb_l[k].weight[id_] for id_ in bag) for k, bag in enumerate(bags)]
        pairs = [vectors[i].dot(vectors[j]) for i in range(len(vectors)) for j in range(i)]
        return self.top_l(torch.cat([x, torch.stack(pairs)]))[0]


def clicks(batch):
    return {
        "features": torch.randn(batch, 3),
        "ids": torch.stack([torch.randint(rows, (batch, 2)) for rows in TABLES], 1),
    }


# ---- skip-gram: equation 4, one pair at a time, with the names of the authors' word2vec.c ----------------------------

SKIPGRAM = """
in:  {match: v_in.weight, key: syn0}
out: {match: v_out.weight, key: syn1neg}
"""


class SkipgramByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.syn0 = nn.Parameter(torch.randn(11, 6))
        self.syn1neg = nn.Parameter(torch.randn(11, 6))

    def forward(self, centre, context, negatives):
        losses = []
        for w_i, w_o, drawn in zip(centre, context, negatives, strict=True):
            objective = (1 / (1 + (-self.syn1neg[w_o].dot(self.syn0[w_i])).exp())).log()
            for w in drawn:
                objective = objective + (1 / (1 + self.syn1neg[w].dot(self.syn0[w_i]).exp())).log()
            losses.append(-objective)
        return torch.stack(losses)


def words(batch):
    return {
        "centre": torch.randint(11, (batch,)),
        "context": torch.randint(11, (batch,)),
        "negatives": torch.randint(11, (batch, 4)),
    }


# ---- variational autoencoder: the formulas of appendix C, with its names ---------------------------------------------

VAE = """
hidden_of_z:      {match: decoder.weight, key: W1}
hidden_of_z_bias: {match: decoder.bias, key: b1}
pixels:           {match: pixel.weight, key: W2}
pixels_bias:      {match: pixel.bias, key: b2}
hidden_of_x:      {match: encoder.weight, key: W3}
hidden_of_x_bias: {match: encoder.bias, key: b3}
mean:             {match: mean.weight, key: W4}
mean_bias:        {match: mean.bias, key: b4}
variance:         {match: log_variance.weight, key: W5}
variance_bias:    {match: log_variance.bias, key: b5}
"""


class VaeByHand(nn.Module):
    def __init__(self, pixels=9, hidden=7, latent=2):
        super().__init__()
        sizes = [(hidden, latent), (pixels, hidden), (hidden, pixels), (latent, hidden), (latent, hidden)]
        for i, (m, n) in enumerate(sizes, 1):
            setattr(self, f"W{i}", nn.Parameter(torch.randn(m, n) / math.sqrt(n)))
            setattr(self, f"b{i}", nn.Parameter(torch.randn(m) / 10))

    def forward(self, x, noise):
        h = torch.tanh(torch.einsum("hx,bx->bh", self.W3, x) + self.b3)
        mu = torch.einsum("zh,bh->bz", self.W4, h) + self.b4
        log_sigma_squared = torch.einsum("zh,bh->bz", self.W5, h) + self.b5
        z = mu + log_sigma_squared.exp().sqrt() * noise
        hidden = torch.tanh(torch.einsum("hz,bz->bh", self.W1, z) + self.b1)
        y = 1 / (1 + (-torch.einsum("xh,bh->bx", self.W2, hidden) - self.b2).exp())
        return [(y / (1 - y)).log(), mu, log_sigma_squared]


def pixels(batch):
    return {"x": torch.rand(batch, 9), "noise": torch.randn(batch, 2)}


# ---- the table -------------------------------------------------------------------------------------------------------

CASES = {
    "mixer": Case(
        "mixer",
        {"image": 8, "patch": 4, "classes": 5, "d": 8, "depth": 2, "tokens": 10, "channels": 12},
        MIXER,
        MlpMixer,
        images,
        idle=("*.token_mixing.fc2.bias",),  # the layer norms after it take a shift of all channels out
    ),
    "lstm": Case(
        "lstm",
        {"features": 4, "hidden": 6, "depth": 2},
        LSTM,
        lambda: nn.LSTM(4, 6, 2, batch_first=True),
        sequences,
        lambda reference, inputs: reference(inputs["x"]),
    ),
    "lstm from given states": Case(
        "lstm",
        {"features": 4, "hidden": 6, "depth": 2},
        LSTM,
        lambda: nn.LSTM(4, 6, 2, batch_first=True),
        sequences_with_states,
        lambda reference, inputs: reference(inputs["x"], (inputs["h"], inputs["c"])),
    ),
    "transformer_encoder": Case(
        "transformer_encoder",
        {"d": 8, "heads": 2, "depth": 2, "hidden": 12, "p": 0.0},
        TRANSFORMER,
        torch_encoder,
        lambda batch: {"x": sentences(batch)["x"]},
        lambda reference, inputs: reference(inputs["x"]),
    ),
    "transformer_encoder with padding": Case(
        "transformer_encoder",
        {"d": 8, "heads": 2, "depth": 2, "hidden": 12, "p": 0.0},
        TRANSFORMER,
        torch_encoder,
        sentences,
        lambda reference, inputs: reference(inputs["x"], src_key_padding_mask=~inputs["mask"]),
    ),
    "dlrm": Case(
        "dlrm",
        {"dense": 3, "tables": TABLES, "d": 4, "bottom": [6], "top": [8, 5]},
        DLRM,
        DlrmByHand,
        clicks,
    ),
    "skipgram": Case("skipgram", {"vocab": 11, "d": 6}, SKIPGRAM, SkipgramByHand, words),
    "vae": Case("vae", {"pixels": 9, "hidden": 7, "latent": 2}, VAE, VaeByHand, pixels),
}


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_model_equals_its_reference_in_outputs_and_gradients(case, dtype, training, tmp_path):
    check_equal(case, tmp_path, dtype, training=training)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_model_compiles_exports_copies_pickles_and_stands_alone(case):
    check_tools(case)


@pytest.mark.parametrize("model", sorted({case.model for case in CASES.values()}))
def test_model_is_proved_at_its_default_size(model, capsys):
    assert main(["check", str(CASES[model].file)]) == 0
    assert "ok" in capsys.readouterr().out


def test_dropout_of_the_encoder_drops_in_train_mode_alone():
    given = CASES["transformer_encoder"]
    model = builder.build(given.file, args={**given.args, "p": 0.1})
    without = builder.build(given.file, args=given.args)
    inputs = given.made_inputs(torch.float32)
    assert torch.equal(model.eval()(**inputs), without(**inputs))
    assert not torch.equal(model.train()(**inputs), without(**inputs))


def test_gradients_of_the_variational_bound_are_those_of_equation_10(tmp_path):
    """The loss that a task would write over the outputs, and the paper's formula over the reference's."""
    given = CASES["vae"]
    reference = given.made_reference()
    model = given.built(reference, tmp_path).double()
    inputs = given.made_inputs(torch.float64)
    out = model(**inputs)
    likelihood = F.binary_cross_entropy_with_logits(out["logits"], inputs["x"], reduction="sum")
    divergence = 0.5 * (out["mean"].square() + out["log_variance"].exp() - 1 - out["log_variance"]).sum()
    (likelihood + divergence).backward()
    logits, mu, log_sigma_squared = reference.double()(**inputs)
    y = torch.sigmoid(logits)
    bound = (inputs["x"] * y.log() + (1 - inputs["x"]) * (1 - y).log()).sum()
    bound = bound + 0.5 * (1 + log_sigma_squared - mu**2 - log_sigma_squared.exp()).sum()
    (-bound).backward()
    assert (likelihood + divergence).item() == pytest.approx(-bound.item(), rel=1e-12)
    assert torch.allclose(model.log_variance.weight.grad, reference.W5.grad, rtol=1e-10, atol=1e-12)
