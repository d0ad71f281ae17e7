"""Knowledge-graph models of the zoo against PyKEEN's scores, and against the papers' formulas in real numbers."""

import pytest
import torch
import torch.nn.functional as F
from equality import DTYPES, MODES, OUTPUTS, Case, check_equal, check_tools
from torch import nn

import builder
from builder.cli import main

ENTITIES, RELATIONS, D = 14, 6, 8
ARGS = {"entities": ENTITIES, "relations": RELATIONS, "d": D}


def triples(batch):
    return {
        "head": torch.randint(ENTITIES, (batch,)),
        "relation": torch.randint(RELATIONS, (batch,)),
        "tail": torch.randint(ENTITIES, (batch,)),
    }


# ---- the papers' formulas --------------------------------------------------------------------------------------------

FORMULA = """
entities:  {match: entity_embedding.weight, key: E}
relations: {match: relation_embedding.weight, key: R}
"""


class Formula(nn.Module):
    """A score of the embeddings of a triple, one triple at a time."""

    def __init__(self, score, entity_size, relation_size):
        super().__init__()
        self.score = score
        self.E = nn.Parameter(torch.randn(ENTITIES, entity_size))
        self.R = nn.Parameter(torch.randn(RELATIONS, relation_size))

    def forward(self, head, relation, tail):
        triples = zip(head, relation, tail, strict=True)
        return torch.stack([self.score(self.E[h], self.R[r], self.E[t]) for h, r, t in triples])


def unit(e):
    return e / e.square().sum().sqrt()


def parts(e):
    """The real and the imaginary parts of a row that holds them in turn."""
    return e[0::2], e[1::2]


def translation(p):
    return lambda h, r, t: -(((unit(h) + r - unit(t)).abs() ** p).sum() ** (1 / p))


def bilinear(h, r, t):
    return unit(h) @ torch.diag(r) @ unit(t)


def equation_11(s, w, o):
    (re_s, im_s), (re_w, im_w), (re_o, im_o) = parts(s), parts(w), parts(o)
    symmetric = (re_w * re_s * re_o).sum() + (re_w * im_s * im_o).sum()
    return symmetric + (im_w * re_s * im_o).sum() - (im_w * im_s * re_o).sum()


def rotation(p):
    def score(h, angle, t):
        (re_h, im_h), (re_t, im_t) = parts(h), parts(t)
        real = re_h * angle.cos() - im_h * angle.sin() - re_t
        imaginary = re_h * angle.sin() + im_h * angle.cos() - im_t
        return -(((real**2 + imaginary**2).sqrt() ** p).sum() ** (1 / p))

    return score


# ---- PyKEEN ----------------------------------------------------------------------------------------------------------

PYKEEN = """
weights: {match: "*_embedding.weight", key: "{1}_representations.0._embeddings.weight"}
"""
PYKEEN_ROTATE = """
entities: {match: entity_embedding.weight, key: entity._embeddings.weight}
angles:   {match: relation_embedding.weight, key: angles}
"""


def pykeen_triples():
    made = pytest.importorskip("pykeen.triples").CoreTriplesFactory
    return made(torch.tensor([[0, 0, 1]]), num_entities=ENTITIES, num_relations=RELATIONS)


def pykeen(interaction, p=None, dtype=None, normalizer=None):
    """PyKEEN's model around one of its interactions, with entities that are normalised where they are read."""
    return pytest.importorskip("pykeen.models").ERModel(
        triples_factory=pykeen_triples(),
        interaction=interaction,
        interaction_kwargs={} if p is None else {"p": p},
        entity_representations_kwargs={"shape": D, "dtype": dtype, "normalizer": normalizer},
        relation_representations_kwargs={"shape": D, "dtype": dtype},
        random_seed=0,
    )


