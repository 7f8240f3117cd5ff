"""The table of arguments: each row tells a module that differs from one that agrees, and each is told here."""

import math
from functools import partial

import pytest
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.compared_ports import without_second_bias
from torch_kinit.inspection.compare.fields import FIELDS, agree, fields_of

IMAGE, SERIES = (None, 8, 8, 4), (None, 6, 4)


def sequential(*layers):
    """The config of a Sequential; each layer is its class, its config and the shape of its inputs."""
    entries = [
        {
            "class_name": name,
            "config": {"name": f"layer_{i}", **config},
            "build_config": {"shapes_dict": shape} if isinstance(shape, dict) else {"input_shape": shape},
        }
        for i, (name, config, shape) in enumerate(layers)
    ]
    return {"class_name": "Sequential", "config": {"name": "model", "layers": entries}}


def wrapped(name, inner, **config):
    return {**config, "layer": {"class_name": name, "config": {"name": "inner", **inner}}}


CONV = {"filters": 4, "kernel_size": [3, 3]}
LSTM = {"units": 3, "unit_forget_bias": True}
HEADS = {"num_heads": 2, "key_dim": 2}
conv, pool, mean = partial(nn.Conv2d, 4, 4, 3), partial(nn.MaxPool2d, 2), partial(nn.AvgPool2d, 3, padding=1)
lstm, gru = partial(nn.LSTM, 4, 3, batch_first=True), partial(nn.GRU, 4, 3, batch_first=True)
attention = partial(nn.MultiheadAttention, 4, 2, batch_first=True)
spectral = parametrizations.spectral_norm


def one_bias(**arguments):
    return without_second_bias(lstm(**arguments))


