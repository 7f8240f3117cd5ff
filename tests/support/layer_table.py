"""The table of layers in the documentation, made from the package's own: `python -m tests.support.layer_table`.

It prints docs/reference/layers.md, which a test compares with what the package says.
"""

from torch import nn

import torch_kinit as kinit
from torch_kinit.keras.readers import READERS
from torch_kinit.layers.table import _ROWS, twins_of
from torch_kinit.layers.variable import Options

HEAD = """\
# Layers

What `apply` gives each layer of torch.nn by default, and the Keras layer that it is the twin of. A
subclass has what its base has. In brackets the (fan_in, fan_out) of the example.

| torch | for example | Keras | tensors: role, initializer |
|---|---|---|---|
"""
MIDDLE = """
Layers without parameters need nothing; of these, Dropout and its kin draw a seed in `replay_keras`, as in Keras.

Keras layers that are read from saved models, for `replay_keras`, `rules_from_keras`, `from_keras` and `to_keras`:

"""
EXAMPLES = {
    nn.Linear: (4, 8),
    nn.Bilinear: (3, 4, 8),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), (4, 8, 3)),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), (4, 8, 3)),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), (10, 4)),
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell), (4, 8)),
    nn.MultiheadAttention: (8, 2),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), (8,)),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), (8,)),
    nn.GroupNorm: (2, 8),
    nn.LayerNorm: (8,),
    nn.RMSNorm: (8,),
    nn.PReLU: (),
    **dict.fromkeys((nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout), ()),
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), ()),
}
AFFINE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def row(cls, **settings):
    """The line of one torch class."""
    arguments = EXAMPLES[cls]
    module = cls(*arguments, **settings)
    shown = ", ".join([*map(str, arguments), *(f"{name}={value}" for name, value in settings.items())])
    twins = twins_of("", module, Options(), lambda name: "zeros")
    keras = ", ".join(dict.fromkeys(f"`{twin['class_name']}`" for twin in twins)) or "none"
    tensors = []
    for step in kinit.plan(module):
        fans = f" {step.fans}" if step.fans else ""
        tensors.append(f"`{step.name}`: {step.role}, {step.initializer}{fans}")
    return f"| `{cls.__name__}` | `({shown})` | {keras} | {'; '.join(tensors) or 'none'} |"


def page():
    """The whole page."""
    names = ", ".join(f"`{name}`" for name in sorted(READERS))
    known = [cls for cls in _ROWS if cls.__module__.startswith("torch.")]  # some register others
    rows = [row(cls, **({"affine": True} if cls in AFFINE else {})) for cls in known]
    rows.insert(1 + known.index(nn.Conv3d), row(nn.Conv2d, groups=4))  # Keras' DepthwiseConv
    return HEAD + "\n".join(rows) + "\n" + MIDDLE + names + ".\n"


if __name__ == "__main__":
    print(page(), end="")
