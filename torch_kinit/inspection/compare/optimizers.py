"""The optimizer of a compiled Keras model beside torch's: what its config says, and what has no argument in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from torch_kinit.inspection.activations import plain
from torch_kinit.inspection.compare.differences import MEASURED, Difference, Note, effect
from torch_kinit.inspection.compare.fields import agree
from torch_kinit.keras.draws import Config

_LAYER = "compile_config"
_ACCUMULATOR = "initial_accumulator_value"
_SLIGHT = 1e-5  # of Adagrad's first sum of squares


class Setting(NamedTuple):
    """An argument of torch's optimizer, by Keras' config."""

    name: str
    value: Callable[[Config], Any]
    weight: str = "unmeasured"


def _of(key: str, default: Any) -> Callable[[Config], Any]:
    return lambda config: config.get(key, default)


def _accumulator(config: Config) -> float:
    """Adagrad's, by which Keras' epsilon inside the root is torch's with none: the sum of squares begins with both."""
    return float(f"{config.get(_ACCUMULATOR, 0.1) + config.get('epsilon', 1e-7):.12g}")


_BETAS = Setting("betas", lambda c: (c.get("beta_1", 0.9), c.get("beta_2", 0.999)))
_ALL = (Setting("lr", _of("learning_rate", 1e-3), "learning_rate"),)
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "SGD": (
        Setting("momentum", _of("momentum", 0.0), "dampening"),
        Setting("nesterov", _of("nesterov", False), "dampening"),
        Setting("dampening", lambda c: 0, "dampening"),
    ),
    "Adam": (_BETAS, Setting("eps", _of("epsilon", 1e-7), "adam_epsilon"), Setting("amsgrad", _of("amsgrad", False))),
    "RMSprop": (
        Setting("alpha", _of("rho", 0.9), "alpha"),
        Setting("eps", _of("epsilon", 1e-7), "rmsprop_epsilon"),
        Setting("momentum", _of("momentum", 0.0), "dampening"),
        Setting("centered", _of("centered", False)),
    ),
    "Adagrad": (
        Setting(_ACCUMULATOR, _accumulator, "accumulator"),
        Setting("eps", lambda c: 0.0),
    ),
    "Adadelta": (Setting("rho", _of("rho", 0.95), "rho"), Setting("eps", _of("epsilon", 1e-7))),
    "Adamax": (_BETAS, Setting("eps", _of("epsilon", 1e-7))),
    "NAdam": (
        _BETAS,
        Setting("eps", _of("epsilon", 1e-7), "adam_epsilon"),
        Setting("momentum_decay", lambda c: 1, "momentum_decay"),
    ),
}
SETTINGS["AdamW"] = SETTINGS["Adam"]
_NAMES = {"Nadam": "NAdam"}
_BY_NAME = {name.lower(): name for name in SETTINGS}
_DEFAULTS = {"sgd": {"learning_rate": 0.01}, "adamw": {"weight_decay": 0.004}}  # where they are not those of SETTINGS
_CLIPS = {
    "clipnorm": "for each Keras variable: nn.utils.clip_grad_norm_(p, {0}), of packed ones block by block",
    "global_clipnorm": "nn.utils.clip_grad_norm_(port.parameters(), {0})",
    "clipvalue": "nn.utils.clip_grad_value_(port.parameters(), {0})",
}
_DECAY = "for p in port.parameters(): p.mul_(1 - lr * {0}), under torch.no_grad() before each step"


