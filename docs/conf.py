"""Configure Sphinx, which builds the documentation into pages that a browser reads from disk (`make docs`).

The source is the whole repository and not only docs/: README.md, SECURITY.md and protocols/ are pages
as well, so one relative link works on GitHub, in an editor and in the built pages. `include_patterns` says
which files are pages.

Source: https://www.sphinx-doc.org/en/master/usage/configuration.html and https://myst-parser.readthedocs.io
for the names of the settings.
"""

import os
from pathlib import Path
from typing import Final

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

from wsgate import __version__

project: Final = "wsgate"
author: Final = "The wsgate authors"
copyright: Final = "the wsgate authors"
version = release = __version__

extensions: Final = ["myst_parser"]
root_doc: Final = "docs/index"
include_patterns: Final = [
    "docs/**.md",
    "protocols/**.md",
    "loadtest/**.md",
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
]
# Directories that are not searched at all. Without them Sphinx walks through the virtual environment, too.
exclude_patterns: Final = [".*", "build", "dist", "reports", "tests", "wsgate", "examples"]

# Anchors as GitHub makes them, for links to a heading.
myst_heading_anchors: Final = 4

html_theme: Final = "furo"
html_title: Final = f"wsgate {__version__}"
html_static_path: Final = ["_static"]
html_css_files: Final = ["narrow.css"]
# The built pages stand for themselves: they are read from disk, without the sources beside them.
html_copy_source: Final = False
html_show_sourcelink: Final = False
html_show_sphinx: Final = False


def setup(app: Sphinx) -> None:
    """Register the handler below with Sphinx."""
    app.connect("doctree-read", link_to_folders)


def link_to_folders(app: Sphinx, page: nodes.document) -> None:
    """Resolve each link to a directory of the repository, such as `examples/chat`, to that directory on disk.

    A link to a file that is no page needs no handler: it becomes a download.
    """
    source, built = Path(app.env.docname).parent, Path(app.outdir, app.env.docname).parent
    for node in list(page.findall(pending_xref)):
        folder = Path(app.srcdir, source, node["reftarget"])
        if node["refdomain"] != "doc" and folder.is_dir():
            address = os.path.relpath(folder.resolve(), built.resolve())
            node.replace_self(nodes.reference("", "", *node.children, refuri=address))
