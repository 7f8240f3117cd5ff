"""The way from a call to its numbers is short."""

from tests.support.distances import distance, journeys


def test_apply_is_near_its_draw():
    """`apply(seed=0)` on one weight takes at most 200 calls in the package, and its generator at most 10 hops."""
    found = distance(journeys()["apply(seed=0), one Linear weight"])
    assert 20 < found.calls <= 200
    assert 3 < found.hops <= 10
