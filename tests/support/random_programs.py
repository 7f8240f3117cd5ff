"""Random Keras programs as source text, each in a style of its own, which settles the order of Keras' draws.

`program(number)` gives the same text everywhere: the function `make` for the processes of tests/support/backends.py.
"""

import dataclasses
import itertools
import random
import re

from tests.support.random_layers import CALLS, TOKENS, Layers, style_of

# The styles of a program's plain twins, of the same model and written more plainly: some of these, or all.
PLAIN = {"plain": True, "calls": "statements", "hidden": False}
TWINS = [{key: PLAIN[key] for key in keys} for size in (1, 2, 3) for keys in itertools.combinations(PLAIN, size)]


WITHOUT_WEIGHTS = {"Activation", "Dropout", "GaussianDropout", "GaussianNoise", "RepeatVector", "Add", "Multiply"}
WITHOUT_WEIGHTS |= {f"{kind}{n}D" for kind in ("SpatialDropout", "GlobalAveragePooling") for n in (1, 2)}
WITHOUT_WEIGHTS |= {"Concatenate", "Flatten", "TimeDistributed"}


class Program(Layers):
    """Code of models."""

    def called(self, code, x):
        """A layer or model, called on an expression; another expression."""
        calls = self.style.calls
        if calls == "mixed":
            calls = self.how.choice(CALLS[:-1])
        pair = "Attention(" in code
        if calls.startswith("made first") and not re.search(r"\b(model|shared)\d", code):
            self.first.append(f"{(variable := self.new('layer'))} = {code}")
            code = variable
        if pair:
            x = self.assigned(x)
            x = f"{x}, {x}"
        return f"{code}({x})" if calls == "nested" else self.assigned(f"{code}({x})")

    def step(self, x, shape, same=False, depth=0):
        """Some more of a functional program: an expression of its output, and the shape of that."""
        x = self.with_unused(x, shape)
        chance = self.rng.random()
        if shape[0] != TOKENS and depth < 2:
            if chance < self.style.branches:
                return self.branched(x, shape, depth)
            if chance < self.style.branches + self.style.nesting:
                return self.with_model(x, shape, same, depth)
        code, out = self.next_layer(shape, same)
        return self.called(code, x), out

    def with_unused(self, x, shape):
        """Now and then, lines that make a layer of no use, which may be called on `x`."""
        if self.random["else"].random() >= self.style.unused:
            return x
        self.rng = self.how = self.random["else"]
        self.aside = True
        code, _ = self.next_layer(shape, same=True, single=x is None)
        told = "aside_" not in code and self.known.issuperset(re.findall(r"kl\.(\w+)", code))
        written = told or self.style.hidden
        if x is not None and self.rng.random() < 0.5:
            x = self.assigned(x)
            code = self.called(code, x) if written else ""
        self.lines += [code] if written and not code.isidentifier() else []
        self.rng, self.how, self.aside = self.random["rng"], self.random["how"], False
        return x

    def chain(self, x, shape, steps, same=False, depth=0):
        for _ in range(steps):
            x, shape = self.step(x, shape, same, depth)
        return x, shape

    def branched(self, x, shape, depth):
        """Two or three branches and the layer that merges them."""
        x = self.assigned(x)
        merge = self.rng.choice(("Add", "Concatenate", "Multiply"))
        branches = []
        for i in range(self.rng.choice((2, 2, 3))):
            y, out = self.chain(
                x, shape, self.rng.choice((0, 1, 1, 2)) if i else self.rng.randint(1, 2), True, depth + 1
            )
            if out[-1] != shape[-1]:
                code, out = self.to_units(out, shape[-1])
                y = self.called(code, y)
            branches.append(y)
        if self.rng.random() < 0.5:
            branches.reverse()
        units = shape[-1] * (len(branches) if merge == "Concatenate" else 1)
        return self.called(self.layer(merge), f"[{', '.join(branches)}]"), (*shape[:-1], units)

    def with_model(self, x, shape, same, depth):
        """A call, or two, of a model made here or before everything else."""
        inside = Program(None, self.style, self)
        distributed = len(shape) == 2 and self.rng.random() < 0.3
        own = shape[1:] if distributed else shape
        write = self.rng.choice((inside.functional, inside.sequential, inside.added))
        twice = self.rng.random() < 0.5
        if twice and self.rng.random() < 0.3:  # a layer alone, shared
            code, out = self.to_units(shape, shape[-1])
            layer = self.assigned(code, "shared")
            return self.called(layer, self.called(layer, x)), out
        model, out = write(own, depth + 1, own if same or distributed or twice else None)
        lines = [*inside.first, *inside.lines]
        (self.first if self.rng.random() < 0.3 else self.lines).extend(lines)
        if distributed:
            model, out = self.layer("TimeDistributed", model), (*shape[:1], *out)
        if twice and out == shape:
            model = self.assigned(model, "shared")
            return self.called(model, self.called(model, x)), out
        return self.called(model, x), out

    def functional(self, shape, depth=0, wanted=None):
        """A functional model, and the shape that comes out: the wanted one, if any."""
        x = self.assigned(f"keras.Input({input_of(shape)})", "inputs")
        y, out = self.chain(x, shape, self.rng.randint(1, 3) if depth else self.rng.randint(3, 8), bool(wanted), depth)
        if wanted and out != wanted:
            code, out = self.to_units(out, wanted[-1])
            y = self.called(code, y)
        y = self.assigned(y)
        if y == x:
            y = self.assigned(f"{self.activation(shape)[0]}({x})")
        arguments = ", ".join([x, y, *self.name("Functional")])
        return self.assigned(f"keras.Model({arguments})", "model"), out

    def _stacked_layers(self, shape, depth, wanted):
        """Code of the layers of a Sequential, some made before it, and the shape that comes out."""
        codes = []
        for _ in range(self.rng.randint(1, 3) if depth else self.rng.randint(3, 7)):
            if shape[0] != TOKENS and depth < 2 and self.rng.random() < self.style.nesting:
                inside = Program(None, self.style, self)
                write = self.rng.choice((inside.functional, inside.functional, inside.sequential))
                code, shape = write(shape, depth + 1, shape if wanted else None)
                self.lines += [*inside.first, *inside.lines]
            else:
                code, shape = self.next_layer(shape, bool(wanted), single=True)
                if self.style.calls.startswith("made first"):
                    self.first.append(f"{(variable := self.new('layer'))} = {code}")
                    code = variable
            codes.append(code)
            self.with_unused(None, shape)
        if wanted and shape != wanted:
            code, shape = self.to_units(shape, wanted[-1])
            codes.append(code)
        return codes, shape

    def sequential(self, shape, depth=0, wanted=None):
        codes, out = self._stacked_layers(shape, depth, wanted)
        with_input = shape[0] == TOKENS or self.rng.random() < 0.7
        codes = [f"keras.Input({input_of(shape)})", *codes] if with_input else codes
        arguments = ", ".join([f"[{', '.join(codes)}]", *self.name("Sequential")])
        model = self.assigned(f"keras.Sequential({arguments})", "model")
        if not with_input and not depth:
            self.lines.append(f"{model}.build({(None, *shape)})")
        return model, out

    def added(self, shape, depth=0, wanted=None):
        """A Sequential whose layers are added one by one."""
        codes, out = self._stacked_layers(shape, depth, wanted)
        model = self.assigned(f"keras.Sequential({', '.join(self.name('Sequential'))})", "model")
        self.lines += [f"{model}.add({code})" for code in (f"keras.Input({input_of(shape)})", *codes)]
        return model, out


