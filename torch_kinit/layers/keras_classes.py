"""Which Keras layers the modules of a torch model stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

Config = dict[str, Any]
Laws = Callable[[str], Any]  # a tensor's name in its module to the Keras config of its initializer


def twins_of(path: str, module: nn.Module, laws: Laws, depthwise: bool) -> list[Config] | None:
    """The entries that Keras' twins of `module` would have in a saved model; None for a module without a twin.

    A recurrent module of several layers has as many twins; a module that draws and holds nothing has none, [].
    """
    for cls in type(module).__mro__:
        if cls in _TWINS:
            made = _TWINS[cls](module, laws, depthwise)
            return [{**entry, "config": {"name": path, **entry["config"]}} for entry in made]
    return None


def _entry(class_name: str, shape: Iterable[int | None] | None = None, **config: Any) -> Config:
    built = {} if shape is None else {"build_config": {"input_shape": [None, *shape]}}
    return {"class_name": class_name, "config": config, **built}


def _has(module: nn.Module, name: str) -> bool:
    """Whether the module goes with a tensor; asked without running its parametrization."""
    return module._parameters.get(name) is not None or parametrize.is_parametrized(module, name)


def _weights(module: nn.Module, laws: Laws, names: Mapping[str, str]) -> Config:
    """The initializer arguments for those tensors that the module has."""
    return {f"{role}_initializer": laws(name) for role, name in names.items() if _has(module, name)}


_KERNEL_AND_BIAS = {"kernel": "weight", "bias": "bias"}


def _linear(m: nn.Linear, laws: Laws, depthwise: bool) -> list[Config]:
    config = {"units": m.out_features, "use_bias": _has(m, "bias")}
    return [_entry("Dense", (m.in_features,), **config, **_weights(m, laws, _KERNEL_AND_BIAS))]


def _conv(m: nn.Conv2d, laws: Laws, depthwise: bool) -> list[Config]:
    rank = len(m.kernel_size)
    shape = (*[None] * rank, m.in_channels)
    config = {"kernel_size": m.kernel_size, "use_bias": _has(m, "bias")}
    if depthwise and m.groups == m.in_channels > 1:
        if rank == 3:
            raise ValueError("Keras has no DepthwiseConv3D; with depthwise=False it is a Conv3D(groups=...).")
        names = {"depthwise": "weight", "bias": "bias"}
        config |= {"depth_multiplier": m.out_channels // m.in_channels, **_weights(m, laws, names)}
        return [_entry(f"DepthwiseConv{rank}D", shape, **config)]
    config |= {"filters": m.out_channels, "groups": m.groups, **_weights(m, laws, _KERNEL_AND_BIAS)}
    return [_entry(f"Conv{rank}D", shape, **config)]


def _conv_transpose(m: nn.ConvTranspose2d, laws: Laws, depthwise: bool) -> list[Config]:
    rank = len(m.kernel_size)
    if m.groups != 1:
        raise ValueError("Keras' transposed convolutions have no groups.")
    config = {"kernel_size": m.kernel_size, "filters": m.out_channels, "use_bias": _has(m, "bias")}
    config |= _weights(m, laws, _KERNEL_AND_BIAS)
    return [_entry(f"Conv{rank}DTranspose", (*[None] * rank, m.in_channels), **config)]


def _embedding(m: nn.Embedding, laws: Laws, depthwise: bool) -> list[Config]:
    config = {**_weights(m, laws, {"embeddings": "weight"}), "input_dim": m.num_embeddings}
    return [_entry("Embedding", **config, output_dim=m.embedding_dim)]


def _one_recurrent(m: Any, class_name: str, inputs: int, suffix: str, laws: Laws) -> Config:
    if getattr(m, "proj_size", 0):
        raise ValueError("Keras' LSTM has no projection (proj_size).")
    names = {"kernel": "weight_ih" + suffix, "recurrent": "weight_hh" + suffix, "bias": "bias_ih" + suffix}
    config = _weights(m, laws, names if m.bias else dict(list(names.items())[:2]))
    forget = config.get("bias_initializer") == "unit_forget_bias"
    if forget:
        config["bias_initializer"] = "zeros"
    config |= {"units": m.hidden_size, "use_bias": m.bias}
    if class_name.startswith("LSTM"):
        config["unit_forget_bias"] = forget
    return _entry(class_name, (None, inputs), **config)


def _recurrent(m: nn.RNNBase, laws: Laws, depthwise: bool) -> list[Config]:
    class_name = next(name for cls, name in _RECURRENT.items() if isinstance(m, cls))
    entries = []
    for i in range(m.num_layers):
        inputs = m.hidden_size * (1 + m.bidirectional) if i else m.input_size
        forward = _one_recurrent(m, class_name, inputs, f"_l{i}", laws)
        if m.bidirectional:
            backward = _one_recurrent(m, class_name, inputs, f"_l{i}_reverse", laws)
            # The names by which a saved model tells that Bidirectional made the second of the first.
            for name, entry in (("rnn", forward), ("backward_rnn", backward)):
                entry["config"]["name"] = name
            entries.append(_entry("Bidirectional", (None, inputs), layer=forward, backward_layer=backward))
        else:
            entries.append(forward)
    return entries


_RECURRENT = {nn.RNN: "SimpleRNN", nn.LSTM: "LSTM", nn.GRU: "GRU"}
_CELLS = {nn.RNNCell: "SimpleRNNCell", nn.LSTMCell: "LSTMCell", nn.GRUCell: "GRUCell"}


def _cell(m: Any, laws: Laws, depthwise: bool) -> list[Config]:
    class_name = next(name for cls, name in _CELLS.items() if isinstance(m, cls))
    return [_one_recurrent(m, class_name, m.input_size, "", laws)]


def _attention(m: nn.MultiheadAttention, laws: Laws, depthwise: bool) -> list[Config]:
    packed = m.kdim == m.vdim == m.embed_dim
    biased = _has(m, "in_proj_bias")
    config = {
        "num_heads": m.num_heads,
        "key_dim": m.head_dim,
        "dropout": m.dropout,
        "use_bias": biased,
        "kernel_initializer": laws("in_proj_weight" if packed else "q_proj_weight"),
        "bias_initializer": laws("in_proj_bias") if biased else "zeros",
    }
    shapes = {"query_shape": m.embed_dim, "key_shape": m.kdim, "value_shape": m.vdim}
    built = {"shapes_dict": {name: [None, None, size] for name, size in shapes.items()}}
    return [{**_entry("MultiHeadAttention", **config), "build_config": built}]


def _normalization(m: Any, laws: Laws, depthwise: bool) -> list[Config]:
    names = {"gamma": "weight", "beta": "bias"}
    config = {"scale": _has(m, "weight"), "center": _has(m, "bias"), **_weights(m, laws, names)}
    if isinstance(m, (nn.LayerNorm, nn.RMSNorm)):
        class_name = "LayerNormalization" if isinstance(m, nn.LayerNorm) else "RMSNormalization"
        axes = list(range(-len(m.normalized_shape), 0))
        return [_entry(class_name, m.normalized_shape, axis=axes, **config)]
    channels = m.num_channels if isinstance(m, nn.GroupNorm) else m.num_features
    if getattr(m, "running_mean", None) is None:
        return [_entry("GroupNormalization", (channels,), **config)]
    config |= {"moving_mean_initializer": laws("running_mean"), "moving_variance_initializer": laws("running_var")}
    return [_entry("BatchNormalization", (channels,), **config)]


def _prelu(m: nn.PReLU, laws: Laws, depthwise: bool) -> list[Config]:
    return [_entry("PReLU", (m.num_parameters,), **_weights(m, laws, {"alpha": "weight"}))]


def _dropout(m: Any, laws: Laws, depthwise: bool) -> list[Config]:
    return [_entry("Dropout", rate=m.p)]


_TWINS: dict[type[nn.Module], Callable[[Any, Laws, bool], list[Config]]] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), _embedding),
    **dict.fromkeys(_RECURRENT, _recurrent),
    **dict.fromkeys(_CELLS, _cell),
    nn.MultiheadAttention: _attention,
    **dict.fromkeys(
        (
            *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.RMSNorm),
            *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm),
        ),
        _normalization,
    ),
    nn.PReLU: _prelu,
    **dict.fromkeys(
        (
            *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),  # of channels: Keras' SpatialDropout
            *(nn.AlphaDropout, nn.FeatureAlphaDropout),
        ),
        _dropout,
    ),
}
