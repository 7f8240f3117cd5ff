"""The house is in order: each rule reads a tree and lists what breaks it, and a planted tree shows that it can."""

import ast
import configparser
import graphlib
import pickle
import re
import subprocess
import sys
import traceback
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_kinit as kinit

PACKAGE = Path(kinit.__file__).parent
TESTS = Path(__file__).parent
README, SETUP = TESTS.parent / "README.md", TESTS.parent / "setup.cfg"

# Each room, a package or a file at the top, imports only from those below it; the lowest from each other too.
ORDER = ("__main__", "__init__", "inspection", "keras", "model", "layers", "initializers", "streams")
LOWEST = ("checks", "demo", "numerics", "shards", "torch_internals")
MOST_ROOMS, LONGEST_CAPTION = 10, 120


# Reading a tree.


def files(tree):
    """All modules of a tree by their paths in it, such as "model/plan.py"."""
    return {path.relative_to(tree).as_posix(): path for path in sorted(tree.glob("**/*.py"))}


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def room(file):
    return file.partition("/")[0].removesuffix(".py")


def rooms(tree):
    """What stands at the top, `__init__` and `__main__` aside, as README's map writes it."""
    return {name.partition("/")[0] + "/" * ("/" in name) for name in files(tree)} - {"__init__.py", "__main__.py"}


def at_run_time(node):
    """All nodes below one, without blocks for type checkers alone."""
    yield node
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        yield from at_run_time(child)


