"""The place of every file of the repository in the site, and links between them.

Links in the pages are those of the repository, so that they also work where the pages are read as files. In the site each leads
to the place that its target has there.
"""

import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
HOME, HOME_SOURCE = "index.md", "README.md"
DOCS, REPOSITORY = "docs/", "repository/"
"""The first is where pages are in the repository, the second where other files of the repository are in the site."""
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")


def site_path(source: str) -> str:
    """Return the path in the site of a file of the repository."""
    if source == HOME_SOURCE:
        return HOME
    return source.removeprefix(DOCS) if source.startswith(DOCS) else REPOSITORY + source


def source_path(uri: str) -> str:
    """Return the path in the repository of a file of the site."""
    if uri == HOME:
        return HOME_SOURCE
    return uri.removeprefix(REPOSITORY) if uri.startswith(REPOSITORY) else DOCS + uri


def target_of(link: str, source: str) -> str | None:
    """Return the file of the repository that a link in `source` leads to; None for other servers, headings and missing files."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), parts.path))
    return path if (ROOT / path).is_file() else None


def rewrite_links(markdown: str, source: str) -> str:
    """Return a page of the repository with the links that it has in the site."""
    folder = posixpath.dirname(site_path(source))

    def rewrite(match: re.Match[str]) -> str:
        target = target_of(match[0], source)
        if target is None:
            return match[0]
        fragment = urlsplit(match[0]).fragment
        return posixpath.relpath(site_path(target), folder or ".") + (f"#{fragment}" if fragment else "")

    return LINK.sub(rewrite, markdown)


def linked_files(sources: list[str]) -> list[str]:
    """Return the files that pages link, and those that linked pages link; none of them is in docs/."""
    found: list[str] = []
    waiting = list(sources)
    while waiting:
        source = waiting.pop()
        for link in LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            target = target_of(link, source)
            if target and not target.startswith(DOCS) and target != HOME_SOURCE and target not in found:
                found.append(target)
                waiting += [target] if target.endswith(".md") else []
    return found
