"""A plan is printed as text and HTML: it fits, no name or number is cut, and what repeats is told once."""

import dataclasses
import html.parser
import itertools
import re

import pytest
import torch
import transformers
from torch import nn

import torch_kinit as kinit
from tests.support.models import network, tied
from torch_kinit.model import report


class Bottleneck(nn.Module):
    """ResNet50's block, as torchvision names its parts."""

    def __init__(self, inputs, width, first):
        super().__init__()
        sizes = [(inputs, width, 1), (width, width, 3), (width, 4 * width, 1)]
        for i, (a, b, kernel) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        if first:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))


def resnet50():
    model = nn.Sequential()
    model.conv1, model.bn1 = nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64)
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        made = [Bottleneck(inputs if i == 0 else 4 * width, width, i == 0) for i in range(blocks)]
        setattr(model, f"layer{stage}", nn.Sequential(*made))
        inputs = 4 * width
    model.fc = nn.Linear(2048, 1000)
    return model


REAL = {
    "BERT": (lambda: transformers.BertModel(transformers.BertConfig()), {"*LayerNorm": {"gamma": "ones"}}),
    "ResNet50": (resnet50, {nn.Conv2d: "he_normal"}),
    "Transformer": (lambda: nn.Transformer(batch_first=True), None),
}


@pytest.fixture(scope="module", params=REAL)
def real(request):
    """The plan of a real model, which its meta device makes at once."""
    make, rules = REAL[request.param]
    with torch.device("meta"):
        return kinit.plan(make(), rules)


def paths(text):
    """The full name that each line of a table with headings tells, and the cells beside it."""
    found, above = [], None
    for line in text.splitlines()[2:]:
        if line.startswith("--"):
            break
        if line.startswith("  "):
            name, *cells = re.split(r" {2,}", line.strip())
            found.append((f"{above}.{name}", cells))
        else:
            above = line.partition(":")[0]
    return found


def test_a_real_plan_fits_80_columns(real):
    """At 80 columns every row is on a line of its own, under the path of its module, with its numbers whole."""
    text = real.to_text(80, fold=False)
    assert max(map(len, text.splitlines())) <= 80
    found = paths(text)
    assert [name for name, _ in found] == [step.name for step in real]
    for step, (_, cells) in zip(real, found, strict=True):
        fans = f"{step.blocks} x " * (step.blocks > 1) + str(step.fans) if step.fans else "-"
        assert cells[2:4] == [fans, f"{step.std:.4g}"], step.name


def unfolded(name):
    """The names that a folded one stands for."""
    span = re.search(r"(?<![^.])(\d+)-(\d+)(?![^.])", name)
    if not span:
        return [name]
    each = range(int(span[1]), int(span[2]) + 1)
    return [full for i in each for full in unfolded(name[: span.start()] + str(i) + name[span.end() :])]


def test_blocks_that_repeat_are_told_once(real):
    """The rows of a folded plan stand for each tensor once, and are much fewer."""
    rows = [re.split(r" {2,}", line) for line in str(real).splitlines()[2:]]
    rows = rows[: next(i for i, row in enumerate(rows) if row[0].startswith("--"))]
    names = [name for row in rows for name in unfolded(row[0])]
    assert sorted(names) == sorted(step.name for step in real)
    assert len(rows) < 0.6 * len(real)
    told = {name: row[1:6] for row in rows for name in unfolded(row[0])}
    whole = {step.name: [step.layer, step.role, str(step.initializer)] for step in real}
    assert {name: cells[:3] for name, cells in told.items()} == whole


def linears(*widths):
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


def experts():
    return nn.ModuleList([nn.ModuleDict({"experts": linears(*[4] * 5), "norm": nn.LayerNorm(4)}) for _ in range(2)])


