"""pytest-benchmark's view of each piece of work: `pytest tests/benchmarks --benchmark-enable`.

`python -m tests.benchmarks.table` prints the README's table, with the ratios that are promised.
"""

import pytest

from tests.benchmarks import work


@pytest.mark.slow
@pytest.mark.benchmark(group="16 M values", min_rounds=3)
@pytest.mark.parametrize("name", work.FILLS)
def test_fill(benchmark, name):
    """A fill of 16 M values, which has its law."""
    work.check(name, benchmark(work.FILLS[name][0]))


@pytest.mark.benchmark(group="400 parameters")
@pytest.mark.parametrize("does", [work.fill_bare, work.plan_and_apply], ids=["bare fills", "plan and apply"])
def test_whole_model(benchmark, does):
    """A model of 400 small parameters, planned and filled, and only filled."""
    model = work.model()
    benchmark(does, model)
    assert float(model[-1].weight.detach().abs().max()) <= (6 / 8) ** 0.5
    assert float(model[-1].bias.detach().abs().max()) == 0
