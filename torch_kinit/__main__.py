"""`python -m torch_kinit`: a demonstration; `plan`, `apply` and `replay` do the same for any importable model."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import operator
import re
import sys
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from torch_kinit import Plan, plan, replay_keras
from torch_kinit.demo import PictureAndText
from torch_kinit.keras.order import WAYS
from torch_kinit.keras.program import BUILDS
from torch_kinit.model import plan_table, report
from torch_kinit.model.targets import holder_of
from torch_kinit.streams.keras_seed import BACKENDS

_RULES_HELP = """\
A rule file holds one JSON or TOML object, rules from top to bottom. Its keys are globs over parameter names
and module paths, "re:..." for a regex, or a class as "torch.nn:Conv2d"; its values Keras names or configs,
numbers, "skip", or an object from roles (kernel, bias, ...) to such values."""

_REPLAY_HELP = """\
Without --keras-config each torch module, in the order of registration, counts for the Keras layer of its kind;
with it, the saved model tells the layers, their initializers and their order."""


class _UsageError(Exception):
    """What the user asked for cannot be done; the message is the one line to print."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 after a wrong argument, said in one line on stderr."""
    try:
        options = _parser().parse_args(arguments)
        if options.command is None:
            _demonstrate(options.seed)
        else:
            _run(options)
    except (_UsageError, ValueError, TypeError) as error:
        print(f"torch_kinit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stdout = None
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m torch_kinit", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the demonstration (default 0)")
    commands = parser.add_subparsers(dest="command")
    for name, what in (("plan", "print what each parameter would get"), ("apply", "initialize, and print the values")):
        added = _command(commands, name, what, _RULES_HELP)
        added.add_argument("--rules", metavar="FILE", type=Path, help="rules on top of Keras' defaults, .json or .toml")
        added.add_argument("--seed", type=int, default=None, help="seed of a torch.Generator on the CPU")
    replay = _command(commands, "replay", "give the weights that Keras starts from, and print them", _REPLAY_HELP)
    replay.add_argument(
        "--seed", type=int, help="what keras.utils.set_random_seed was given; not for what kinit.keras_config made"
    )
    replay.add_argument("--backend", required=True, choices=BACKENDS, help="Keras' backend")
    replay.add_argument(
        "--keras-config",
        metavar="FILE",
        type=Path,
        help="the Keras model: .json of kinit.keras_config(model) or model.to_json(), a .keras or .h5 file",
    )
    replay.add_argument("--build", choices=BUILDS, help="how the Keras program makes its layers")
    replay.add_argument("--made", choices=WAYS, help="how the model of the config was made")
    return parser


def _command(commands: Any, name: str, what: str, more: str) -> argparse.ArgumentParser:
    """A subcommand with what all of them take."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=what, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("model", metavar="MODULE:FACTORY", help="what to import and call, as torch.nn:GRU")
    command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="an argument of the factory")
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def _run(options: argparse.Namespace) -> None:
    settings = dict(_setting(text) for text in options.set)
    with warnings.catch_warnings(record=True) as held:  # an error is one line, without warnings before it
        made, model = _carry_out(options, settings)
    for warning in held:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    if options.command == "plan":
        print(json.dumps(made.to_dict(), indent=1) if options.json else made)
    elif options.json:
        print(json.dumps({**made.to_dict(), "values": _values(made, model)}, indent=1))
    else:
        print(made, _values_text(made, model), sep="\n\n")


def _carry_out(options: argparse.Namespace, settings: dict[str, Any]) -> tuple[Plan, nn.Module]:
    if options.command == "replay":
        config = options.keras_config
        if config and not config.exists():
            raise _UsageError(f"There is no file {config}.")
        model = _build(options.model, settings)
        given = {"keras_config": config, "build": options.build, "made": options.made}
        return replay_keras(model, options.seed, backend=options.backend, **given), model
    rules = _read_rules(options.rules) if options.rules else None
    generator = _generator(options.seed)
    model = _build(options.model, settings)
    made = plan(model, rules)
    return made if options.command == "plan" else made.apply(generator=generator), model


def _demonstrate(seed: int) -> None:
    generator = _generator(seed)
    model = PictureAndText()
    made = plan(model)
    print(f"A network with a layer of each common kind, and what Keras would start it from:\n\n{made}")
    made.apply(generator=generator)
    print(f"\nApplied with seed {seed}. What each tensor now holds, beside what its law says:\n")
    print(_values_text(made, model))
    picture = torch.empty(2, 3, 16, 16).uniform_(-1, 1, generator=generator)
    logits = model(picture, torch.arange(1, 13).reshape(2, 6))
    print(f"\nA forward pass on two random pictures and sentences gives\n{logits.detach()}")


def _generator(seed: int | None) -> torch.Generator | None:
    if seed is None:
        return None
    if not -(2**63) <= seed < 2**64:
        raise _UsageError(f"--seed must fit in 64 bits, got {seed}.")
    return torch.Generator().manual_seed(seed)


def _build(address: str, settings: dict[str, Any]) -> nn.Module:
    """Import and call MODULE:FACTORY."""
    factory = _load(address)
    if not callable(factory):
        raise _UsageError(f"{address} is not callable.")
    try:
        model = factory(**settings)
    except (Exception, SystemExit) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise _UsageError(f"{address}({shown}) raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise _UsageError(f"{address} gave a {type(model).__name__}, not a torch.nn.Module.")
    return model


def _load(address: str) -> Any:
    module_name, colon, name = address.partition(":")
    if not colon or not module_name or not name:
        raise _UsageError(f"Expected MODULE:NAME such as torch.nn:Transformer, got {address!r}.")
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _UsageError(f"Cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    try:
        return operator.attrgetter(name)(found)
    except AttributeError as error:
        raise _UsageError(f"{module_name} has no {name!r}.") from error


def _setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value read as JSON (64, 0.1, true, null, [1, 2]) or else as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise _UsageError(f"--set takes KEY=VALUE, got {text!r}.")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _read_rules(path: Path) -> dict[Any, Any]:
    kind = "TOML" if path.suffix == ".toml" else "JSON"
    try:
        text = path.read_text(encoding="utf-8")
        rules = tomllib.loads(text) if kind == "TOML" else json.loads(text)
    except OSError as error:
        raise _UsageError(f"Cannot read the rules {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise _UsageError(f"The rules {path} are not {kind}: {error}") from error
    if not isinstance(rules, Mapping):
        raise _UsageError(f"The rules {path} must be one object, got a {type(rules).__name__}.")
    return {_rule_key(key): value for key, value in rules.items()}


def _rule_key(key: str) -> Any:
    if key.startswith("re:"):
        try:
            return re.compile(key.removeprefix("re:"))
        except re.error as error:
            raise _UsageError(f"The rule {key!r} is no regex: {error}") from error
    return _load(key) if ":" in key else key


def _held(made: Plan, model: nn.Module) -> list[tuple[Any, torch.Tensor]]:
    """Each step with what the model now holds under its name."""
    return [(step, getattr(*holder_of(model, step.name))) for step in made]


def _values_text(made: Plan, model: nn.Module) -> str:
    return report.as_text(*plan_table.values_table(_held(made, model))[:2], optional=("initializer", "law's bounds"))


def _values(made: Plan, model: nn.Module) -> dict[str, dict[str, float | None]]:
    names = ("mean", "std", "min", "max")
    found = {step.name: zip(names, plan_table.observe(tensor), strict=True) for step, tensor in _held(made, model)}
    return {name: {key: None if math.isnan(x) else x for key, x in each} for name, each in found.items()}


if __name__ == "__main__":
    sys.exit(main())
