"""The command line: a demonstration without a command; and commands for importable models."""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn

from torch_kinit import Plan, __version__, audit, compare, load_rules, plan, replay_keras, twin
from torch_kinit.inspection.demo import PictureAndText
from torch_kinit.keras.order import WAYS
from torch_kinit.keras.program import BUILDS
from torch_kinit.layers.variable import CONVENTIONS
from torch_kinit.model import report
from torch_kinit.model.importing import made_model
from torch_kinit.model.plan_table import values, values_table
from torch_kinit.model.saving import load_state, refuse_file, save_state
from torch_kinit.streams.keras_seed import BACKENDS

_MOST = 1500  # characters of a message
_NO_OPTIONS = {"model", "run", "width", "color"}  # of what is parsed
_NO_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
_CANNOT = (ValueError, TypeError, ImportError, RuntimeError, MemoryError)


class _UsageError(Exception):
    """What the user asked for cannot be done; the message is what to print."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


class _Command(NamedTuple):
    """A command: what it does, giving what to print and the exit code, and the arguments that only it takes."""

    run: Callable[[argparse.Namespace], tuple[object, int]]
    arguments: Callable[[argparse.ArgumentParser], None]
    summary: str
    more: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0; 1 if something is off; 2 after a wrong argument; 130 after an interrupt."""
    options = argparse.Namespace()
    try:
        options = _parser().parse_args(arguments)
        if options.own_seed is not None and options.run is not _demonstrate:
            raise _UsageError("--seed stands behind the command.")
        return _run(options)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except _UsageError as error:
        _tell(str(error))
    except OSError as error:
        _tell(f"Cannot open {error.filename}: {error.strerror}." if error.filename else f"OSError: {error}")
    except _CANNOT as error:
        kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
        _tell(kind + _as_options(str(error), options))
    return 2


def script() -> int:
    """Run as `kinit`, which looks for models in the current folder too, as `python -m torch_kinit` does."""
    sys.path.insert(0, "")
    return main()


def _run(options: argparse.Namespace) -> int:
    """Carry out a command and print what it gives, with nobody else's words in between."""
    seen = sys.stdout is not None and sys.stdout.isatty()
    options.width = report.terminal_width() or sys.maxsize
    options.color = seen and os.environ.get("TERM") != "dumb"
    with warnings.catch_warnings(record=True) as held, _others_on_stderr():  # an error comes without warnings before it
        command: Callable[[argparse.Namespace], tuple[object, int]] = options.run
        result, code = command(options)
    for warning in held:
        if warning.filename in (__file__, _caller()):  # of this package, see checks.warn
            _tell(f"warning: {_as_options(str(warning.message), options)}")
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    with contextlib.suppress(AttributeError):  # of a stream that is no file
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    print(result, flush=True)
    return code


def _caller() -> str:
    """The file outside this package that called it."""
    frame = sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "torch_kinit":
        frame = frame.f_back
    return frame.f_code.co_filename


@contextlib.contextmanager
def _others_on_stderr() -> Iterator[None]:
    """Let what models print, and programs that they start, go to stderr: stdout is for the result."""
    kept = None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _tell(message: str) -> None:
    text = message if len(message) <= _MOST else f"{message[: _MOST - 1]}…"
    print(f"torch_kinit: {text}", file=sys.stderr)


def _as_options(message: str, options: argparse.Namespace) -> str:
    """A message of the library in the words of the command line: `seed` as --seed, on_uncovered='keep' likewise."""
    for name in (dest.removeprefix("own_") for dest in vars(options) if dest not in _NO_OPTIONS):
        option = f"--{name.replace('_', '-')}"
        assigned = rf"`{name}`=|(?<![,(] )(?<![\w(.]){name}=(?=['\w])"  # but not in a call of Python
        message = re.sub(assigned, f"{option} ", message).replace(f"`{name}`", option)
        message = re.sub(rf"{option} '([\w.-]+)'", rf"{option} \1", message)
    return message.replace("kinit.skip", "'skip'")


# What each command takes.


def _parser() -> argparse.ArgumentParser:
    prog = "kinit" if Path(sys.argv[0]).stem == "kinit" else "python -m torch_kinit"
    parser = _Parser(prog=prog, description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"torch_kinit {__version__}")
    parser.add_argument(
        "--seed", dest="own_seed", metavar="SEED", type=int, help="seed of the demonstration, 0 if not given"
    )
    parser.set_defaults(run=_demonstrate, no_fold=False)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=command.more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.add_argument("model", metavar="MODULE:FACTORY", help="what to import and call, as torch.nn:GRU")
        added.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="an argument of the factory")
        added.add_argument("--json", action="store_true", help="print JSON")
        command.arguments(added)
        added.set_defaults(run=command.run)
    return parser


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", metavar="FILE", type=Path, help="rules on top of Keras' defaults, .json or .toml")
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="initialize this parameter alone; again for another"
    )
    parser.add_argument("--on-uncovered", choices=("error", "keep"), help="what to do with a parameter without a rule")
    _convention_argument(parser)
    _fold_argument(parser)