# Keras' class and config, the shape of its inputs, a module that differs in the argument, and one that agrees if any.
ROWS = {
    "equation": (
        *("EinsumDense", {"equation": "abc,bd->acd", "output_shape": [None, 3]}, SERIES),
        *(nn.Linear(6, 3, bias=False), None),
    ),
    "equation of the last axis": (
        *("EinsumDense", {"equation": "abc,cd->adb", "output_shape": [3, None]}, SERIES),
        *(nn.Linear(4, 3, bias=False), None),
    ),
    "kernel_size": ("Conv2D", {**CONV, "kernel_size": [1, 3]}, IMAGE, nn.Conv2d(4, 4, (3, 1)), nn.Conv2d(4, 4, (1, 3))),
    "strides": ("Conv2D", {**CONV, "strides": [2, 2]}, IMAGE, conv(), conv(2)),
    "dilation_rate": ("Conv2D", {**CONV, "dilation_rate": [2, 1]}, IMAGE, conv(dilation=2), conv(dilation=(2, 1))),
    "padding_mode": (
        *("Conv2D", {**CONV, "padding": "same"}, IMAGE, conv(padding=1, padding_mode="circular"), conv(1, 1)),
    ),
    "BatchNorm.epsilon": (
        *("BatchNormalization", {}, IMAGE, nn.BatchNorm2d(4, 1e-5, 0.01), nn.BatchNorm2d(4, 1e-3, 0.01)),
    ),
    "BatchNorm.momentum": (
        *("BatchNormalization", {"momentum": 0.9}, IMAGE),
        *(nn.BatchNorm2d(4, 1e-3, 0.9), nn.SyncBatchNorm(4, 1e-3, 0.1)),
    ),
    "rms_scaling": (
        *("LayerNormalization", {"rms_scaling": True}, SERIES, nn.LayerNorm(4, 1e-3, bias=False), None),
    ),
    "LayerNorm.epsilon": ("LayerNormalization", {"epsilon": 1e-6}, SERIES, nn.LayerNorm(4), nn.LayerNorm(4, 1e-6)),
    "GroupNorm.epsilon": ("GroupNormalization", {"groups": 2}, IMAGE, nn.GroupNorm(2, 4), nn.GroupNorm(2, 4, 1e-3)),
    "GroupNorm.groups": (
        *("GroupNormalization", {"groups": -1}, IMAGE, nn.GroupNorm(2, 4, 1e-3), nn.GroupNorm(4, 4, 1e-3)),
    ),
    "InstanceNorm.groups": (
        *("GroupNormalization", {"groups": 2}, IMAGE, nn.InstanceNorm2d(4, 1e-3, affine=True)),
        nn.GroupNorm(2, 4, 1e-3),
    ),
    "RMSNorm.epsilon": ("RMSNormalization", {}, SERIES, nn.RMSNorm(4), nn.RMSNorm(4, 1e-6)),
    "power_iterations": (
        *("SpectralNormalization", wrapped("Dense", {"units": 3}, power_iterations=2), (None, 4)),
        *(spectral(nn.Linear(4, 3)), spectral(nn.Linear(4, 3), n_power_iterations=2)),
    ),
    "no spectral_norm": (
        *("SpectralNormalization", wrapped("Dense", {"units": 3}, power_iterations=1), (None, 4)),
        *(nn.Linear(4, 3), spectral(nn.Linear(4, 3))),
    ),
    "mask_zero": (
        *("Embedding", {"input_dim": 5, "output_dim": 4}, (None, 6)),
        *(nn.Embedding(5, 4, padding_idx=0), nn.Embedding(5, 4)),
    ),
    "batch_first": ("GRU", {"units": 3}, SERIES, nn.GRU(4, 3), gru()),
    "nonlinearity": (
        *("SimpleRNN", {"units": 3, "activation": "relu"}, SERIES, without_second_bias(nn.RNN(4, 3, batch_first=True))),
        without_second_bias(nn.RNN(4, 3, batch_first=True, nonlinearity="relu")),
    ),
    "LSTM.activation": ("LSTM", {**LSTM, "activation": "relu"}, SERIES, one_bias(), None),
    "recurrent_activation": ("GRU", {"units": 3, "recurrent_activation": "hard_sigmoid"}, SERIES, gru(), None),
    "RNN.dropout": ("LSTM", {**LSTM, "dropout": 0.2}, SERIES, one_bias(), None),
    "recurrent_dropout": ("GRU", {"units": 3, "recurrent_dropout": 0.2}, SERIES, gru(), None),
    "go_backwards": ("LSTM", {**LSTM, "go_backwards": True}, SERIES, one_bias(), None),
    "stateful": ("GRU", {"units": 3, "stateful": True}, SERIES, gru(), None),
    "merge_mode": (
        *("Bidirectional", wrapped("GRU", {"units": 3}, merge_mode="sum"), SERIES, gru(bidirectional=True), None),
    ),
    "num_heads and key_dim": (
        *("MultiHeadAttention", {"num_heads": 1, "key_dim": 4}, {"query_shape": SERIES, "value_shape": SERIES}),
        *(attention(), nn.MultiheadAttention(4, 1, batch_first=True)),
    ),
    "attention.dropout": ("MultiHeadAttention", {**HEADS, "dropout": 0.1}, SERIES, attention(), attention(dropout=0.1)),
    "attention.batch_first": ("MultiHeadAttention", HEADS, SERIES, nn.MultiheadAttention(4, 2), attention()),
    "add_zero_attn": ("MultiHeadAttention", HEADS, SERIES, attention(add_zero_attn=True), attention()),
    "bias_k": ("MultiHeadAttention", HEADS, SERIES, attention(add_bias_kv=True), attention()),
    "attention_axes": ("MultiHeadAttention", {**HEADS, "attention_axes": [1, 2]}, SERIES, attention(), None),
    "sliding_window": ("MultiHeadAttention", {**HEADS, "sliding_window": 3}, SERIES, attention(), None),
    "pool_size": ("MaxPooling2D", {"pool_size": [2, 2]}, IMAGE, nn.MaxPool2d(4, 2, 1), pool()),
    "pool strides": ("MaxPooling2D", {"pool_size": [2, 2], "strides": [1, 1]}, IMAGE, pool(), pool(1)),
    "pool dilation": ("MaxPooling2D", {"strides": [1, 1]}, IMAGE, pool(1, dilation=2), pool(1)),
    "count_include_pad": (
        *("AveragePooling2D", {"pool_size": [3, 3], "strides": [1, 1], "padding": "same"}, IMAGE),
        *(mean(stride=1), mean(stride=1, count_include_pad=False)),
    ),
    "output_size": ("GlobalMaxPooling2D", {}, IMAGE, nn.AdaptiveMaxPool2d(2), nn.AdaptiveMaxPool2d((1, 1))),
    "upsampling size": (
        *("UpSampling2D", {"size": [2, 3]}, IMAGE, nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=(2.0, 3.0))),
    ),
    "interpolation": (
        *("UpSampling1D", {"size": 2}, SERIES, nn.Upsample(scale_factor=2, mode="linear")),
        nn.Upsample(scale_factor=2, mode="nearest-exact"),
    ),
    "align_corners": (
        *("UpSampling2D", {"interpolation": "bilinear"}, IMAGE, nn.UpsamplingBilinear2d(scale_factor=2)),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    ),
    "bicubic": (
        *("UpSampling2D", {"interpolation": "bicubic"}, IMAGE, nn.Upsample(scale_factor=2, mode="bicubic"), None),
    ),
    "Resizing": (
        *("Resizing", {"height": 4, "width": 4, "interpolation": "nearest"}, IMAGE, nn.Upsample(4)),
        nn.Upsample(4, mode="nearest-exact"),
    ),
    "rate": ("Dropout", {"rate": 0.1}, SERIES, nn.Dropout(), nn.Dropout(0.1)),
    "noise_shape": ("Dropout", {"rate": 0.1, "noise_shape": [None, 1, 4]}, SERIES, nn.Dropout(0.1), None),
    "start_dim": ("Flatten", {}, SERIES, nn.Flatten(0), nn.Flatten()),
}  # fmt: skip


