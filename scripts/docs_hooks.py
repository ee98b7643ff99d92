"""What `mkdocs build` needs beside mkdocs.yml: links that leave docs/ lead to files in the site.

A page links ../examples/paper.toml or ../README.md, as it must where people read it in the
repository. In the site the former becomes a file beside the pages, the latter the first page.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
README = "README.md"
FOLDERS = ("examples", "deploy")  # their files are in the site
OUTSIDE = re.compile(
    rf"\[([^]]*)\]\((?:\.\./)+({'|'.join((README, *FOLDERS))})(/[^)#]+)?(?:#[^)]*)?\)"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = str(path.relative_to(ROOT))
                files.append(File.generated(config, f"{name}.txt", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    up = "../" * page.file.src_uri.count("/")

    def inside(link: re.Match[str]) -> str:
        text, place, file = link.groups()
        if place == README:
            return f"[{text}]({up}index.md)"
        return f"[{text}]({up}{place}{file}.txt)" if file else text

    return OUTSIDE.sub(inside, markdown)
