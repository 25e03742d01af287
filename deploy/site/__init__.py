"""The pages of docs/ as a site: what mkdocs is told, and whether every link of what it built leads somewhere."""