def compared(class_name, config, shape, module):
    return kinit.compare(sequential((class_name, config, shape)), nn.Sequential(module))


@pytest.mark.parametrize(("class_name", "config", "shape", "wrong", "right"), ROWS.values(), ids=ROWS)
def test_a_row_tells_modules_apart(class_name, config, shape, wrong, right):
    """The module that differs has a difference, with a mend; the one that agrees has none."""
    found = compared(class_name, config, shape, wrong)
    assert found.differences
    assert all(d.mend and (d.layer, d.module) == ("layer_0", "0") for d in found.differences)
    if right is not None:
        assert compared(class_name, config, shape, right).differences == ()


def test_every_row_is_told_by_one_of_these():
    """No row of the table is without a module that it tells."""
    told = set()
    for class_name, config, shape, wrong, _ in ROWS.values():
        whats = {d.what for d in compared(class_name, config, shape, wrong).differences}
        classes = [class_name, *([config["layer"]["class_name"]] if "layer" in config else [])]
        rows = [row for name in classes for row in fields_of(name, wrong)]
        told |= {FIELDS.index(row) for row in rows if (row.key or row.attribute) in whats}
    assert [row[:2] for i, row in enumerate(FIELDS) if i not in told] == []


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        *((0.1, 0.10000000149, True), (1e-3, 1e-5, False), (1e-6, None, False), (True, 1, True)),
        *((2, (2, 2), True), ([2, 3], (2, 2), False), ([2], (2, 2), False), ("tanh", "relu", False)),
    ],
)
def test_values_agree_but_for_rounding_and_form(a, b, equal):
    """A float of 32 bits, and one value for equal ones on each axis, are the same value."""
    assert agree(a, b) is equal
    assert agree(b, a) is equal


@pytest.mark.parametrize("equation", ["abc,cd->abd", "...c,cd->...d", "abc,cde->abde", "abcd,cde->abe"])
def test_an_equation_of_the_last_axes_is_a_linear(equation):
    """Whatever axes are kept apart or summed over together."""
    sizes = {"c": 4 if "abcd" not in equation else 2, "d": 3 if "abcd" not in equation else 2, "e": 2}
    kernel, outputs = equation.partition(",")[2].split("->")
    ins, outs = ([sizes[x] for x in kernel if (x in outputs) == made] for made in (False, True))
    shape = [None, 6, *([2, 2] if "abcd" in equation else [4])]
    config = {"equation": equation, "output_shape": [None, *outs]}
    module = nn.Linear(math.prod(ins), math.prod(outs), bias=False)
    assert compared("EinsumDense", config, shape, module).ok
