"""The house is in order: imports go one way, there is one list of public names, torch alone is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import torch_kinit as kinit

PACKAGE = Path(kinit.__file__).parent

# Each package or file of the top imports only from those below it.
ORDER = [
    "__main__",
    "demo",
    "__init__",
    "keras",
    "model",
    "layers",
    "initializers",
    "streams",
    "checks",
    "numerics",
    "shards",
]


def rooms():
    """Every file of the package, with the room it belongs to."""
    for path in PACKAGE.glob("**/*.py"):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imported_rooms(path):
    """The rooms that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "torch_kinit":
            for alias in node.names:
                yield alias.name if alias.name in ORDER else "__init__"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch_kinit."):
            yield node.module.split(".")[1]


def test_imports_go_one_way():
    """No room imports from one above it."""
    assert {room for room, _ in rooms()} == set(ORDER)
    wrong = [
        f"{path} imports {imported}"
        for room, path in rooms()
        for imported in imported_rooms(path)
        if ORDER.index(imported) < ORDER.index(room)
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