FOLDS = {
    "six alike": (linears(*[4] * 7), None, ["0-5.weight", "0-5.bias"]),
    "two small ones are told": (linears(4, 4, 4), None, ["0.weight", "0.bias", "1.weight", "1.bias"]),
    "one differs": (
        linears(4, 4, 4, 4, 5, 4),
        None,
        ["0-2.weight", "0-2.bias", "3.weight", "3.bias", "4.weight", "4.bias"],
    ),
    "a rule for one": (
        linears(*[4] * 7),
        {"3": "he_normal"},
        ["0-2.weight", "0-2.bias", "3.weight", "3.bias", "4.weight", "4.bias", "5.weight", "5.bias"],
    ),
    "gaps": (
        nn.Sequential(*(m for _ in range(5) for m in (nn.Linear(4, 4), nn.ReLU()))),
        None,
        ["0,2…8.weight", "0,2…8.bias"],
    ),
    "blocks in blocks": (
        experts(),
        None,
        ["0-1.experts.0-3.weight", "0-1.experts.0-3.bias", "0-1.norm.weight", "0-1.norm.bias"],
    ),
    "a module of that very name": (
        nn.ModuleDict({**{str(i): nn.Linear(4, 4) for i in range(3)}, "0-2": nn.Linear(4, 4)}),
        None,
        ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "0-2.weight", "0-2.bias"],
    ),
    "parameters by number": (
        nn.ParameterList([torch.zeros(3) for _ in range(6)]),
        {"*": "ones"},
        ["0-5"],
    ),
}


@pytest.mark.parametrize(("model", "rules", "names"), FOLDS.values(), ids=FOLDS)
def test_what_folds(model, rules, names):
    """Numbered neighbours fold that are alike in every cell, where that saves four rows; the rest is told."""
    plan = kinit.plan(model, rules)
    rows = [line.split()[0] for line in str(plan).splitlines()]
    assert rows[2 : rows[2:].index(rows[1]) + 2] == names
    whole = [line.split()[0] for line in plan.to_text(fold=False).splitlines()]
    assert whole[2 : len(plan) + 2] == [step.name for step in plan]


def test_tied_tensors_do_not_fold_away():
    """A block that shares a tensor with another place is told by itself."""
    model = nn.ModuleDict({"body": linears(*[4] * 7), "head": nn.Linear(4, 4, bias=False)})
    model["head"].weight = model["body"][2].weight
    text = str(kinit.plan(model))
    assert "body.2.weight = head.weight" in text
    assert "body.3-5.weight" in text
    assert "one tensor: body.2.weight = head.weight" in kinit.plan(model).to_text(50)


def test_the_last_line_sums_up():
    """It counts tensors, values and what is left alone, and tells the rule that all share."""
    plan = kinit.plan(nn.Sequential(nn.Linear(1000, 1234), nn.Linear(3, 1)), {"1": kinit.skip})
    assert str(plan).splitlines()[-1] == "4 tensors, 1.24 M values, 2 left alone"
    assert str(kinit.plan(nn.Linear(3, 1))).splitlines()[-1] == "2 tensors, 4 values; rule of all: Keras default"
    assert str(kinit.plan(nn.Linear(1, 1, bias=False))).splitlines()[-1].startswith("1 tensor, 1 value;")
    assert str(kinit.plan(nn.Linear(100, 123))).splitlines()[-1].startswith("2 tensors, 12.4 K values;")
    assert str(kinit.plan(nn.ReLU())).splitlines()[-1] == "0 tensors, 0 values"


def test_nothing_is_cut_but_for_a_terminal(monkeypatch):
    """Where the output is no terminal, COLUMNS or not, a row has all its cells; a terminal's width is kept."""
    monkeypatch.setenv("COLUMNS", "60")
    plan = kinit.plan(nn.Transformer(8, 2, 1, 1, 16, batch_first=True))
    whole = str(plan)
    assert whole == plan.to_text(1000)
    assert re.search(r"decoder\.layers\.0\.multihead_attn\.in_proj_weight +MultiheadAttention +kernel ", whole)
    assert "…" not in whole
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert str(plan) == plan.to_text(60) != whole
    assert max(map(len, str(plan).splitlines())) <= 60


def cells(step):
    fans = "-" if step.fans is None else f"({step.fans[0]}, {step.fans[1]})"
    fans = f"{step.blocks} x {fans}" if step.blocks > 1 and step.fans else fans
    return [" = ".join((step.name, *step.tied)), step.layer, step.role or "-", str(step.initializer), fans, step.rule]


