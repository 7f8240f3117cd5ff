"""Each parameter of a layer has the fans that Keras uses for its variable."""

import numpy as np
import pytest
from keras import layers as kl
from keras.src.initializers import random_initializers
from torch import nn

import torch_kinit as kinit
from tests.support.keras_twins import WEIGHTED

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


def _attention_fans(*projections, out):
    names = ["in_proj_weight"] if len(projections) == 1 else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    return {**dict(zip(names, projections, strict=True)), "out_proj.weight": out}


BEFORE = {"convention": "keras-3.14"}
FANS = [  # worked out by hand from Keras' shapes: (*kernel, in / groups, out), transposed (*kernel, out, in), ...
    ("Linear", nn.Linear(5, 7), {"weight": (5, 7), "bias": (7, 7)}),
    ("Conv1d", nn.Conv1d(4, 8, 3), {"weight": (12, 24), "bias": (8, 8)}),
    ("Conv2d", nn.Conv2d(4, 8, (3, 5)), {"weight": (60, 120)}),
    ("Conv2d one channel", nn.Conv2d(1, 8, (3, 5)), {"weight": (15, 120)}),
    ("Conv2d groups", nn.Conv2d(4, 8, (3, 5), groups=2), {"weight": (30, 120)}),
    ("Conv3d", nn.Conv3d(4, 8, 3), {"weight": (108, 216)}),
    ("depthwise Conv1d x2", nn.Conv1d(4, 8, 3, groups=4), {"weight": (12, 6)}),
    ("depthwise Conv2d x1", nn.Conv2d(4, 4, (3, 5), groups=4), {"weight": (60, 15)}),
    ("depthwise Conv2d x2", nn.Conv2d(4, 8, (3, 5), groups=4), {"weight": (60, 30)}),
    ("depthwise Conv3d x2", nn.Conv3d(4, 8, (3, 5, 2), groups=4), {"weight": (120, 60)}),
    ("Conv2d(groups=4)", nn.Conv2d(4, 8, (3, 5), groups=4), {"weight": (15, 120)}, {"depthwise": False}),
    ("ConvTranspose2d", nn.ConvTranspose2d(4, 8, (3, 5)), {"weight": (120, 60)}),
    ("ConvTranspose2d groups", nn.ConvTranspose2d(4, 8, (3, 5), groups=2), {"weight": (60, 60)}),
    ("Embedding", nn.Embedding(11, 4), {"weight": (11, 4)}),
    ("EmbeddingBag", nn.EmbeddingBag(11, 4), {"weight": (11, 4)}),
    ("Bilinear", nn.Bilinear(3, 4, 5), {"weight": (12, 5)}),
    ("LayerNorm", nn.LayerNorm((5, 6)), {"weight": (5, 6)}),
    ("RNN", nn.RNN(4, 6), {"weight_ih_l0": (4, 6), "weight_hh_l0": (6, 6), "bias_ih_l0": (6, 6)}),
    ("LSTM", nn.LSTM(4, 6), {"weight_ih_l0": (4, 24), "weight_hh_l0": (6, 24), "bias_ih_l0": (24, 24)}),
    ("LSTM deep", nn.LSTM(4, 6, 2, bidirectional=True), {"weight_ih_l0_reverse": (4, 24), "weight_ih_l1": (12, 24)}),
    (
        "LSTM proj_size",
        nn.LSTM(4, 6, proj_size=3),
        {"weight_ih_l0": (4, 24), "weight_hh_l0": (3, 24), "weight_hr_l0": (6, 3)},
    ),
    (
        "GRU",
        nn.GRU(4, 6),
        {"weight_ih_l0": (4, 18), "weight_hh_l0": (6, 18), "bias_ih_l0": (2, 18), "bias_hh_l0": (2, 18)},
    ),
    ("GRUCell", nn.GRUCell(4, 6), {"weight_ih": (4, 18), "weight_hh": (6, 18), "bias_ih": (2, 18)}),
    ("attention", nn.MultiheadAttention(12, 3), _attention_fans((12, 12), out=(12, 12))),
    ("attention 3.14", nn.MultiheadAttention(12, 3), _attention_fans((36, 48), out=(12, 36)), BEFORE),
    (
        "attention separate",
        nn.MultiheadAttention(12, 3, kdim=9, vdim=8),
        _attention_fans((12, 12), (9, 12), (8, 12), out=(12, 12)),
    ),
    (
        "attention separate 3.14",
        nn.MultiheadAttention(12, 3, kdim=9, vdim=8),
        _attention_fans((36, 48), (27, 36), (24, 32), out=(12, 36)),
        BEFORE,
    ),
    ("attention bias_k", nn.MultiheadAttention(12, 3, add_bias_kv=True), {"bias_k": (12, 12), "bias_v": (12, 12)}),
]


@pytest.mark.parametrize(
    ("module", "fans", "options"), [(*row[1:3], dict(*row[3:])) for row in FANS], ids=[r[0] for r in FANS]
)
def test_fans_by_table(module, fans, options):
    """A scaled initializer gets the fans of the variable that Keras has in the parameter's place."""
    plan = kinit.plan(module, dict.fromkeys(fans, "glorot_uniform"), **options)
    assert {name: plan[name].fans for name in fans} == fans


@pytest.fixture
def fans_used(monkeypatch):
    """The fans that Keras computes, in the order in which it does."""
    used, compute = [], random_initializers.compute_fans
    monkeypatch.setattr(
        random_initializers, "compute_fans", lambda *a, **kw: used.append(compute(*a, **kw)) or used[-1]
    )
    return used


def _scaled(config):
    """A Keras layer's config with GlorotUniform in place of its other random initializers."""
    if isinstance(config, dict):
        if config.get("class_name") in ("Orthogonal", "RandomUniform"):
            return {"class_name": "GlorotUniform", "config": {}}
        return {key: _scaled(value) for key, value in config.items()}
    return config


@pytest.mark.parametrize("twin", WEIGHTED, ids=lambda twin: twin.name)
def test_fans_are_those_keras_uses(twin, fans_used):
    """The plan's fans, weight by weight, are those that Keras 3.15 computes while it builds the twin."""
    layers = [kl.deserialize(_scaled(kl.serialize(layer))) for layer in twin.layers()]
    twin.run_keras(layers, *twin.inputs(np.random.default_rng(0)))
    module = twin.module()
    weights = [step.name for step in kinit.plan(module) if "weight" in step.name]
    plan = kinit.plan(module, dict.fromkeys(weights, "glorot_uniform"), depthwise=twin.depthwise)
    assert fans_used
    assert [step.fans for step in plan if "weight" in step.name for _ in range(step.blocks)] == fans_used


def test_attention_fans_before_3_15_are_those_of_the_shape():
    """Under convention="keras-3.14" attention's fans are what Keras computes from its kernels' shapes alone."""
    layer = kl.MultiHeadAttention(3, 4)
    layer.build((2, 5, 12), (2, 7, 8), (2, 7, 9))
    plan = kinit.plan(nn.MultiheadAttention(12, 3, kdim=9, vdim=8), convention="keras-3.14")
    shapes = [weight.shape for weight in layer.weights if weight.name == "kernel"]
    before = [random_initializers.compute_fans(shape) for shape in shapes]
    assert [step.fans for step in plan if "weight" in step.name] == before