def compare_optimizer(
    compiled: Config, optimizer: torch.optim.Optimizer | None, penalties: Iterable[float]
) -> list[Difference | Note]:
    """The differences of an optimizer from that of a compiled model, and what is to be done in the training loop.

    `penalties` are the factors of L2 regularizers, which torch's SGD may have as a weight decay.
    """
    saved = compiled.get("optimizer")
    if isinstance(saved, str):  # by its name alone, with Keras' defaults
        saved = {"class_name": _BY_NAME.get(saved.lower(), saved), "config": _DEFAULTS.get(saved.lower(), {})}
    if not saved:
        return []
    config: Config = saved.get("config") or {}
    name = _NAMES.get(str(saved.get("class_name")), str(saved.get("class_name")))
    notes = [Note(_LAYER, *note) for note in _notes(name, config)]
    if name not in SETTINGS:
        return [Note(_LAYER, f"optimizer {name}", "torch has none that steps alike"), *notes]
    decay = config.get("weight_decay") or 0
    cls = "AdamW" if decay and name == "Adam" else name
    wanted = {s.name: s for s in (*_ALL, *SETTINGS[name])}
    values = {key: s.value(config) for key, s in wanted.items()}
    if not isinstance(values["lr"], (int, float)):
        values.pop("lr")
    values = {key: plain(value) for key, value in values.items()}
    values |= {"weight_decay": plain(decay)} if cls == "AdamW" else {}
    line = f"torch.optim.{cls}(port.parameters(), {', '.join(f'{k}={v!r}' for k, v in values.items())})"
    if optimizer is None:
        return [Note(_LAYER, f"optimizer {name}", line), *notes]
    own = type(optimizer).__name__
    decoupled = own == "Adam" and optimizer.defaults.get("decoupled_weight_decay")
    if own != cls and not (cls == "Adam" and own == "AdamW") and not (cls == "AdamW" and decoupled):
        weight = MEASURED["weight_decay" if {own, cls} == {"Adam", "AdamW"} else "function"]
        return [Difference(_LAYER, own, "optimizer", cls, own, weight, f"optimizer = {line}"), *notes]
    apart = cls == "AdamW" or optimizer.defaults.get("decoupled_weight_decay")  # torch's others add it to the gradient
    allowed = {"weight_decay": [decay if apart else 0, *(2 * l2 for l2 in penalties if cls == "SGD")]}
    values.setdefault("weight_decay", allowed["weight_decay"][0])
    allowed["eps"] = _epsilons(optimizer, config) if cls in ("Adam", "AdamW") else []
    epsilon, accumulator = config.get("epsilon", 1e-7), config.get(_ACCUMULATOR, 0.1)
    if cls == "Adagrad" and epsilon <= _SLIGHT * accumulator:  # where it stands matters little
        allowed |= {_ACCUMULATOR: [accumulator], "eps": [epsilon]}
    found: list[Difference | Note] = []
    for key, value in values.items():
        got = [group.get(key, optimizer.defaults.get(key)) for group in optimizer.param_groups]
        others = [v for v in got if not any(agree(w, v) for w in (value, *allowed.get(key, ())))]
        if others:
            setting = wanted.get(key)
            weight = MEASURED[setting.weight if setting else "weight_decay"]
            mend = f"for group in optimizer.param_groups: group[{key!r}] = {value!r}"
            if key == _ACCUMULATOR:
                mend = f"optimizer = {line}"
            found.append(Difference(_LAYER, own, key, repr(value), repr(others[0]), weight, mend))
    return [*found, *notes]


def _epsilons(optimizer: torch.optim.Optimizer, config: Config) -> list[float]:
    """What Adam's eps may be: Keras adds it before the correction, so torch's is another at each step."""
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    done, beta, epsilon = max(steps, default=0), config.get("beta_2", 0.999), config.get("epsilon", 1e-7)
    return [epsilon / math.sqrt(1 - beta**step) for step in (done, done + 1) if step]