def _apply_arguments(parser: argparse.ArgumentParser) -> None:
    _plan_arguments(parser)
    parser.add_argument("--plan", metavar="FILE", type=Path, help="carry out this plan, which `plan --json` printed")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, help="seed=N of kinit.apply: the same values on any machine")
    seeds.add_argument("--generator-seed", metavar="SEED", type=int, help="seed of a torch.Generator on the CPU")
    parser.add_argument("--prefix", default="", metavar="NAME", help="the model's name in a larger one; with --seed")
    _out_argument(parser)


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, help="what keras.utils.set_random_seed was given; not for what kinit.keras_config made"
    )
    parser.add_argument("--backend", required=True, choices=BACKENDS, help="Keras' backend")
    parser.add_argument(
        "--keras-config",
        metavar="FILE",
        type=Path,
        help="the Keras model: .json of kinit.keras_config(model) or model.to_json(), a .keras or .h5 file",
    )
    parser.add_argument("--order", metavar="ITEM", action="append", help="what the Keras program makes next; see below")
    parser.add_argument("--build", choices=BUILDS, help="how the Keras program makes its layers")
    parser.add_argument("--made", choices=WAYS, help="how the model of the config was made")
    _convention_argument(parser)
    _fold_argument(parser)
    _out_argument(parser)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    what = "the Keras model: .json of model.to_json() or kinit.keras_config(model), a .keras or .h5 file"
    parser.add_argument("--keras-config", metavar="FILE", type=Path, required=True, help=what)
    parser.add_argument("--modules", metavar="DICT", help="which module is which layer: \"{'dense': 'head.fc'}\"")
    _convention_argument(parser)


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", metavar="FILE", type=Path, help="rules on top of Keras' defaults, .json or .toml")
    parser.add_argument("--weights", metavar="FILE", type=Path, help="a state dict to load first, .pt or .safetensors")
    parser.add_argument("--alpha", type=float, help="the probability of a false alarm, 0.001 if not given")
    _convention_argument(parser)


def _fold_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-fold", action="store_true", help="print each of several equal blocks")


def _convention_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--convention", choices=CONVENTIONS, help="whose attention fans to use")


def _out_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", type=Path, help="save the state dict, as .pt or .safetensors")


# What each command does.


def _demonstrate(options: argparse.Namespace) -> tuple[object, int]:
    seed = options.own_seed or 0
    model = PictureAndText()
    made = plan(model)
    text = f"A network with a layer of each common kind, and what Keras would start it from:\n\n{_text(made, options)}"
    made.apply(seed=seed)
    text += f"\n\nApplied with seed {seed}. What each tensor now holds, beside what its law says:\n\n"
    text += _values_text(made, model, options)
    picture = torch.empty(2, 3, 16, 16).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
    logits = model(picture, torch.arange(1, 13).reshape(2, 6))
    return f"{text}\n\nA forward pass on two random pictures and sentences gives\n{logits.detach()}", 0


def _plan(options: argparse.Namespace) -> tuple[object, int]:
    rules = options.rules and load_rules(options.rules)
    made = plan(_build(options), rules, **_given(options, "only", "on_uncovered", "convention"))
    return json.dumps(made.to_dict(), indent=1) if options.json else _text(made, options), 0


def _apply(options: argparse.Namespace) -> tuple[object, int]:
    _refuse_out(options)
    given = _given(options, "only", "on_uncovered", "convention")
    if options.plan and (options.rules or given):
        raise _UsageError("--plan excludes --rules, --only, --on-uncovered and --convention: the plan has them.")
    saved = _read_plan(options.plan) if options.plan else None
    rules = options.rules and load_rules(options.rules)
    generator = _generator(options.generator_seed)
    model = _build(options)
    made = plan(model, rules, **given) if saved is None else saved
    progress = sys.stderr is not None and sys.stderr.isatty()
    made.apply(model, seed=options.seed, generator=generator, prefix=options.prefix, progress=progress)
    return _done(made, model, options), 0


def _replay(options: argparse.Namespace) -> tuple[object, int]:
    _refuse_out(options)
    config = options.keras_config
    if config and not config.exists():
        raise _UsageError(f"There is no file {config}.")
    order = options.order and [_order_item(text) for text in options.order]
    model = _build(options)
    given = _given(options, "backend", "keras_config", "build", "made", "convention")
    made = replay_keras(model, options.seed, order=order, **given)
    return _done(made, model, options), 0


def _compare(options: argparse.Namespace) -> tuple[object, int]:
    config = options.keras_config
    if not config.exists():
        raise _UsageError(f"There is no file {config}.")
    modules = None if options.modules is None else _literal(options.modules, "--modules")
    found = compare(config, _build(options), modules=modules, **_given(options, "convention"))
    text = json.dumps(found.to_dict(), indent=1) if options.json else found.to_text(options.width, color=options.color)
    return text, int(not found.ok)


