"""Recurrent layers and cells: their variables, and their twins in Keras."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from torch_kinit.layers.variable import Entry, InitializerOf, Options, Variable, entry, initializers


class Kind(NamedTuple):
    """What differs between recurrent layers. Where Keras has one bias, torch adds a second one that stays zero."""

    class_name: str  # Keras' class; that of the cell ends in "Cell"
    bias: str | None = None  # the default initializer of the bias; None for zeros
    reset_after: bool = False  # a GRU, whose first two gates Keras has in the other order, and whose bias has two rows

    def cell_variables(self, m: nn.RNNCellBase | nn.RNNBase, options: Options, suffix: str = "") -> list[Variable]:
        """The layout of a cell, or of the layer and direction whose tensors' names end in `suffix`."""
        kernels = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh"}
        found = [Variable(role, name + suffix, swapped=self.reset_after) for role, name in kernels.items()]
        if m.bias and self.reset_after:
            fans = 2, 3 * m.hidden_size
            for row, name in enumerate(("bias_ih", "bias_hh")):
                found.append(Variable("bias", name + suffix, fans=fans, swapped=True, row=(row, 2)))
        elif m.bias:
            found.append(Variable("bias", "bias_ih" + suffix, default=self.bias))
            found.append(Variable("second_bias", "bias_hh" + suffix))
        if getattr(m, "proj_size", 0):
            found.append(Variable("projection_kernel", "weight_hr" + suffix))
        return found

    def layer_variables(self, m: nn.RNNBase, options: Options) -> list[Variable]:
        """The layout of a recurrent layer: that of a cell for each layer and direction."""
        ways = ("", "_reverse") if m.bidirectional else ("",)
        suffixes = [f"_l{i}{way}" for i in range(m.num_layers) for way in ways]
        return [variable for suffix in suffixes for variable in self.cell_variables(m, options, suffix)]

    def _entry(self, name: str, m: Any, inputs: int, initializer_of: InitializerOf, suffix: str = "") -> Entry:
        """The Keras layer of class `name` for a cell, or for one layer and direction."""
        if getattr(m, "proj_size", 0):
            raise ValueError("Keras' LSTM has no projection (proj_size).")
        config = initializers(m, self.cell_variables(m, Options(), suffix), initializer_of)
        forget = config.get("bias_initializer") == "unit_forget_bias"
        config |= {"bias_initializer": "zeros"} if forget else {}
        config |= {"unit_forget_bias": forget} if self.class_name == "LSTM" else {}
        return entry(name, (None, inputs), **{**config, "units": m.hidden_size, "use_bias": m.bias})

    def cell_twin(self, m: nn.RNNCellBase, options: Options, initializer_of: InitializerOf) -> list[Entry]:
        return [self._entry(f"{self.class_name}Cell", m, m.input_size, initializer_of)]

    def layer_twins(self, m: nn.RNNBase, options: Options, initializer_of: InitializerOf) -> list[Entry]:
        """A Keras layer for each layer of a recurrent module, in a Bidirectional if it runs both ways."""
        entries = []
        for i in range(m.num_layers):
            inputs = m.hidden_size * (1 + m.bidirectional) if i else m.input_size
            forward = self._entry(self.class_name, m, inputs, initializer_of, f"_l{i}")
            if m.bidirectional:
                backward = self._entry(self.class_name, m, inputs, initializer_of, f"_l{i}_reverse")
                # By these names a saved model tells that Bidirectional made the second from the first.
                forward["config"]["name"], backward["config"]["name"] = "rnn", "backward_rnn"
                forward = entry("Bidirectional", (None, inputs), layer=forward, backward_layer=backward)
            entries.append(forward)
        return entries


SIMPLE_RNN, LSTM, GRU = Kind("SimpleRNN"), Kind("LSTM", bias="unit_forget_bias"), Kind("GRU", reset_after=True)
