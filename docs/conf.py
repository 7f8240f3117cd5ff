"""The reference documentation: `sphinx-build -W -n docs build/docs`, with the extra `docs` installed."""

import re
import shutil
from pathlib import Path

from latex2mathml.converter import convert

import torch_kinit

project = "torch_kinit"
author = "the torch_kinit authors"
version = release = torch_kinit.__version__
html_title = f"torch_kinit {release}"
html_theme = "furo"
html_theme_options = {"source_repository": ""}
html_show_copyright = html_show_sphinx = False
exclude_patterns = ["build"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "matplotlib.sphinxext.plot_directive", "myst_nb"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run them; what they printed is stored
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_use_rtype = False
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!torch_kinit).*")]  # types of other projects

plot_html_show_source_link = plot_html_show_formats = False
plot_formats = ["svg"]
plot_include_source = False
plot_pre_code = "import torch_kinit as kinit"

HERE = Path(__file__).parent
CODE = re.compile(r"`([^`]+)`")


def as_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text with code in single backticks: write them so that reST reads no more into them."""
    text, examples = [], []
    lines[:] = "\n".join(lines).split("\n")
    for line in lines:
        examples.append(line.lstrip().startswith((">>>", "...")))
        text.append("" if examples[-1] else line)
    plain = CODE.sub(code, escaped("\n".join(text))).split("\n")
    lines[:] = [line if example else other for line, other, example in zip(lines, plain, examples, strict=True)]


def escaped(text):
    """A text in which nothing but code is markup."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"[*|](?=\S)|_(?!\w)", r"\\\g<0>", part) for part in parts)


def code(match):
    """A public name as a link to its entry, other code as it is; both may stand in the middle of a word."""
    text = match[1]
    return rf":py:obj:`~torch_kinit.{text}`\ " if text in torch_kinit.__all__ else rf"``{text}``\ "


def mathml(display):
    """A renderer of formulas that needs no script: browsers read MathML."""

    def visit(self, node):
        self.body.append(convert(node.astext(), display=display))
        raise __import__("docutils.nodes").nodes.SkipNode

    return visit


def with_notebooks(app):
    """Put the notebooks beside the pages."""
    shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)


def setup(app):
    app.connect("autodoc-process-docstring", as_rst, priority=400)
    app.connect("builder-inited", with_notebooks, priority=100)
    app.add_html_math_renderer("mathml", (mathml("inline"), None), (mathml("block"), None))
