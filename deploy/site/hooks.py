"""The hooks of mkdocs: README.md is the home page, and every file of the repository that a page links is a part of the site."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from deploy.site.paths import DOCS, HOME_SOURCE, ROOT, linked_files, rewrite_links, site_path, source_path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page and the files of the repository that pages link."""
    pages = [DOCS + file.src_uri for file in files if file.is_documentation_page()]
    for source in [HOME_SOURCE, *linked_files([HOME_SOURCE, *pages])]:
        files.append(File.generated(config, site_path(source), abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    del config, files
    return rewrite_links(markdown, source_path(page.file.src_uri))