class PykeenRotate(nn.Module):
    """PyKEEN's interaction and entities; it keeps relations as complex numbers, where the paper has angles.

    Its norm is L2 whatever `p` says (1.11.1), so L1 has the formula alone.
    """

    def __init__(self):
        super().__init__()
        self.interaction = pytest.importorskip("pykeen.nn.modules").RotatEInteraction()
        self.entity = pytest.importorskip("pykeen.nn").Embedding(max_id=ENTITIES, shape=D, dtype=torch.cfloat)
        self.angles = nn.Parameter(torch.rand(RELATIONS, D))

    def forward(self, head, relation, tail):
        angle = self.angles[relation]
        return self.interaction(h=self.entity(head), r=torch.complex(angle.cos(), angle.sin()), t=self.entity(tail))


def score_hrt(reference, inputs):
    return reference.score_hrt(torch.stack([inputs["head"], inputs["relation"], inputs["tail"]], 1)).squeeze(1)


# ---- the table -------------------------------------------------------------------------------------------------------


def by_formula(model, score, entity_size=D, relation_size=D, **args):
    return Case(model, {**ARGS, **args}, FORMULA, lambda: Formula(score, entity_size, relation_size), triples)


def by_pykeen(model, **options):
    args = {"p": options["p"]} if "p" in options else {}
    return Case(model, {**ARGS, **args}, PYKEEN, lambda: pykeen(model, **options), triples, score_hrt)


FORMULAS = {
    "transe, L1": by_formula("transe", translation(1)),
    "transe, L2": by_formula("transe", translation(2), p=2),
    "distmult": by_formula("distmult", bilinear),
    "complex": by_formula("complex", equation_11, 2 * D, 2 * D),
    "rotate, L1": by_formula("rotate", rotation(1), 2 * D),
    "rotate, L2": by_formula("rotate", rotation(2), 2 * D, p=2),
}
LIBRARY = {
    "transe, L1, PyKEEN": by_pykeen("transe", p=1, normalizer=F.normalize),
    "transe, L2, PyKEEN": by_pykeen("transe", p=2, normalizer=F.normalize),
    "distmult, PyKEEN": by_pykeen("distmult", normalizer=F.normalize),
    "complex, PyKEEN": by_pykeen("complex", dtype=torch.cfloat),
    "rotate, L2, PyKEEN": Case("rotate", {**ARGS, "p": 2}, PYKEEN_ROTATE, PykeenRotate, triples),
}
CASES = {**FORMULAS, **LIBRARY}


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_model_equals_its_reference_in_outputs_and_gradients(case, dtype, training, tmp_path):
    check_equal(case, tmp_path, dtype, training=training)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["TransE", "DistMult", "ComplEx"])
def test_scores_are_those_of_the_model_that_pykeen_trains(name, dtype, tmp_path):
    """Entities of unit length: PyKEEN projects them after each step, the model file within forward."""
    made = getattr(pytest.importorskip("pykeen.models"), name)

    def reference():
        model = made(triples_factory=pykeen_triples(), embedding_dim=D, random_seed=0)
        model.post_parameter_update()
        return model

    case = Case(name.lower(), ARGS, PYKEEN, reference, triples, score_hrt)
    theirs = reference()
    ours = case.built(theirs, tmp_path).to(dtype)
    inputs = case.made_inputs(dtype, batch=50)
    difference = ours(**inputs) - score_hrt(theirs.to(dtype), inputs)
    assert difference.abs().max() <= (OUTPUTS[dtype] if name == "ComplEx" else 1e-6), "projected in float32"


@pytest.mark.parametrize("case", FORMULAS.values(), ids=FORMULAS)
def test_model_compiles_exports_copies_pickles_and_stands_alone(case):
    check_tools(case)


@pytest.mark.parametrize("model", ["transe", "distmult", "complex", "rotate"])
def test_model_is_proved_at_its_default_size(model, capsys):
    assert main(["check", str(FORMULAS.get(model, FORMULAS.get(f"{model}, L1")).file)]) == 0
    assert "ok" in capsys.readouterr().out


def test_initial_relations_of_transe_have_unit_length_on_average():
    lengths = builder.build(CASES["transe, L1"].file).relation_embedding.weight.norm(dim=1)
    assert lengths.square().mean().item() == pytest.approx(1, rel=0.02)
