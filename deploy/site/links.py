"""Check a built site: every link within it leads to a file and a place in it, and nothing is loaded from elsewhere.

    python -m deploy.site.links build/site

Exit status 1 where a link is dead, or a page loads a script, a style, a font or a picture from another server.
"""

import argparse
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""The attribute by which an element loads something; `link` also where it only names the page's address."""
NAMING = {"canonical", "alternate", "prev", "next"}


@dataclass
class Links(HTMLParser):
    """The links of a page, what it loads, and the places in it that a link can name."""

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.places |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADING and LOADING[tag] in values and not NAMING & set(values.get("rel", "").split()):
            self.loaded.append(values[LOADING[tag]])


def read_page(path: Path) -> Links:
    """Return the links of a page of HTML."""
    page = Links()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def complaints(site: Path) -> list[str]:
    """Return what is wrong with a site, a sentence each."""
    pages = {path.resolve(): read_page(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site} has no pages."]
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name} loads {each} from another server." for each in page.loaded if urlsplit(each).netloc]
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else _file_at(path.parent, site.resolve(), unquote(parts.path))
            if not target.is_file():
                found.append(f"{name} links {link}, which is not there.")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                found.append(f"{name} links {link}, which has no such place.")
    return found


def _file_at(folder: Path, site: Path, link: str) -> Path:
    path = (site / link.lstrip("/") if link.startswith("/") else folder / link).resolve()
    return path / "index.html" if path.is_dir() else path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    found = complaints(parser.parse_args().site)
    print("\n".join(found) or "Every link of the site leads somewhere, and nothing is loaded from elsewhere.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
