"""Pictures hold what they say: the points, lines and words that are drawn are those of the laws, plans and probes."""

import itertools
import math
import subprocess
import sys

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from scipy import stats
from torch import nn

import torch_kinit as kinit

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


@pytest.fixture(autouse=True)
def settings_stay():
    """No picture changes matplotlib's settings or shows itself; figures are closed afterwards."""
    backend = matplotlib.get_backend()
    pyplot.switch_backend("agg")
    before = dict(matplotlib.rcParams)
    yield
    pyplot.close("all")
    assert dict(matplotlib.rcParams) == before
    pyplot.switch_backend(backend)


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def words(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_law_is_drawn_with_its_density_and_bounds():
    """The bars are a density of the values drawn, the line is SciPy's density, and dotted lines stand at the bounds."""
    ax = kinit.plot.law("he_normal", (64, 100))
    scale = math.sqrt(2 / 100) / stats.truncnorm(-2, 2).std()
    exact = stats.truncnorm(-2, 2, scale=scale)
    x, y = lines(ax)["exact density"].get_data()
    inside = abs(x) < 2 * scale
    assert y[inside] == pytest.approx(exact.pdf(x[inside]), rel=1e-6)
    assert not y[~inside].any()
    assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(1)
    middles = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(exact.pdf(middles), rel=0.35)
    bounds = [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert bounds == pytest.approx([-2 * scale, 2 * scale])
    assert ax.get_title() == "he_normal, shape (64, 100)\nmean 0, std 0.1414"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("value of a weight", "density (share per unit of value)")
    assert words(ax) == ["38,400 values drawn", "exact density", "least value -0.3215", "greatest value 0.3215"]


OTHERS = {
    "unbounded": ("random_normal", (100, 100), ["40,000 values drawn", "exact density"]),
    "small": ("glorot_uniform", (3, 3), ["9,000 values drawn", "exact density", "least value -1", "greatest value 1"]),
    "orthogonal": ("orthogonal", (64, 100), ["38,400 values drawn"]),
    "constant": (kinit.get(0.25), (4,), ["4,000 values drawn"]),
}


@pytest.mark.parametrize(("identifier", "shape", "expected"), OTHERS.values(), ids=OTHERS)
def test_laws_of_all_kinds_are_drawn(identifier, shape, expected):
    """A law without bounds has none, and one without a density, or of one value, is its histogram."""
    ax = kinit.plot.law(identifier, shape)
    assert words(ax) == expected
    if len(ax.patches) == 1:
        (bar,) = ax.patches
        assert bar.get_x() + bar.get_width() / 2 == pytest.approx(0.25)
        assert (bar.get_height(), ax.get_ylabel()) == (1, "share of the values")


def test_axes_that_are_given_are_drawn_on():
    """Layout and fans are those of `kinit.law`, and no new figure is made."""
    figure, ax = pyplot.subplots()
    assert kinit.plot.law("glorot_uniform", (3, 5, 7), layout="keras", fans=(2, 4), ax=ax) is ax
    assert "least value -1" in words(ax)
    assert pyplot.get_fignums() == [figure.number]


def test_a_plan_is_drawn_beside_its_model():
    """Each parameter has a diamond at the law's std and a dot at the model's; one value by both is left out."""
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    rules = {"2": {"kernel": "he_normal"}, "2.bias": kinit.skip}
    ax = kinit.plot.plan(kinit.plan(model, rules))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.weight", "0.bias", "2.weight"]
    law, now = lines(ax)["law"], lines(ax)["the model now"]
    assert list(law.get_xdata()) == pytest.approx([math.sqrt(2 / (4 + 8)), 0, math.sqrt(2 / 8)])
    held = [model[0].weight, model[0].bias, model[2].weight]
    assert list(now.get_xdata()) == pytest.approx([float(p.detach().std(correction=0)) for p in held], rel=1e-5)
    assert list(law.get_ydata()) == list(now.get_ydata()) == [0, 1, 2]
    assert max(*law.get_xdata(), *now.get_xdata()) < ax.get_xlim()[1]
    bottom, top = ax.get_ylim()
    assert bottom > 2 > 0 > top
    assert "std" in ax.get_xlabel()
    assert words(ax) == ["law", "the model now"]
    again = pyplot.subplots()[1]
    assert kinit.plan(model, rules).plot(ax=again) is again
    assert list(lines(again)["law"].get_xdata()) == list(law.get_xdata())


def test_a_plan_without_values_shows_its_laws():
    """A plan from data, or of a model on meta, has diamonds and no dots."""
    meta = kinit.plan(nn.Linear(4, 8, device="meta"))
    for plan in (meta, kinit.Plan.from_dict(meta.to_dict())):
        assert words(kinit.plot.plan(plan)) == ["law"]


def test_long_plans_stay_legible():
    """Of 200 layers every fourth is named, in a figure no higher than for 60, and long names are cut at the front."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(200)))
    ax = kinit.plot.plan(kinit.plan(nn.ModuleDict({"a" * 60: model})))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert len(labels) == 50
    assert labels[1] == "…" + "a" * 38 + ".4.weight"
    assert ax.figure.get_size_inches()[1] < 15


def finding(name, verdict, measured, expected, cause=""):
    return {"name": name, "verdict": verdict, "cause": cause, "measured": measured, "expected": expected}


def test_an_audit_is_drawn_with_its_causes():
    """What is off is a square with its cause, what fits a dot, others a cross; what has no std is left out."""
    findings = [
        finding("0.weight", "off", {"std": 0.2}, {"std": 0.1}, "fans look swapped"),
        finding("0.bias", "ok", {"value": 0.0}, {"value": 0.0}),
        finding("1.weight", "ok", {"std": 0.101}, {"std": 0.1}),
        finding("2.weight", "too small to tell", {"std": 0.09}, {"std": 0.1}),
    ]
    ax = kinit.plot.audit({"findings": findings})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.weight", "1.weight", "2.weight"]
    drawn = {label: (line.get_marker(), *line.get_xdata(), *line.get_ydata()) for label, line in lines(ax).items()}
    assert drawn.pop("law") == ("D", 0.1, 0.1, 0.1, 0, 1, 2)
    assert drawn == {"off": ("s", 0.2, 0), "ok": ("o", 0.101, 1), "too small to tell": ("x", 0.09, 2)}
    assert [(text.get_text(), text.get_position()[1]) for text in ax.texts] == [("fans look swapped", 0)]
    assert words(ax) == ["law", "off", "ok", "too small to tell"]
    found = kinit.audit(nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256)))
    real = found.plot()
    assert [label.get_text() for label in real.get_yticklabels()] == ["0.weight", "0.bias"]
    assert [text.get_text()[:29] for text in real.texts] == [
        "looks like torch's default ka",
        "looks like torch's default bi",
    ]
    assert ax.get_xlim()[0] == 0
    assert ax.get_xlim()[1] > 0.2


def reports(names, depth=6):
    model = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(depth)])
    for name in names:
        kinit.apply(model, {nn.Linear: name}, seed=0)
        yield name, kinit.probe(model, torch.ones(4, 16) / torch.arange(1.0, 17))


def test_probes_are_overlaid():
    """Each law has a line of stds and one of gradients, of a colour, marker and style of its own."""
    found = dict(reports(["glorot_normal", "he_normal", "lecun_uniform"]))
    axes = kinit.plot.probes(found)
    for ax, value, growth in zip(axes, ("std", "gradient_norm"), ("growth", "gradient_growth"), strict=True):
        drawn = ax.get_lines()
        for line, (name, report) in zip(drawn, found.items(), strict=True):
            assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 6]
            assert list(line.get_ydata()) == [getattr(row, value) for row in report.weighted]
            assert line.get_label() == f"{name} (× {getattr(report, growth):.2f} a layer)"
        for kind in ("get_color", "get_marker", "get_linestyle"):
            assert len({getattr(line, kind)() for line in drawn}) == 3
        assert {line.get_color() for line in drawn} <= OKABE_ITO
        assert ax.get_yscale() == "log"
        low, high = ax.get_ylim()
        assert low < min(min(line.get_ydata()) for line in drawn)
        assert max(max(line.get_ydata()) for line in drawn) < high
        assert high >= 99 * low
    assert [ax.get_ylabel() for ax in axes] == ["std of the outputs", "norm of the gradient of the outputs"]


def test_a_report_draws_itself():
    """`report.plot()` is the picture of one, with a panel for the gradient where there is one, on the Axes given."""
    ((_, report),) = reports(["he_normal"])
    assert len(report.plot()) == 2
    ax = pyplot.subplots()[1]
    assert report.plot(ax=ax) == (ax,)
    assert len(ax.get_lines()) == 1
    forward = kinit.probe(nn.Linear(3, 2), torch.ones(2, 3), backward=False)
    assert len(forward.plot()) == 1


def test_colours_and_markers_are_many():
    """Seven laws are told apart by colour and marker alone."""
    found = {f"{i}": report for i, (_, report) in enumerate(reports(itertools.repeat("he_normal", 7)))}
    drawn = kinit.plot.probes(found)[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 7


def test_what_cannot_be_drawn_is_refused():
    """Other things than plans and probes are errors that say what is wanted; an unknown law is `kinit.law`'s error."""
    with pytest.raises(TypeError, match="`plan` must be a Plan, such as kinit"):
        kinit.plot.plan(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"`report` must be what kinit\.audit returned, got one of type Linear"):
        kinit.plot.audit(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="`reports` must be a dict from names"):
        kinit.plot.probes([1])
    with pytest.raises(TypeError, match="`reports` must be a dict from names"):
        kinit.plot.probes({"a": 1})
    with pytest.raises(ValueError, match="Did you mean 'he_normal'"):
        kinit.plot.law("he_normale", (2, 3))
    with pytest.raises(ValueError, match="`shape` must have values to draw"):
        kinit.plot.law("he_normal", (0, 3))


@pytest.mark.slow
def test_without_matplotlib_the_extra_is_named():
    """Importing needs no matplotlib, and the first picture says which extra to install."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import torch_kinit as kinit\n"
        "try:\n    kinit.plot.law('he_normal', (4, 3))\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Pictures need matplotlib, which is missing: pip install torch_kinit[plot].\n"