def test_a_row_a_step():
    """Each step has a row: name, layer, role, initializer, fans, std, rule."""
    plan = kinit.plan(network(), {"head": nn.init.xavier_uniform_})
    head, _, *rows = (re.split(r" {2,}", line) for line in str(plan).splitlines()[:-2])
    assert head == ["name", "layer", "role", "initializer", "fans", "std", "rule"]
    assert [row[:5] + row[6:] for row in rows] == [cells(step) for step in plan]
    assert all(row[5] == ("-" if step.std is None else f"{step.std:.4g}") for row, step in zip(rows, plan, strict=True))


@pytest.mark.parametrize("width", [1, 20, 40, 60])
def test_names_and_numbers_stay_whole_in_any_width(width):
    """Whatever the width, each name and number is there, and a call that is cut has lost its arguments whole."""
    rules = {"head": "he_normal", "head.bias": {"class_name": "RandomUniform", "config": {"minval": -0.125}}}
    plan = kinit.plan(network(), rules)
    text = plan.to_text(width)
    found = dict(paths(text))
    assert set(found) == {step.name for step in plan}
    assert "random_uniform(low=-0.125)" in text or "rand…orm" in text or "random_uniform(…)" in text
    for step in plan:
        assert f"{step.std:.4g}" in found[step.name]
        assert step.fans is None or any(str(step.fans) in cell for cell in found[step.name])


@pytest.mark.parametrize("width", [0, -1, 3.5, "80"])
def test_a_width_that_is_none(width):
    """A width below 1, or that is no int, is an error with what came."""
    with pytest.raises((ValueError, TypeError), match=r"`width` must be"):
        kinit.plan(nn.Linear(2, 2)).to_text(width)


def test_colour_is_asked_for(monkeypatch):
    """Only to_text(color=True) has colours, which leave the text as it is; with NO_COLOR set not even that."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    plan = kinit.plan(network(), {"head": "he_normal", "stem": kinit.skip})
    plain = str(plan)
    assert "\033" not in plain
    for width in (None, 60):
        coloured = plan.to_text(width, color=True)
        assert re.sub(r"\033\[\d+m", "", coloured) == plan.to_text(width)
        assert "\033[33m(lef" in coloured
        assert "\033[36m'head'" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert plan.to_text(color=True) == plain


def test_what_values_pass_through_is_told():
    """A parametrization stands behind the initializer, in tables and lines, and wraps where it is narrow."""
    plan = kinit.plan(nn.Linear(3, 2), {"weight": "he_normal"})
    steps = tuple(dataclasses.replace(step, parametrizations=("spectral_norm",)) for step in plan)
    told = dataclasses.replace(plan, steps=steps)
    assert "he_normal, then spectral_norm" in str(told)
    assert "float32: he_normal, then spectral_norm, fans (3, 2)" in str(told["weight"])
    assert re.search(r"he_normal, then .*\n +spectral_norm\n", told.to_text(60))


def test_what_is_usual_is_told_once():
    """In a narrow table cells that are as usual are left out, and a line below has them; not if there are none."""
    plan = kinit.plan(network(), {"head": "he_normal"})
    narrow = plan.to_text(60).splitlines()
    assert narrow[-2] == "rule where none is shown: Keras default"
    assert sum("'head'" in line for line in narrow) == 1
    everything = kinit.plan(network(), {"*": kinit.skip, "head": "he_normal", "head.bias": "ones"})
    assert "where none is shown" not in everything.to_text(60)


def test_headings_tell_each_module_once():
    """Rows stand under the path and class of their layer, what a layer keeps in a module inside it too."""
    plan = kinit.plan(nn.ModuleDict({"attend": nn.MultiheadAttention(12, 3), "head": nn.Linear(12, 2)}))
    assert [line.split("  ")[:2] for line in plan.to_text(50).splitlines()[2:9]] == [
        ["attend: MultiheadAttention"],
        ["", "in_proj_weight"],
        ["", "in_proj_bias"],
        ["", "out_proj.weight"],
        ["", "out_proj.bias"],
        ["head: Linear"],
        ["", "weight"],
    ]
    rows = [["a.b.weight", "1"], ["a.b.bias", "2"], ["a.c.weight", "3"], ["scale", "4"]]
    assert report.as_text(["name", "value"], rows, 12).splitlines()[2:] == [
        "a.b", "  weight  1", "  bias    2", "a.c", "  weight  3", "(the model)", "  scale   4",
    ]  # fmt: skip


def test_sentences_wrap_and_calls_lose_their_arguments():
    """A cell of several words takes more lines; of a call the name stays; a long word loses its middle."""
    rows = [["dense", "off by 0.25 to 0.9 after 20 steps", "trunc_normal(std=0.02)", "num_batches_tracked", "0.125"]]
    text = report.as_text(["layer", "effect", "initializer", "role", "std"], rows, 55).splitlines()
    assert max(map(len, text)) <= 55
    wrapped = [text[2].split("  ")[1], *(line.strip() for line in text[3:])]
    assert " ".join(" ".join(wrapped).split()) == "off by 0.25 to 0.9 after 20 steps"
    assert "trunc_normal(…)" in text[2]
    assert text[2].endswith("  0.125")
    assert re.search(r"num_\w*…\w*ed ", text[2])


def test_words_wrap_before_any_is_cut():
    """A column gives way down to its longest word before a word of another is cut."""
    rows = [["0.weight", "num_batches_tracked", "a rule of many short words"]]
    text = report.as_text(["name", "role", "rule"], rows, 40)
    assert "num_batches_tracked" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 40


def test_a_table_of_one_column():
    """It has no headings."""
    assert report.as_text(["x"], [["one"], ["two"]], 2).splitlines() == ["x", "---", "one", "two"]


def test_optional_columns_go_first():
    """Columns that may go do so in their order, and a line says which."""
    header, rows = ["name", "words", "a", "b"], [["x.weight", "glorot_uniform", "0.25", "0.125"]]
    text = report.as_text(header, rows, 30, optional=["b", "words"])
    assert "0.125" not in text
    assert text.splitlines()[-1] == "not shown in 30 columns: b"
    assert "0.125" in report.as_text(header, rows, 40, optional=["b", "words"])


class _Cells(html.parser.HTMLParser):
    """The texts of a table's cells by row, refusing tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.rows = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def html_rows(plan):
    parser = _Cells()
    parser.feed(plan._repr_html_())
    parser.close()
    assert parser.open == []
    return parser.rows


