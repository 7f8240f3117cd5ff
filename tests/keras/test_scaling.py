"""The time for a whole model grows with its size, and not with the square of it."""

import time

import pytest
from torch import nn

import torch_kinit as kinit

pytestmark = pytest.mark.xdist_group("serial")  # measures time


def best_time(call):
    """The least processor time of two calls: others on the machine can only add to it."""
    times = []
    for _ in range(2):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def model_of(n):
    """As many Linears, and their paths."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)) for _ in range(n // 2)))
    return model, [f"{i}.{j}" for i in range(n // 2) for j in range(2)]


def config_of(n):
    layers = [{"class_name": "Dense", "config": {"name": f"dense_{i}", "units": 1}} for i in range(n)]
    return {"class_name": "Sequential", "config": {"layers": layers}}


def set_in_order(n):
    model, paths = model_of(n)
    arrays = kinit.to_keras(model)
    return lambda: kinit.from_keras(model, arrays, order=paths)


def get_in_order(n):
    model, paths = model_of(n)
    return lambda: kinit.to_keras(model, order=paths)


def replay(n):
    model, _ = model_of(n)
    return lambda: kinit.replay_keras(model, 0, backend="jax")


def replay_in_order(n):
    model, paths = model_of(n)
    return lambda: kinit.replay_keras(model, 0, backend="jax", order=paths)


def rules_by_name(n):
    model, paths = model_of(n)
    config, modules = config_of(n), {f"dense_{i}": path for i, path in enumerate(paths)}
    return lambda: kinit.rules_from_keras(config, model, modules=modules)


def check_linear(make, n):
    """Raise AssertionError if four times the layers take nearer to sixteen times as long than to four times."""
    small, large = best_time(make(n)), best_time(make(4 * n))
    assert large < 8 * small, f"{small:.4f} s for {n}, {large:.4f} s for {4 * n}"


@pytest.mark.slow
@pytest.mark.parametrize("make", [set_in_order, get_in_order, replay, replay_in_order, rules_by_name])
def test_time_is_linear_in_the_number_of_layers(make):
    """Four times the layers take about four times as long."""
    check_linear(make, 500)


def test_quadratic_time_shows():
    """Comparing each with each is found out."""
    with pytest.raises(AssertionError, match="s for 1000"):
        check_linear(lambda n: lambda: [i for i in range(n) for j in range(n) if i == j], 1000)