def imported(tree, path):
    """The files of the tree that a file imports when it runs, in its functions too."""
    for node in at_run_time(parsed(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = path.relative_to(tree.parent).parts[: -node.level]
            names = [".".join((*base, *filter(None, [node.module]), alias.name)) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, *parts = name.split(".")
            if top == tree.name:
                yield file_of(tree, parts)


def file_of(tree, parts):
    """The file that holds a dotted name: a module, or a value in one."""
    for end in range(len(parts), 0, -1):
        path = tree.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py").relative_to(tree).as_posix()
        if path.is_dir():
            return (path / "__init__.py").relative_to(tree).as_posix()
    return "__init__.py"


# The rules: each gives the complaints about a tree.


def wrong_order(tree):
    """Imports of a room above or of a room without a place, and of `demo` by any room but `__main__`."""
    places = {name: i for i, name in enumerate(ORDER)} | dict.fromkeys(LOWEST, len(ORDER))
    for file, path in files(tree).items():
        if room(file) not in places:
            yield f"{file}: {room(file)} has no place in the order"
            continue
        for other in imported(tree, path):
            if places.get(room(other), -1) < places[room(file)]:
                yield f"{file} imports {other}, which stands above it"
            if Path(other).name == "demo.py" and Path(file).name not in ("demo.py", "__main__.py"):
                yield f"{file} imports {other}, which is for __main__ alone"


def circles(tree):
    """A circle of files that import each other, one of folders, and one of rooms."""
    among_files, among_folders, among_rooms = {}, {}, {}
    for file, path in files(tree).items():
        others = set(imported(tree, path))
        among_files[file] = others
        folder = Path(file).parent
        among_folders.setdefault(folder, set()).update({Path(other).parent for other in others} - {folder, Path(".")})
        among_rooms.setdefault(room(file), set()).update({room(other) for other in others} - {room(file)})
    for graph in (among_files, among_folders, among_rooms):
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            yield " is imported by ".join(map(str, error.args[1]))


def bad_captions(tree):
    """Files without a docstring, with a long first line, or with that of another file."""
    seen = {}
    for file, path in files(tree).items():
        caption = (ast.get_docstring(parsed(path)) or "").partition("\n")[0]
        if not caption:
            yield f"{file} has no caption"
        elif len(caption) > LONGEST_CAPTION:
            yield f"{file} has a caption of {len(caption)} characters"
        elif caption in seen:
            yield f"{file} has the caption of {seen[caption]}"
        seen.setdefault(caption, file)


def bad_rooms(tree):
    """More rooms than a newcomer keeps in mind, and names that begin with an underscore."""
    if len(rooms(tree)) > MOST_ROOMS:
        yield f"{len(rooms(tree))} rooms at the top"
    for file in files(tree):
        if any(re.match(r"_(?!_init__\.py|_main__\.py)", part) for part in file.split("/")):
            yield f"{file} begins with an underscore"


def not_on_the_map(tree, readme):
    """Rooms that the table in README's section "Develop" lacks, and rows without a room."""
    develop = readme.partition("\n## Develop\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| *`([^`]+)` *\|", develop, re.MULTILINE)
    yield from (f"README's map lacks {name}" for name in sorted(rooms(tree) - set(listed)))
    yield from (f"README's map has {name}" for name in sorted(set(listed) - rooms(tree)))
    yield from (f"README's map has {name} twice" for name in sorted(set(listed)) if listed.count(name) > 1)


def not_installed(tree, setup):
    """Packages that setup.cfg lacks, and others that it has."""
    config = configparser.ConfigParser()
    config.read_string(setup)
    listed = config["options"]["packages"].split()
    there = {".".join(path.relative_to(tree.parent).parts[:-1]) for path in tree.glob("**/*.py")}
    yield from (f"setup.cfg lacks {name}" for name in sorted(there - set(listed)))
    yield from (f"setup.cfg has {name}" for name in sorted(set(listed) - there))


def bad_list_of_names(tree):
    """Public names that are imported and not listed, listed and not imported, or out of order."""
    body = parsed(tree / "__init__.py").body
    late = [node for block in body if isinstance(block, ast.If) for node in block.body]  # for type checkers
    imports = [
        node for node in (*body, *late) if isinstance(node, ast.ImportFrom) and node.module.startswith(tree.name)
    ]
    found = {alias.asname or alias.name for node in imports for alias in node.names} - {"INSPECTIONS"}
    listed = next(
        ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    yield from (f"__all__ lacks {name}" for name in sorted(found - set(listed)))
    yield from (f"__all__ has {name}" for name in sorted(set(listed) - found))
    if listed != sorted(set(listed)):
        yield "__all__ is not sorted"


def badly_documented(tree, namespace, names):
    """Public names that say they live elsewhere, and those without a docstring, an example or, if values, a comment.

    Of a public module, such as `plot`, each name in its `__all__` has an example.
    """
    for name in names:
        value = getattr(namespace, name)
        if isinstance(value, types.ModuleType):
            inner = {f"{name}.{own}": getattr(value, own) for own in value.__all__}
            yield from (f"{own} has no example" for own, held in inner.items() if ">>>" not in (held.__doc__ or ""))
            if ">>>" not in (value.__doc__ or ""):
                yield f"{name} has no example"
            continue
        if getattr(value, "__module__", tree.name) != tree.name:
            yield f"{name} says that it lives in {value.__module__}"
        if isinstance(value, (type, types.FunctionType)):
            own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__  # a class inherits others'
            if ">>>" not in (own or ""):
                yield f"{name} has no example"
        elif type(value).__module__ == tree.name and type(value).__doc__:
            continue
        elif not any(re.search(rf"(?m)^#.*\n{name}\b", path.read_text("utf-8")) for path in files(tree).values()):
            yield f"{name} is not explained"


def borrowing_tests(tree):
    """Test modules that import from another; what several need stands in `support`."""
    for file, path in files(tree).items():
        for other in imported(tree, path):
            if other.rpartition("/")[2].startswith("test_"):
                yield f"{file} imports from {other}"


def unmirrored(tree, tests):
    """Packages without a package of tests."""
    yield from (f"no tests/{name}" for name in sorted(rooms(tree)) if name[-1] == "/" and not (tests / name).is_dir())


RULES = {
    "order": wrong_order,
    "circles": circles,
    "captions": bad_captions,
    "rooms": bad_rooms,
    "map": lambda tree: not_on_the_map(tree, README.read_text("utf-8")),
    "setup.cfg": lambda tree: not_installed(tree, SETUP.read_text("utf-8")),
    "__all__": bad_list_of_names,
    "documentation": lambda tree: badly_documented(tree, kinit, kinit.__all__),
    "tests": lambda tree: unmirrored(tree, TESTS),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_package_keeps_each_rule(rule):
    """No rule has a complaint about the package."""
    assert list(rule(PACKAGE)) == []


def test_test_modules_stand_alone():
    """No test module imports from another."""
    assert list(borrowing_tests(TESTS)) == []


# Planted trees, and what is said of them.

CAPTION = '"""What {} is for."""\n'
README_OF_TWO = (
    "# Title\n\n## Develop\n\n| room | what it is |\n|---|---|\n| `model/` | m |\n| `checks.py` | c |\n\n## Licence\n"
)
SETUP_OF_TWO = "[options]\npackages =\n    kit\n    kit.model\n"
IN_ORDER = {
    "__init__.py": 'from kit.model.plan import plan\n__all__ = ["plan"]\n',
    "__main__.py": "import kit.demo\nfrom kit import plan\n",
    "demo.py": "import torch\n",
    "model/__init__.py": "",
    "model/plan.py": "from kit import checks\n\ndef plan():\n    '''>>> 1'''\n    import kit.checks\n",
    "checks.py": "",
}
TYPES_ONLY = "import typing\nfrom typing import TYPE_CHECKING\nif {}:\n    from kit.model import plan\n"

PLANTED = {
    "from above": (wrong_order, {"checks.py": "from kit.model.plan import plan"}, "checks.py imports model/plan.py"),
    "import above": (wrong_order, {"checks.py": "import kit.model.plan"}, "checks.py imports model/plan.py"),
    "module above": (wrong_order, {"checks.py": "from kit.model import plan"}, "checks.py imports model/plan.py"),
    "package above": (wrong_order, {"checks.py": "from kit import model"}, "checks.py imports model/__init__.py"),
    "relative": (wrong_order, {"model/plan.py": "from ..__main__ import x"}, "model/plan.py imports __main__.py"),
    "relative module": (wrong_order, {"checks.py": "from . import model"}, "checks.py imports model/__init__.py"),
    "in a function": (wrong_order, {"checks.py": "def f():\n    import kit.model"}, "checks.py imports model/__init__"),
    "the whole": (wrong_order, {"checks.py": "import kit"}, "checks.py imports __init__.py"),
    "a public name": (wrong_order, {"model/plan.py": "from kit import apply"}, "model/plan.py imports __init__.py"),
    "else": (wrong_order, {"checks.py": TYPES_ONLY.format("TYPE_CHECKING") + "else:\n    import kit"}, "__init__.py"),
    "no place": (wrong_order, {"attic.py": ""}, "attic has no place in the order"),
    "demo": (wrong_order, {"model/plan.py": "import kit.demo"}, "demo.py, which is for __main__ alone"),
    "circle of files": (
        circles,
        {"model/a.py": "from kit.model import b", "model/b.py": "def f():\n    import kit.model.a"},
        "model/a.py is imported by model/b.py is imported by model/a.py",
    ),
    "circle of folders": (
        circles,
        {
            "model/a/x.py": "import kit.model.b.y",
            "model/a/w.py": "",
            "model/b/y.py": "",
            "model/b/z.py": "import kit.model.a.w",
        },
        "model/a is imported by model/b is imported by model/a",
    ),
    "circle of rooms": (
        circles,
        {"numerics/a.py": "import kit.checks", "numerics/b.py": "", "checks.py": "import kit.numerics.b"},
        "checks is imported by numerics is imported by checks",
    ),
    "no caption": (bad_captions, {"model/plan.py": None}, "model/plan.py has no caption"),
    "long caption": (bad_captions, {"checks.py": f'"""{"x" * 121}"""'}, "caption of 121 characters"),
    "equal captions": (bad_captions, {"checks.py": '"""Same."""', "demo.py": '"""Same."""'}, "the caption of checks"),
    "many rooms": (bad_rooms, {f"room_{i}.py": "" for i in range(8)}, "11 rooms at the top"),
    "underscore": (bad_rooms, {"model/_plan.py": ""}, "model/_plan.py begins with an underscore"),
    "underscored room": (bad_rooms, {"_model/plan.py": ""}, "_model/plan.py begins with an underscore"),
    "not on the map": (partial(not_on_the_map, readme=README_OF_TWO), {}, "README's map lacks demo.py"),
    "gone from the tree": (
        partial(not_on_the_map, readme=README_OF_TWO.replace("checks.py", "attic.py")),
        {},
        "README's map has attic.py",
    ),
    "no map": (partial(not_on_the_map, readme="# Title"), {}, "README's map lacks model/"),
    "not installed": (
        partial(not_installed, setup=SETUP_OF_TWO),
        {"layers/__init__.py": ""},
        "setup.cfg lacks kit.lay",
    ),
    "installed, not there": (
        partial(not_installed, setup=SETUP_OF_TWO + "    kit.attic\n"),
        {},
        "setup.cfg has kit.attic",
    ),
    "not listed": (bad_list_of_names, {"__init__.py": "from kit.checks import a, b\n__all__ = ['a']"}, "lacks b"),
    "listed only": (bad_list_of_names, {"__init__.py": "from kit.checks import a\n__all__ = ['a', 'b']"}, "has b"),
    "not sorted": (bad_list_of_names, {"__init__.py": "from kit.checks import a, b\n__all__ = ['b', 'a']"}, "sorted"),
    "borrowed": (
        borrowing_tests,
        {"model/test_a.py": "from kit.model.test_b import check", "model/test_b.py": ""},
        "b",
    ),
    "unmirrored": (partial(unmirrored, tests=Path("nowhere")), {}, "no tests/model/"),
}


def plant(folder, changes):
    """A package `kit` in order, but for the changes: code by file, to which a caption is added; None for no code."""
    tree = folder / "kit"
    for file, code in {**IN_ORDER, **changes}.items():
        path = tree / file
        path.parent.mkdir(parents=True, exist_ok=True)
        caption = "" if code is None or code.startswith('"""') else CAPTION.format(file)
        path.write_text(caption + (code or "x = 1\n"), "utf-8")
    return tree


@pytest.mark.parametrize(("rule", "changes", "complaint"), PLANTED.values(), ids=PLANTED)
def test_each_rule_can_complain(rule, changes, complaint, tmp_path):
    """A tree that breaks a rule is complained about in its words."""
    assert complaint in "\n".join(rule(plant(tmp_path, changes)))


def test_a_tree_in_order_is_left_in_peace(tmp_path):
    """No rule complains of the tree before it is changed, nor of imports for type checkers."""
    tree = plant(
        tmp_path, {f"streams/{i}.py": TYPES_ONLY.format(f"{t}TYPE_CHECKING") for i, t in enumerate(("", "typing."))}
    )
    readme, setup = README_OF_TWO.replace("| c |\n", "| c |\n| `demo.py` | d |\n| `streams/` | s |\n"), SETUP_OF_TWO
    rules = (wrong_order, circles, bad_captions, bad_rooms, bad_list_of_names, borrowing_tests)
    assert [list(rule(tree)) for rule in rules] == [[]] * len(rules)
    assert list(not_on_the_map(tree, readme)) == []
    assert list(not_installed(tree, setup + "    kit.streams\n")) == []


def test_documentation_is_asked_for(tmp_path):
    """A name of another module, a function or class without an example, and a bare value are each complained about."""
    tree = plant(tmp_path, {"checks.py": "# Explained.\nEXPLAINED = 1\n\nBARE = 2\n"})

    def named(name, base, **attributes):
        return type(name, (base,), {"__module__": "kit", **attributes})

    example = named("Example", object, __doc__=">>> 1")
    names = {
        "EXPLAINED": 1,
        "BARE": 2,
        "Example": example,
        "Heir": named("Heir", example),
        "Prose": named("Prose", object, __doc__="No example."),
        "Elsewhere": named("Elsewhere", object, __doc__=">>> 1", __module__="kit.model"),
        "one": named("Kind", object, __doc__="The kind of `one`.")(),
        "module": types.ModuleType("module", "No example."),
    }
    names["module"].__dict__.update(__all__=["good", "bad"], good=example, bad=named("Bad", object, __doc__="No."))
    assert list(badly_documented(tree, types.SimpleNamespace(**names), names)) == [
        "BARE is not explained",
        "Heir has no example",
        "Prose has no example",
        "Elsewhere says that it lives in kit.model",
        "module.bad has no example",
        "module has no example",
    ]


# Public names live in torch_kinit alone.


@pytest.mark.parametrize("name", [n for n in kinit.__all__ if n not in ("KERAS_DEFAULTS", "plot")])
def test_names_are_pickled_as_public_ones(name):
    """Each public class and function, and `skip`, is pickled as torch_kinit's own, whatever file it stands in."""
    value = getattr(kinit, name)
    assert f"ctorch_kinit\n{name}\n".encode() in pickle.dumps(value, 0)
    assert pickle.loads(pickle.dumps(value)) is value


def network():
    return nn.Sequential(nn.Embedding(10, 64), nn.LSTM(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_plan_is_data(protocol):
    """It carries neither the model nor names of files, and comes back equal."""
    model = network()
    rules = {
        "0": kinit.skip,
        "2": partial(kinit.he_normal_, generator=kinit.Key(1)),
        "2.bias": torch.arange(64.0),
        "3": partial(kinit.trunc_normal_, generator=kinit.KerasSeed(2, "jax")),
        "3.bias": 0.5,
    }
    drawn = network()
    for made in (kinit.plan(model, rules), kinit.replay_keras(drawn, 1, backend="jax")):
        data = pickle.dumps(made, protocol)
        assert re.search(rb"torch_kinit\.[a-z_]", data) is None
        assert len(data) < sum(p.numel() for p in model.parameters())
        loaded = pickle.loads(data)
        assert loaded == made
        assert loaded.model is None


def test_tracebacks_name_public_errors():
    """A traceback says torch_kinit.UnusedRuleError."""
    with pytest.raises(kinit.UnusedRuleError) as caught:
        kinit.plan(network(), {"4": "zeros"})
    assert traceback.format_exception_only(caught.value)[0].startswith("torch_kinit.UnusedRuleError: Rules that would")


def test_importing_needs_torch_alone():
    """Importing the package imports nothing that torch has not, but the standard library: not even more of torch."""
    code = (
        "import sys, torch; before = set(sys.modules); import torch_kinit;"
        "new = set(sys.modules) - before;"
        "print(sorted(m for m in new if m.partition('.')[0] not in {'torch_kinit', *sys.stdlib_module_names}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
