"""How docs/ becomes HTML: `make docs`.  Read without a network: formulas are text, nothing is loaded from elsewhere."""

import re
import sys
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "bptoolkit"
author = copyright = "The bptoolkit authors"
release = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]["version"]

extensions = ["myst_parser", "reference"]
exclude_patterns = ["_build", "_ext"]
nitpicky = True
smartquotes = False  # "class" is a value

myst_heading_anchors = 3
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

pygments_dark_style = "github-dark"
html_theme = "furo"
html_title = f"bptoolkit {release}"
html_show_sphinx = False
html_copy_source = False

# In place of a toctree in index.md, which would show as code wherever Markdown is read as it is.  A page that is
# missing here is an error of the build.
CONTENTS = {
    "Tutorials": ["tutorials/solver", "tutorials/cell", "tutorials/rule", "tutorials/strategy", "tutorials/result"],
    "Guides": ["theory", "fixed_points", "forgetting", "published", "runs", "scale", "policy"],
    "Reference": ["api/*"],
}


def contents(app: Sphinx, page: str, text: list[str]) -> None:
    """The sidebar, at the end of the first page."""
    if page != "index":
        return
    for caption, pages in CONTENTS.items():
        text[0] += "\n".join(["", "```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *pages, "```", ""])


def files_of_the_repository(app: Sphinx, page: str, text: list[str]) -> None:
    """Links out of docs/ become the path, since those files are no pages here."""
    text[0] = re.sub(r"\[([^]]+)\]\((?:\.\./)+([^)]+)\)", r"\1 (`\2`)", text[0])


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.connect("source-read", contents)
    app.connect("source-read", files_of_the_repository)
