"""For MkDocs: what to make of links to files beside docs/, which are not part of the site."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(cluster/[^)#]*)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name the file instead, where a link would lead out of the site."""
    return _OUTSIDE.sub(lambda m: m[1] if m[1] == m[2] else f"{m[1]} (`{m[2]}`)", markdown)
