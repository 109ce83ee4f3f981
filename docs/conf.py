"""The site: ``make -C docs html`` builds it, executes each page with code, and fails on a warning."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two pages are executed at once

import ppl_vae

ROOT = Path(__file__).parent.parent
SOURCE = os.environ.get("PPL_VAE_SOURCE", ROOT.as_uri())  # where the files of the repository are shown

project = "ppl_vae"
author = "the ppl_vae authors"
version = release = ppl_vae.__version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.linkcode",
    "myst_nb",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "ppl_vae"
html_show_sourcelink = False
# MathJax from a package, so that formulas need no network, on a reader's machine either
html_css_files = ["site.css"]
html_static_path = ["_static", str(Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static")]
mathjax_path = "mathjax/tex-chtml.js"
html_show_sphinx = False

# pages with code: each is executed afresh, and an error ends the build
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_output_stderr = "remove"  # progress, and what Pyro says of a notebook without widgets
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline", "html_image"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]  # ref.python: `x` may be the x of several classes

# the reference, from docstrings
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Return the address of an object's source."""
    if domain != "py" or not info["module"]:
        return None
    target = importlib.import_module(info["module"])
    for part in info["fullname"].split("."):
        target = getattr(target, part, None)
    try:
        target = inspect.unwrap(target)
        path, (lines, start) = Path(inspect.getsourcefile(target)), inspect.getsourcelines(target)
    except (TypeError, OSError):
        return None
    package = Path(ppl_vae.__file__).parent
    if not path.is_relative_to(package):
        return None
    return f"{SOURCE}/{path.relative_to(package.parent)}#L{start}-L{start + len(lines) - 1}"


def _as_rst(_app: Any, _what: str, _name: str, _target: object, _options: object, lines: list[str]) -> None:
    """Escape what a docstring means as it stands: the star of a shape, ``(*batch, d)``, and the bars of |z|."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`.*?`)", line)
        for j in range(0, len(parts), 2):
            parts[j] = re.sub(r"(?<![*\w\\])\*(?=\w+(?![\w*]))", r"\\*", parts[j])
            parts[j] = re.sub(r"(?<!\\)\|(\w+)\|", r"\\|\1\\|", parts[j])
        lines[i] = re.sub(r"^(\s+)(?=[A-Z]\.$)", r"\1\\", "".join(parts))  # "K." is no list


def _with_addresses(_app: Any, _name: str, source: list[str]) -> None:
    """Turn links to files of the repository that are no pages, ``](../benchmarks/README.md)``, into addresses.

    Where the repository has no address on the web, the words of the link stay, which name the file.
    """
    link = r"\[([^\]]*)\]\(\.\./((?:benchmarks|examples|tests|ppl_vae)[^)]*)\)"
    source[0] = re.sub(link, rf"[\1]({SOURCE}/\2)" if SOURCE.startswith("http") else r"\1", source[0])


def _with_notebook(app: Any, page: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    """Put a page with code beside itself as a notebook, as it was executed, and a link to it at the top."""
    notebook = Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"
    if notebook.is_file():
        to = Path(app.outdir) / f"{page}.ipynb"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(notebook, to)
        context["body"] = f'<p><a href="{to.name}" download>this page as a notebook</a></p>' + context["body"]


def setup(app: Any) -> None:
    """Register the hooks; that for docstrings comes after napoleon's."""
    app.connect("html-page-context", _with_notebook)
    app.connect("autodoc-process-docstring", _as_rst, priority=600)
    app.connect("source-read", _with_addresses)
