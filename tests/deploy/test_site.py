"""The site of the documentation: links of the repository lead to the same files there, and dead ones are found."""

from pathlib import Path

import pytest

from deploy.site.links import complaints
from deploy.site.paths import linked_files, rewrite_links, site_path, source_path


@pytest.mark.parametrize(
    "source", ["README.md", "docs/api.md", "docs/howto/batch.md", "CONTRIBUTING.md", "loadtest/results/latest.md"]
)
def test_every_file_has_one_place(source: str) -> None:
    assert source_path(site_path(source)) == source


@pytest.mark.parametrize(
    ("source", "link", "rewritten"),
    [
        ("README.md", "docs/api.md#errors", "api.md#errors"),
        ("README.md", "CONTRIBUTING.md", "repository/CONTRIBUTING.md"),
        ("docs/api.md", "audio.md", "audio.md"),
        ("docs/live.md", "../README.md#use-it", "index.md#use-it"),
        ("docs/howto/batch.md", "../capacity.md", "../capacity.md"),
        ("docs/results.md", "../loadtest/results/latest.md", "repository/loadtest/results/latest.md"),
        ("CONTRIBUTING.md", "docs/design.md", "../design.md"),
        ("docs/api.md", "#errors", "#errors"),
        ("docs/api.md", "https://example.org/docs/api.md", "https://example.org/docs/api.md"),
        ("docs/api.md", "missing.md", "missing.md"),
    ],
)
def test_links_lead_to_the_same_file_in_the_site(source: str, link: str, rewritten: str) -> None:
    assert rewrite_links(f"See [it]({link}).", source) == f"See [it]({rewritten})."


def test_files_that_linked_pages_link_are_in_the_site_too() -> None:
    found = linked_files(["docs/operations.md"])
    assert "loadtest/results/observe.md" in found
    assert "deploy/alerts.yml" in found
    assert not any(path.startswith("docs/") for path in found)


def test_a_whole_site_has_no_complaints(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<link rel="canonical" href="https://example.org/"><a href="sub/">b</a><h1 id="top">a</h1>'
    )
    (tmp_path / "sub" / "index.html").write_text('<a href="../index.html#top">a</a><a href="https://example.org">away</a>')
    assert complaints(tmp_path) == []


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ('<a href="gone.html">a</a>', "index.html links gone.html, which is not there."),
        ('<a href="#gone">a</a>', "index.html links #gone, which has no such place."),
        ('<img src="gone.png">', "index.html links gone.png, which is not there."),
        ('<script src="https://cdn.example/x.js"></script>', "index.html loads https://cdn.example/x.js from another server."),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', "index.html loads //fonts.example/a.css from another server."),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, page: str, complaint: str) -> None:
    (tmp_path / "index.html").write_text(page)
    assert complaints(tmp_path) == [complaint]


def test_a_folder_without_pages_is_no_site(tmp_path: Path) -> None:
    assert complaints(tmp_path) == [f"{tmp_path} has no pages."]
