"""The notebooks run from top to bottom, and what is stored of them is fit to publish."""

import functools
import json
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import torch_kinit
from tests.support.backends import backend

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MOST_BYTES = 300_000

# A path from the root of a file system, two names long or more; not a URL, a fraction or an HTML tag.
ABSOLUTE_PATH = re.compile(r"(?<![\w:/.<)}])/[\w.-]+(?:/[\w.-]+)+|\b[A-Za-z]:\\\w+")

# The first values of each kernel, but for the orthogonal ones, of the networks that a notebook defines.
FIRST_VALUES = """
import keras
from keras import layers

{definitions}

result = []
for network, make in (("image", keras_image), ("text", keras_text)):
    keras.utils.set_random_seed(7)
    for weight in make().weights:
        if weight.name in ("kernel", "embeddings"):
            result.append((network, keras.ops.convert_to_numpy(weight).ravel()[:3]))
"""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def notebook_of(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def execute(notebook, folder):
    """Run the cells in `folder`, in a kernel of this interpreter that imports the torch_kinit under test."""
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    run = folder / "run"
    run.mkdir()
    settings = {
        "display_name": "Python 3",
        "language": "python",
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "env": {
            "PYTHONPATH": str(Path(torch_kinit.__file__).parents[1]),
            "IPYTHONDIR": str(folder / "ipython"),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "OMP_NUM_THREADS": "1",  # beside a busy core, two threads that wait for each other take longer than one
        },
    }
    (spec / "kernel.json").write_text(json.dumps(settings), encoding="utf-8")
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    client = NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(run)}})
    client.execute(cleanup_kc=True)  # a manager of our own is otherwise left running
    return notebook


@functools.cache
def executed(path):
    """A notebook after its run; once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        return execute(read(path), Path(folder))


def table_of(notebook, header):
    """The rows of the table whose header starts so, among the outputs of a notebook."""
    outputs = [
        out.get("data", {}).get("text/markdown", "") for cell in notebook.cells for out in cell.get("outputs", [])
    ]
    (found,) = [text for text in outputs if text.startswith(header)]
    return [[field.strip() for field in line.strip("| ").split("|")] for line in found.splitlines()]


def faults(notebook):
    """What keeps a stored notebook from being published, one sentence each."""
    found = []
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("its kernel is not named python3")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("it was not run from top to bottom, once")
    for number, cell in enumerate(cells, 1):
        found += [f"cell {number} stored an error" for out in cell.outputs if out.output_type == "error"]
        found += [f"cell {number} wrote to stderr" for out in cell.outputs if out.get("name") == "stderr"]
        if "execution" in cell.metadata:
            found.append(f"cell {number} stored its timings")
    found += [f"it holds the path {path}" for text in texts(notebook) for path in ABSOLUTE_PATH.findall(text)]
    return found


def texts(value):
    """Every string in a notebook but the pictures, in which base64 may spell anything."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not key.startswith("image/"):
                yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def shown(notebook):
    """The kinds of output of each cell, but for what it prints, where a fresh machine may have more to say."""
    kinds = ("display_data", "execute_result")
    return [[out.output_type for out in cell.get("outputs", []) if out.output_type in kinds] for cell in notebook.cells]


def test_there_are_notebooks():
    """The notebooks are where the tests look for them."""
    assert {"1-the-five-laws", "2-rules-and-plans", "3-matching-keras", "4-sharded"} <= {
        path.stem for path in NOTEBOOKS
    }


@each_notebook
def test_stored_notebook_is_fit_to_publish(path):
    """A stored notebook is valid and small, ran in order without an error, and tells nothing of the machine."""
    notebook = read(path)
    nbformat.validate(notebook)
    assert faults(notebook) == []
    assert path.stat().st_size <= MOST_BYTES


@pytest.mark.slow
@each_notebook
def test_notebook_runs(path):
    """Every cell runs without an error, in a kernel that knows nothing of the cells that ran before it was stored."""
    assert shown(executed(path)) == shown(read(path)), (
        "what is stored is not what the cells show; run and store it again"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "tensorflow"])
def test_first_values_are_those_of_keras(name):
    """What the third notebook prints as Keras' weights on a backend, stored or run anew, real Keras draws on it."""
    path = next(path for path in NOTEBOOKS if path.stem == "3-matching-keras")
    definitions = next(cell.source for cell in read(path).cells if "def keras_image" in cell.source)
    drawn = backend(name)(FIRST_VALUES.replace("{definitions}", definitions))
    expected = [(network, ", ".join(f"{value:.9g}" for value in values.tolist())) for network, values in drawn]
    for notebook in (executed(path), read(path)):
        header, _, *rows = table_of(notebook, "| kernel | jax")
        column = header.index(name)
        assert [(row[0].partition(":")[0], row[column]) for row in rows] == expected


@pytest.mark.slow
def test_failing_cell_is_reported(tmp_path):
    """A cell that raises fails the run, with the cell's error in the message."""
    with pytest.raises(CellExecutionError, match="assert 1 > 2"):
        execute(notebook_of("assert 1 > 2"), tmp_path)


@pytest.mark.slow
def test_kernel_is_this_interpreter(tmp_path):
    """The kernel runs this interpreter, outside the source tree, and imports the torch_kinit under test."""
    notebook = notebook_of(
        "import os, sys, torch_kinit\nprint(sys.executable, os.getcwd(), torch_kinit.__file__, sep='\\n')"
    )
    printed = execute(notebook, tmp_path).cells[0].outputs[0].text.splitlines()
    assert printed == [sys.executable, str((tmp_path / "run").resolve()), torch_kinit.__file__]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("File /home/someone/project/model.py:3", ["/home/someone/project/model.py"]),
        ("saved to '/tmp/x'", ["/tmp/x"]),
        (r"C:\Users\someone", [r"C:\Users"]),
        ("https://keras.io/api/layers/ and n_in / n_out, 1/2/3", []),
        ("<td>a</td></tr> $1/n_\\mathrm{in}/2$", []),
    ],
    ids=["unix", "quoted", "windows", "url and fractions", "html and LaTeX"],
)
def test_absolute_paths_are_seen(text, found):
    """A path of somebody's machine is found in an output, and what only looks like one is not."""
    notebook = notebook_of("1")
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    assert [fault for fault in faults(notebook) if "path" in fault] == [f"it holds the path {path}" for path in found]


def test_faults_are_seen():
    """A notebook with a strange kernel, out of order, with an error, stderr and timings has each of these faults."""
    notebook = notebook_of("1", "2")
    notebook.metadata["kernelspec"] = {"name": "my-kernel"}
    first, second = notebook.cells
    first.execution_count, second.execution_count = 7, 3
    first.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])]
    second.outputs = [nbformat.v4.new_output("stream", name="stderr", text="warning")]
    second.metadata["execution"] = {"iopub.execute_input": "2020-01-01T00:00:00Z"}
    assert faults(notebook) == [
        "its kernel is not named python3",
        "it was not run from top to bottom, once",
        "cell 1 stored an error",
        "cell 2 wrote to stderr",
        "cell 2 stored its timings",
    ]
