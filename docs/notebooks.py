"""Notebooks as Markdown: README.md from nbs/index.ipynb, and the pages of the site.

`python docs/notebooks.py` writes README.md; mkdocs.yml names this file as a hook.
"""

import re
from pathlib import Path

from fastcore.nbio import read_nb, render_text
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(?<=\]\()([\w./-]+)\.ipynb(?=\))")


def to_markdown(notebook: Path, link: str) -> str:
    """Write a notebook as Markdown: prose as it is, code and its output fenced.

    `link` says how another notebook is linked; `{}` is its path without the ending.
    """
    parts = []
    for cell in read_nb(notebook).cells:
        if cell.has_directive("hide") or cell.has_directive("default_exp"):
            continue
        cell.remove_directives()
        if cell.cell_type == "code":
            parts.append(f"```python\n{cell.source.strip()}\n```")
            output = render_text(cell.outputs).strip()
            parts += [f"```text\n{output}\n```"] if output else []
        else:
            parts.append(cell.source.strip())
    text = _LINK.sub(lambda match: link.format(match[1]), "\n\n".join(parts))
    return f"{text}\n"


def readme() -> str:
    """What README.md has to be."""
    text = to_markdown(PROJECT / "nbs/index.ipynb", "nbs/{}.ipynb")
    return text.replace('src="images/', 'src="nbs/images/').replace("](images/", "](nbs/images/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give the site a page for each notebook (an event of mkdocs)."""
    pages = []
    for file in files:
        path = Path(file.abs_src_path or "")
        if path.suffix == ".ipynb":
            uri = file.src_uri.removesuffix(".ipynb") + ".md"
            pages.append(File.generated(config, uri, content=to_markdown(path, "{}.md")))
    return Files(pages)


if __name__ == "__main__":
    (PROJECT / "README.md").write_text(readme(), encoding="utf-8")