def test_html():
    """The HTML table is well-formed and escaped, with the whole of each cell, and sums up."""
    plan = kinit.plan(network(), {"head": lambda tensor: None})
    rows = html_rows(plan)
    assert [row[:5] + row[6:] for row in rows[1:-1]] == [cells(step) for step in plan]
    assert rows[-1] == [str(plan).splitlines()[-1]]
    assert "<lambda>" in plan["head.weight"].initializer.__str__()
    assert "<lambda>" not in plan._repr_html_()


def test_html_folds_as_text_does():
    """Blocks that repeat have the rows of one."""
    assert [row[0] for row in html_rows(kinit.plan(linears(*[4] * 7)))[1:-1]] == ["0-5.weight", "0-5.bias"]


STEPS = {
    "a kernel": (
        lambda: kinit.plan(nn.Linear(3, 8), {nn.Linear: "he_normal"})["weight"],
        "weight, the kernel of Linear, (8, 3) float32: he_normal, fans (3, 8), std 0.8165; rule: Linear",
    ),
    "tied": (
        lambda: kinit.plan(tied())["head.weight"],
        "words.weight = head.weight, the embeddings of Embedding, (10, 8) float32: random_uniform, std 0.02887; "
        "rule: Keras default",
    ),
    "left alone": (
        lambda: kinit.plan(nn.ParameterList([torch.zeros(2)]), on_uncovered="keep")["0"],
        "0, of ParameterList, (2,) float32: (left alone); rule: left alone (uncovered)",
    ),
    "packed": (
        lambda: kinit.plan(nn.MultiheadAttention(12, 3))["in_proj_weight"],
        "in_proj_weight, the kernel of MultiheadAttention, (36, 12) float32: glorot_uniform, fans 3 x (12, 12), "
        "std 0.2887; rule: Keras default",
    ),
}


@pytest.mark.parametrize(("step", "line"), STEPS.values(), ids=STEPS)
def test_a_step_says_what_it_does(step, line):
    """print(step) is one line: what is filled, with what, and why."""
    assert str(step()) == line