def input_of(shape):
    """The arguments of a keras.Input."""
    return f'{tuple(shape[1:])}, dtype="int32"' if shape[0] == TOKENS else tuple(shape)


def program(number, **style):
    """The source of a program: `make()`, which returns a model; `style` replaces what is chosen at random."""
    style = dataclasses.replace(style_of(random.Random(f"style {number}")), **style)
    writer, lines = _written(number, style)
    if not style.hidden:
        writer, lines = _written(number, style, writer.kinds)
    if not writer.kinds - WITHOUT_WEIGHTS:
        return program(f"{number} again", **dataclasses.asdict(style))
    return "def make():\n" + "".join(f"    {line}\n" for line in lines)


def _written(number, style, known=()):
    """A program's writer and its lines; `known` are the classes of the model's layers."""
    writer = Program(number, style)
    writer.known |= set(known)
    rng = writer.rng
    shape = rng.choice(((4,), (4,), (6, 4), (6, 4), (4, 4, 4), (TOKENS, 6)))
    write = rng.choice((writer.functional, writer.functional, writer.functional, writer.sequential, writer.added))
    model, _ = write(shape)
    first = _shuffled(writer.how, writer.first) if writer.style.calls.endswith("shuffled") else writer.first
    return writer, [*writer.start.values(), *first, *writer.lines, f"return {model}"]


def _shuffled(rng, lines):
    """The lines in another order: first the layers, which need no other line."""
    alone = [line for line in lines if re.match(r"layer\d+ = kl\.(?!.*\b(model|shared|inputs)\d)", line)]
    rest = [line for line in lines if line not in alone]
    rng.shuffle(alone)
    return alone + rest