def _audit(options: argparse.Namespace) -> tuple[object, int]:
    rules = options.rules and load_rules(options.rules)
    model = _build(options)
    if options.weights:
        load_state(model, options.weights)
    found = audit(model, rules, **_given(options, "convention", "alpha"))
    text = json.dumps(found.to_dict(), indent=1) if options.json else found.to_text(options.width, color=options.color)
    return text, int(not found.ok)


_RULES_HELP = """\
A rule file holds one JSON or TOML object, rules from top to bottom. Its keys are globs over parameter names
and module paths, "re:..." for a regex, a class as "torch.nn:Conv2d", or a role (kernel, bias, ...); its values
Keras names or configs, "trunc_normal(std=0.02)", numbers, "skip", or an object from roles to such values."""

_SET_HELP = """\
--set KEY=VALUE reads Python literals, such as 64, .5, True, None, (4, 8) or 'text'; all else is text as it is."""

_REPLAY_HELP = """\
Without --keras-config each torch module, in the order of registration, counts for the Keras layer of its kind;
with it, the saved model tells the layers, their initializers and their order.

--order is given once for each thing that the Keras program makes, in its order: the path of a module or, beside
--keras-config, the name of a layer ("'0'" for one that is a number); a number, for so many draws of something
else; or a twin as a tuple: "('SeparableConv1D', 'stem.dw', 'stem.pw')", "('Dropout', {'rate': 0.5})"."""

# A new command is a function that gives what to print and the exit code, one for its arguments, and a row here.
COMMANDS = {
    "plan": _Command(_plan, _plan_arguments, "print what each parameter would get", f"{_SET_HELP}\n\n{_RULES_HELP}"),
    "apply": _Command(_apply, _apply_arguments, "initialize, and print the values", f"{_SET_HELP}\n\n{_RULES_HELP}"),
    "replay": _Command(
        _replay,
        _replay_arguments,
        "give the weights that Keras starts from, and print them",
        f"{_SET_HELP}\n\n{_REPLAY_HELP}",
    ),
    "compare": _Command(
        _compare,
        _compare_arguments,
        "print what makes a port train otherwise than its Keras model; the exit code is 1 if there is something",
        _SET_HELP,
    ),
    "audit": _Command(
        _audit,
        _audit_arguments,
        "compare the values of a model with its plan; the exit code is 1 if something is off",
        f"{_SET_HELP}\n\n{_RULES_HELP}",
    ),
}


# Reading what is asked for.


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _build(options: argparse.Namespace) -> nn.Module:
    settings = _settings(options.set)
    try:
        return made_model(options.model, settings)
    except ValueError as error:  # in the words of others, which stay
        raise _UsageError(str(error)) from error


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise _UsageError(f"--set takes KEY=VALUE, got {text!r}.")
        if key in settings:
            raise _UsageError(f"--set has {key!r} twice.")
        settings[key] = _literal(value, f"--set {key}")
    return settings


def _literal(text: str, where: str) -> Any:
    """A Python literal, or else the text itself."""
    with warnings.catch_warnings(), contextlib.suppress(*_NO_LITERAL):
        warnings.simplefilter("ignore")  # of odd escapes
        return ast.literal_eval(text)
    with contextlib.suppress(*_NO_LITERAL):
        json.loads(text)
        raise _UsageError(
            f"{where} reads Python, and {text} is JSON: write True, False or None; a text takes quotes in quotes."
        )
    return text


def _order_item(text: str) -> Any:
    item = _literal(text, "--order")
    if not isinstance(item, tuple):
        return item
    if not item or not isinstance(item[0], str):
        raise _UsageError(
            f"--order has {text}, and a twin begins with a class of Keras', as ('Dropout', {{'rate': .5}})."
        )
    config = item[-1] if isinstance(item[-1], dict) else {}
    return twin(*(part for part in item if part is not config), **config)


def _generator(seed: int | None) -> torch.Generator | None:
    if seed is None:
        return None
    if not -(2**63) <= seed < 2**64:
        raise _UsageError(f"--generator-seed must fit in 64 bits, got {seed}.")
    return torch.Generator().manual_seed(seed)


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise _UsageError(f"{path} is no plan that `plan --json` printed: {error}") from error


def _refuse_out(options: argparse.Namespace) -> None:
    if options.out:
        refuse_file(options.out)


# Saying what was done.


def _text(made: Plan, options: argparse.Namespace) -> str:
    return made.to_text(options.width, fold=not options.no_fold, color=options.color)


def _done(made: Plan, model: nn.Module, options: argparse.Namespace) -> str:
    """The plan that was carried out and the values it gave, which are saved if that is asked for."""
    if options.out:
        save_state(model, options.out)
    if options.json:
        return json.dumps({**made.to_dict(), "values": values(made, model)}, indent=1)
    return f"{_text(made, options)}\n\n{_values_text(made, model, options)}"


def _values_text(made: Plan, model: nn.Module, options: argparse.Namespace) -> str:
    less = ("initializer", "law's bounds")
    return report.as_text(*values_table(made, model), options.width, optional=less, color=options.color)


if __name__ == "__main__":
    sys.exit(main())
