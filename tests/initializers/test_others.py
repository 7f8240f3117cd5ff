"""Initializers that Keras has nothing like: the time steps of state space models, and sinusoids."""

import math

import pytest
import torch

import torch_kinit as kinit
from tests.support.laws import N, Uniform, check_law
from torch_kinit.initializers.others import sinusoids_, time_step_bias_


def test_time_steps_are_uniform_in_their_logarithm():
    """The logarithms of softplus of the biases are uniform between those of the least and the greatest step."""
    bias = time_step_bias_(torch.empty(N, dtype=torch.float32), 0.01, 0.5, generator=kinit.Key(1))
    check_law(torch.nn.functional.softplus(bias.double()).log(), Uniform(math.log(0.01), math.log(0.5)))


def test_the_law_of_time_steps():
    """Mean, std and bounds in a plan are those of the values; the same call as text gives the same step."""
    model = torch.nn.ParameterDict({"b": torch.empty(N)})
    plan = kinit.apply(model, {"b": "time_step_bias(low=0.01, high=0.5)"}, seed=0)
    law, values = plan["b"].law, model["b"].detach().double()
    assert abs(float(values.mean()) - law.mean) <= 6 * law.std / math.sqrt(N)
    assert float(values.std()) == pytest.approx(law.std, rel=6 * 0.707 / math.sqrt(N))
    assert law.bounds[0] - 1e-5 <= float(values.min()) < float(values.max()) <= law.bounds[1] + 1e-5
    assert kinit.Plan.from_dict(plan.to_dict())["b"] == plan["b"]


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (0.1, 0.1), (0.2, 0.1), (-0.1, 0.1)], ids=str)
def test_time_steps_are_positive_and_in_order(bounds):
    """Steps of zero or less, and bounds in the wrong order, are refused with what came."""
    with pytest.raises(ValueError, match=r"`low` and `high` must be 0 < low < high, got"):
        time_step_bias_(torch.empty(3), *bounds)


@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 2), (2, 4, 6)], ids=str)
def test_sinusoids_are_for_matrices_of_two_halves(shape):
    """Anything but (positions, an even number of channels from four on) is refused with its shape."""
    with pytest.raises(ValueError, match=r"`tensor` must be \(positions, an even number of channels\), got shape"):
        sinusoids_(torch.empty(shape))


def test_sinusoids_turn_by_a_constant_angle():
    """Each pair of channels lies on the unit circle and turns by one angle a position, from 1 down to 1 / 10,000."""
    sines, cosines = sinusoids_(torch.empty(50, 16, dtype=torch.float64)).chunk(2, dim=1)
    circle = torch.complex(cosines, sines)
    turns = (circle[1:] * circle[:-1].conj()).angle()
    expected = torch.logspace(0, -4, 8, dtype=torch.float64)
    torch.testing.assert_close(circle.abs(), torch.ones_like(sines), rtol=0, atol=1e-6)
    torch.testing.assert_close(turns, expected.expand(49, 8), rtol=1e-5, atol=1e-5)
