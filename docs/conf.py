"""For Sphinx: `make docs` builds site/ from docs/ and needs no network.

The order of the pages is in _toc.yml.
"""

import re
from typing import Any

project = "fedvsr"
html_title = "fedvsr"
extensions = ["myst_nb", "sphinx_external_toc", "sphinx_copybutton"]
highlight_language = "sh"  # Of code blocks that name no language.
myst_heading_anchors = 4  # So that links to headings work as they do on GitHub.
nb_execution_mode = "off"  # Notebooks are shown with the outputs that `make notebooks` has saved.
nb_merge_streams = True
html_theme = "furo"  # Its fonts are the reader's own; nothing is fetched from other servers.
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_use_index = False
# A summary is read from the page that was found, which a browser refuses to a page from a folder.
html_show_search_summary = False
# Shell commands with a bracket or an ellipsis, and lines that a command prints.
suppress_warnings = ["misc.highlighting_failure"]

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(cluster/[^)#]*)[^)]*\)")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _name_files_outside)


def _name_files_outside(_app: Any, _page: str, source: list[str]) -> None:
    """Name the file instead, if a link would lead out of the site."""
    source[0] = _OUTSIDE.sub(lambda m: m[1] if m[1] == m[2] else f"{m[1]} (`{m[2]}`)", source[0])
