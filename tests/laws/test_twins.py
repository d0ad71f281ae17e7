"""With `rng: torch` a model equals its hand-written twin: names, initial values and a hundred losses, bit for bit."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import builder

CONF = Path(__file__).parents[2] / "conf" / "model"

MLP = {
    "inputs": {"x": {"shape": ["batch", 64]}},
    "layers": {
        "fc1": {"kind": "Linear", "in_features": 64, "out_features": 128},
        "fc2": {"kind": "Linear", "in_features": 128, "out_features": 128},
        "fc3": {"kind": "Linear", "in_features": 128, "out_features": 10},
    },
    "forward": "fc3(relu(fc2(relu(fc1(x)))))",
}


class MlpTwin(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 128)
        self.fc3 = nn.Linear(128, 10)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


BAG = {
    "args": {"vocab": 50, "d": 16, "classes": 4},
    "inputs": {"ids": {"shape": ["batch", "time"], "dtype": "int64", "range": [0, "=vocab"]}},
    "layers": {
        "emb": {"kind": "Embedding", "num_embeddings": "=vocab", "embedding_dim": "=d"},
        "weight": {"kind": "Parameter", "shape": ["=d", "=classes"], "init": {"policy": "normal", "std": 0.02}},
    },
    "forward": "emb(ids).mean(1) @ weight",
}


class BagTwin(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(50, 16)
        self.weight = nn.Parameter(torch.empty(16, 4))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, ids):
        return self.emb(ids).mean(1) @ self.weight


class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.c_fc = nn.Linear(d, 4 * d)
        self.c_proj = nn.Linear(4 * d, d)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(d)
        self.attn = Attention(d, heads)
        self.ln_2 = nn.LayerNorm(d)
        self.mlp = Mlp(d)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GptTwin(nn.Module):
    def __init__(self, vocab=96, context=64, d=64, heads=4, depth=2):
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.wpe = nn.Embedding(context, d)
        self.h = nn.ModuleList([Block(d, heads) for _ in range(depth)])
        self.ln_f = nn.LayerNorm(d)
        self.gain = nn.Parameter(torch.ones(d))
        self.head = nn.Linear(d, vocab, bias=False)
        self.head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))
            elif parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x) * self.gain)


def floats(generator):
    return torch.randn(32, 64, generator=generator), torch.randint(0, 10, (32,), generator=generator)


def tokens(generator):
    return torch.randint(0, 50, (32, 7), generator=generator), torch.randint(0, 4, (32,), generator=generator)


def text(generator):
    ids = torch.randint(0, 96, (4, 17), generator=generator)
    return ids[:, :-1], ids[:, 1:].flatten()


def losses(model, optimizer, batches):
    moves = optimizer(model.parameters())
    found = []
    generator = torch.Generator().manual_seed(5)
    for _ in range(100):
        x, y = batches(generator)
        loss = F.cross_entropy(model(x).flatten(0, -2), y)
        moves.zero_grad()
        loss.backward()
        moves.step()
        found.append(loss.item())
    return found


OPTIMIZERS = [
    pytest.param(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), id="SGD"),
    pytest.param(lambda parameters: torch.optim.AdamW(parameters, lr=1e-3), id="AdamW"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("source", "twin", "batches"),
    [
        pytest.param(MLP, MlpTwin, floats, id="multilayer perceptron"),
        pytest.param(BAG, BagTwin, tokens, id="bag of embeddings with a raw Parameter"),
        pytest.param(CONF / "gpt.yaml", GptTwin, text, id="GPT with tied embeddings"),
    ],
)
def test_model_equals_its_hand_written_twin(source, twin, batches, optimizer):
    ours = builder.build(source, seed=11, rng="torch")
    torch.manual_seed(11)
    theirs = twin()
    state, expected = ours.state_dict(), theirs.state_dict()
    assert [name for name in state if name in expected] == list(expected), "same names in the same order"
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    found = losses(ours, optimizer, batches)
    assert found == losses(theirs, optimizer, batches)
    assert len(set(found)) > 50, "the losses move"


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        pytest.param("Linear", {"in_features": 5, "out_features": 3}, id="Linear"),
        pytest.param("Bilinear", {"in1_features": 5, "in2_features": 3, "out_features": 2}, id="Bilinear"),
        pytest.param("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2}, id="Conv2d"),
        pytest.param("ConvTranspose1d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, id="ConvTranspose1d"),
        pytest.param("Embedding", {"num_embeddings": 9, "embedding_dim": 4, "padding_idx": 2}, id="Embedding"),
        pytest.param("LSTM", {"input_size": 4, "hidden_size": 3, "num_layers": 2}, id="LSTM"),
        pytest.param("GRUCell", {"input_size": 4, "hidden_size": 3}, id="GRUCell"),
        pytest.param("BatchNorm1d", {"num_features": 4}, id="BatchNorm1d"),
        pytest.param("PReLU", {"init": 0.1}, id="PReLU", marks=pytest.mark.skip("`init` is a key of its own")),
        pytest.param("MultiheadAttention", {"embed_dim": 8, "num_heads": 2, "add_bias_kv": True}, id="attention"),
        pytest.param("TransformerEncoderLayer", {"d_model": 8, "nhead": 2}, id="TransformerEncoderLayer"),
    ],
)
def test_default_has_the_range_that_torch_gives(kind, arguments):
    data = {"inputs": {"x": {}}, "layers": {"layer": {"kind": kind, **arguments}}, "forward": "x"}
    by_torch = builder.build(data, rng="torch", seed=2).state_dict()
    torch.manual_seed(2)
    for name, tensor in getattr(nn, kind)(**arguments).state_dict().items():
        assert torch.equal(by_torch[f"layer.{name}"], tensor), name
    many = [builder.build(data, seed=seed).state_dict() for seed in range(12)]
    for name in by_torch:
        spread = torch.stack([state[name].float() for state in many])
        torch.manual_seed(0)
        theirs = torch.stack(
            [getattr(nn, kind)(**arguments).state_dict()[name.removeprefix("layer.")].float() for _ in many]
        )
        assert (spread == 0).all() == (theirs == 0).all(), name
        if theirs.std() > 0:
            assert 0.4 < spread.std() / theirs.std() < 2.5, name
