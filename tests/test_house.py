"""The house is in order: imports go one way, there is one list of public names, torch alone is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import torch_kinit as kinit

PACKAGE = Path(kinit.__file__).parent

# Each module imports only from those above it.
ORDER = [
    "streams",
    "streams.fused",
    "streams.scratch",
    "streams.exact",
    "streams.subnormals",
    "streams.threefry",
    "streams.xla",
    "streams.philox",
    "streams.glibc",
    "streams.stateless",
    "streams.oversampled",
    "_checks",
    "_fans",
    "_keras_seed",
    "_laws",
    "_sharded",
    "_samplers",
    "_compiled",
    "_key",
    "_elementary",
    "_initializers",
    "_structured",
    "_recipes",
    "_layouts",
    "_identifiers",
    "_moments",
    "_targets",
    "_unset",
    "_materialize",
    "_filling",
    "_rules",
    "_steps",
    "_undo",
    "_report",
    "_plan",
    "_apply",
    "_fsdp1",
    "_keras_layers",
    "_keras_wrappers",
    "_keras_order",
    "_keras_models",
    "_slots",
    "_matching",
    "_exchange",
    "_twins",
    "_replay",
    "__init__",
    "_demo",
    "__main__",
]


def path_of(module):
    """The file of a module."""
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(module):
    """The package's modules that a module imports."""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch_kinit":
            for alias in node.names:
                yield alias.name if alias.name in ORDER else "__init__"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch_kinit."):
            imported = node.module.removeprefix("torch_kinit.")
            for alias in node.names:
                yield f"{imported}.{alias.name}" if f"{imported}.{alias.name}" in ORDER else imported


def test_every_module_has_its_place():
    """The order names every file of the package."""
    assert {*PACKAGE.glob("**/*.py")} == {path_of(module) for module in ORDER}


def test_imports_go_one_way():
    """No module imports from one below it."""
    wrong = [
        f"{module} imports {imported}"
        for module in ORDER
        for imported in imports_of(module)
        if ORDER.index(imported) >= ORDER.index(module)
    ]
    assert not wrong


def test_there_is_one_list_of_public_names():
    """`__all__` is what `__init__` imports, and every public function is documented with an example."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imported = {a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert set(kinit.__all__) == imported
    undocumented = [
        name for name in kinit.__all__ if callable(getattr(kinit, name)) and not getattr(kinit, name).__doc__
    ]
    assert not undocumented
    functions = [
        name for name in kinit.__all__ if name.endswith("_") or name in ("apply", "plan", "get", "serialize", "fans")
    ]
    assert not [name for name in functions if ">>>" not in getattr(kinit, name).__doc__]


def test_importing_needs_torch_alone():
    """Importing the package imports nothing that torch has not imported, but the standard library."""
    code = (
        "import sys, torch; before = set(sys.modules); import torch_kinit;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['torch_kinit']"
