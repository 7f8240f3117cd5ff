"""Keras layers made by hand, for which no torch module stands by itself: `twin`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch_kinit import checks
from torch_kinit.initializers.names import recipe, serialize
from torch_kinit.keras.read import read_layer

# Sizes for a layer of which only the draws matter.
_SIZES = {"units": 1, "filters": 1, "kernel_size": 1, "input_dim": 1, "output_dim": 1, "rate": 0.5, "stddev": 0.5}
_SIZES |= {"num_heads": 1, "key_dim": 1, "num_query_heads": 1, "num_key_value_heads": 1, "head_dim": 1}


@dataclass(frozen=True)
class Twin:
    """A Keras layer, for the `order` of `replay_keras`; made by `twin`.

    Example:
        >>> twin("Dropout", rate=0.5)
        Twin(class_name='Dropout', modules=(), config={'rate': 0.5})
    """

    class_name: str
    modules: tuple[str, ...]
    config: Mapping[str, Any]

    def entry(self) -> dict[str, Any]:
        """As in the config of a saved model."""
        inner = {name: v.entry() if isinstance(v, Twin) else v for name, v in self.config.items()}
        name = " and ".join(self.modules) or self.class_name
        return {"class_name": self.class_name, "config": {"name": name, **_SIZES, **inner}}


def twin(class_name: str, *modules: str, **config: Any) -> Twin:
    """A Keras layer for the `order` of `replay_keras`, where a torch module does not stand for it by itself.

    Args:
        class_name: its class in Keras, such as "SeparableConv1D" or "GaussianNoise".
        modules: the paths of the torch modules that hold its weights, in the order of Keras' `get_weights()`; none for
            a layer whose draws are all that matters.
        config: those arguments of the Keras layer on which its draws depend: rate, seed, dropout, use_bias,
            kernel_initializer, `layer=twin("LSTM")` of a wrapper. Sizes are not needed.

    Raises:
        ValueError: a class that Keras does not have, or arguments that it does not take so.
        TypeError: a module that is no path.

    Example:
        >>> twin("SeparableConv1D", "stem.depthwise", "stem.pointwise").class_name
        'SeparableConv1D'
    """
    if any(not isinstance(path, str) for path in modules):
        raise TypeError(f"twin({checks.short(class_name)}) takes paths of modules, got {checks.short(modules)}.")
    try:
        for name, value in config.items():
            if name.endswith("_initializer") and value is not None:
                config[name] = _as_config(value)
        made = Twin(class_name, modules, config)
        read_layer(made.entry())
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"twin({class_name!r}) cannot be made with {config}: {error}") from None
    return made


def _as_config(initializer: Any) -> str | Mapping[str, Any]:
    """An initializer as a saved layer has it."""
    law = recipe(initializer)
    if isinstance(initializer, (str, Mapping)):
        return initializer
    if hasattr(initializer, "get_config") and not isinstance(initializer, type):  # an object of Keras', with its seed
        return {"class_name": type(initializer).__name__, "config": initializer.get_config()}
    return serialize(law)