def _notes(name: str, config: Config) -> list[tuple[str, str]]:
    """What is no argument of torch's optimizer, and the line that does it."""
    found = []
    epsilon, beta = config.get("epsilon", 1e-7), config.get("beta_2", 0.999)
    if name in ("Adam", "AdamW", "NAdam"):
        mend = f"before step t, counted from 1: group['eps'] = {epsilon} / (1 - {beta} ** t) ** 0.5"
        found.append((f"epsilon is added before the bias correction ({effect('adam_epsilon')})", mend))
    if name == "RMSprop":
        what = f"epsilon is inside the root ({effect('rmsprop_epsilon')})"
        found.append((what, "torch adds it outside: no argument mends it"))
    if name == "Adagrad":
        mend = f"torch adds it outside: {_ACCUMULATOR}={_accumulator(config)} and eps=0.0 are the same"
        found.append(("epsilon is inside the root", mend))
    if name not in ("Adam", "AdamW") and (decay := config.get("weight_decay")):
        measured = f" ({effect('weight_decay')})" if name == "SGD" else ""
        found.append((f"weight_decay={decay}, decoupled{measured}", _DECAY.format(decay)))
    if isinstance(config.get("learning_rate"), Mapping):
        schedule = config["learning_rate"].get("class_name")
        inside = (
            f"; with momentum Keras has the rate inside the velocity ({effect('schedule')})" if name == "SGD" else ""
        )
        found.append((f"learning rate {schedule}", f"set group['lr'] before each step{inside}"))
    if decay := config.get("decay"):  # of Keras 2
        found.append((f"decay={decay}", f"before step t, counted from 0: group['lr'] = lr / (1 + {decay} * t)"))
    for key, mend in _CLIPS.items():
        if (value := config.get(key)) is not None:
            found.append((f"{key}={value} ({effect('clip')})", f"{mend.format(value)} before each step"))
    if config.get("use_ema"):
        found.append((f"use_ema, momentum {config.get('ema_momentum')}", "torch.optim.swa_utils.AveragedModel"))
    if steps := config.get("gradient_accumulation_steps"):
        found.append((f"gradient_accumulation_steps={steps}", "step after so many backward passes, of their mean"))
    return found


def sparse_notes(compiled: Config, embeddings: Iterable[str]) -> list[Note]:
    """What Keras' optimizers do on TensorFlow, where the gradient of an Embedding lists each occurrence of a word."""
    saved = compiled.get("optimizer")
    config = (saved.get("config") or {}) if isinstance(saved, Mapping) else {}
    name = str(saved.get("class_name") if isinstance(saved, Mapping) else saved).lower()
    if not saved or (name == "sgd" and not any(config.get(key) for key in _CLIPS)):
        return []
    what = f"on TensorFlow Keras squares or clips each occurrence of a word ({effect('sparse')})"
    mend = "no argument mends it; on JAX and torch Keras sums them first, as the port does"
    return [Note(layer, what, mend) for layer in embeddings]


def loss_notes(compiled: Config) -> list[Note]:
    """What the loss of a compiled model tells of the port's outputs."""
    loss = compiled.get("loss")
    if isinstance(loss, str):
        loss = {"class_name": loss, "config": {}}
    if not isinstance(loss, Mapping) or "class_name" not in loss:
        return [Note(_LAYER, "several losses", "compare them by hand")] if loss else []
    name, config = str(loss["class_name"]).replace("_", "").lower(), loss.get("config") or {}
    config = config if isinstance(config, Mapping) else {}
    smooth = f"label_smoothing={config['label_smoothing']}" if config.get("label_smoothing") else ""
    found = []
    if "crossentropy" in name and "focal" not in name:
        binary = name.startswith("binary")
        logits = "nn.BCEWithLogitsLoss()" if binary else f"nn.CrossEntropyLoss({smooth})"
        plain = f"{logits} on the outputs"
        last = "sigmoid" if binary else "softmax"
        twice = f"{logits} on logits: a port that ends in {last} as well does it twice ({effect(last)})"
        mend = plain if config.get("from_logits") else twice
        found.append(Note(_LAYER, f"loss {loss['class_name']}, from_logits={bool(config.get('from_logits'))}", mend))
    if config.get("reduction") not in (None, "sum_over_batch_size", "mean", "auto"):
        found.append(Note(_LAYER, f"loss reduced by {config['reduction']!r}", f"reduction={config['reduction']!r}"))
    return found
