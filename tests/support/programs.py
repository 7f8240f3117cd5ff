"""Random Keras programs, run on a backend and replayed: what the replay makes of them, counted.

By hand, for any number: python -m tests.support.programs --backend jax --count 2000 --start 0
"""

import argparse
import dataclasses
import json
import time
import warnings
from collections import Counter
from dataclasses import dataclass

import torch

import torch_kinit as kinit
from tests.support.backends import backend
from tests.support.mechanical import DESCRIBED, Port
from tests.support.random_programs import TWINS, program

RUN = (
    """
import keras
from keras import initializers as ki
from keras import layers as kl
from torch_kinit import keras_config
"""
    + DESCRIBED
    + """
result = []
for source, seed in programs:
    names = {"keras": keras, "ki": ki, "kl": kl}
    exec(source, names)
    keras.backend.clear_session(free_memory=False)  # so that automatic names start anew, as in a program
    keras.utils.set_random_seed(seed)
    try:
        model = names["make"]()
    except Exception as error:
        error.add_note(source)
        raise
    try:
        captured = keras_config(model)
    except ValueError as error:
        captured = str(error)
    if folder:
        model.save(f"{folder}/{len(result)}.keras")
    result.append({"weights": model.get_weights(), "config": model.to_json(), "captured": captured,
                   "layers": described(model)})
"""
)
BATCH = 100  # programs in one call of a process
VERDICTS = ("exact", "warned", "hidden", "silent", "refused")


@dataclass(frozen=True)
class Outcome:
    """What became of one replay: weights that differ, warnings, and the error, if any."""

    source: str
    differing: tuple = ()
    warnings: tuple = ()
    error: str | None = None
    hidden: tuple = ()  # in what a program has another style that has the same config, and is replayed exactly

    @property
    def verdict(self):
        """exact, warned (which may differ), refused, hidden; or silent: it differs without a word."""
        if self.error is not None:
            return "refused"
        if self.warnings:
            return "warned"
        return "exact" if not self.differing else "hidden" if self.hidden else "silent"

    @property
    def equal(self):
        return self.error is None and not self.differing


def real(name, sources, seed=1, run=None, folder=None):
    """What Keras makes of each source on a backend, or in this process; in `folder`, what it saves of them."""
    run = run or backend(name)
    batches = [sources[i : i + BATCH] for i in range(0, len(sources), BATCH)]
    return [made for batch in batches for made in run(RUN, programs=[(s, seed) for s in batch], folder=folder)]


def here(code, **variables):
    """Run code of a backend's process in this one."""
    exec(code, variables)
    made = variables["result"]
    return [{**one, "weights": [torch.from_numpy(array) for array in one["weights"]]} for one in made]


def replayed(source, made, name, **told):
    """Replay, as told, over the mechanical port of what `real` gave."""
    port = Port(made["layers"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            kinit.replay_keras(port.model, backend=name, **told)
        except (ValueError, TypeError) as error:
            return Outcome(source, error=f"{type(error).__name__}: {error}")
    return Outcome(source, tuple(port.differing(made["weights"], name)), tuple(str(w.message) for w in caught))


def from_config(source, made, name, seed=1):
    """Replay from the plain config."""
    return replayed(source, made, name, seed=seed, keras_config=made["config"])


def from_captured(source, made, name):
    """Replay from what keras_config found on the live model, which is JSON; or its error, which names the weights."""
    if isinstance(made["captured"], str):
        return Outcome(source, error=made["captured"])
    return replayed(source, made, name, keras_config=json.loads(json.dumps(made["captured"])))


def outcomes(name, numbers, seed=1, run=None):
    """Of random programs: from the plain configs, and from the captured, where keras_config is there."""
    sources = [program(number) for number in numbers]
    found = list(zip(sources, real(name, sources, seed, run), strict=True))
    plain = [from_config(*pair, name, seed) for pair in found]
    for style in TWINS:
        silent = [i for i, outcome in enumerate(plain) if outcome.verdict == "silent"]
        twins = [program(numbers[i], **style) for i in silent]
        for i, twin, made in zip(silent, twins, real(name, twins, seed, run), strict=True):
            same = json.loads(made["config"]) == json.loads(found[i][1]["config"])
            if same and from_config(twin, made, name, seed).verdict == "exact":
                plain[i] = dataclasses.replace(plain[i], hidden=tuple(style))
    return plain, [from_captured(*pair, name) for pair in found]


def counts(name, plain, captured):
    """The counts as a row: verdicts of plain configs, how many were equal, and how many of the captured."""
    found = Counter(outcome.verdict for outcome in plain)
    row = {"backend": name, "programs": len(plain)} | {verdict: found[verdict] for verdict in VERDICTS}
    row["warned, equal"] = sum(outcome.equal for outcome in plain if outcome.verdict == "warned")
    return row | {"captured": len(captured), "captured, exact": sum(o.verdict == "exact" for o in captured),
                  "captured, refused": sum(o.verdict == "refused" for o in captured)}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print so many programs of each verdict but exact")
    given, started = parser.parse_args(), time.monotonic()
    numbers = range(given.start, given.start + given.count)
    plain, captured = outcomes(given.backend, numbers, given.seed)
    for kind, found in (("plain", plain), ("captured", captured)):
        for verdict in VERDICTS[1:]:
            wanted = [pair for pair in zip(numbers, found, strict=False) if pair[1].verdict == verdict]
            for number, outcome in sorted(wanted, key=lambda pair: len(pair[1].source))[: given.show]:
                print(f"--- program {number}, {kind}: {verdict}\n{outcome.source}", *outcome.differing)
                print(*outcome.warnings, outcome.error or "", sep="\n")
    print(" | ".join(f"{key}: {value}" for key, value in counts(given.backend, plain, captured).items()))
    print("hidden by", dict(Counter(" and ".join(outcome.hidden) for outcome in plain if outcome.hidden)))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
