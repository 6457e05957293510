"""What mkdocs is told beside mkdocs.yml: where the package lies, what was measured, and equations without JavaScript."""

from __future__ import annotations

import html
import re
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLUGIN = ROOT / "plugins" / "lerobot_policy_kinoise"
LINKS = {
    "](../benchmarks/results/": "](benchmarks/results/",
    "](../benchmarks/README.md": "](benchmarks.md",
    "](../benchmarks)": "](benchmarks.md)",
}
"""What the pages say where they are read in the repository -> what they say on the site."""
FIGURES = re.compile(r"<!-- figures: (\w+) -->")
MATH = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
SHIM = re.compile(r'https://[^"]*/iframe-worker/shim')
"""What the theme would fetch for the search of pages that are read from disk; docs/worker.js does it."""
sources = tempfile.TemporaryDirectory(prefix="kinoise-docs-")


@event_priority(100)
def on_config(config: MkDocsConfig) -> None:
    """The repository's root is the package, which griffe looks for by its name: a copy of the modules has that."""
    for package in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]:
        inside = Path(*package.split(".")[1:])
        target = Path(sources.name, "kinoise", inside)
        target.mkdir(parents=True, exist_ok=True)
        for module in (ROOT / inside).glob("*.py"):
            shutil.copyfile(module, target / module.name)
    plugin: Any = config.plugins["mkdocstrings"]
    plugin.config.handlers["python"]["paths"] = [sources.name, str(PLUGIN)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages link to what was measured, which lies beside docs."""
    for path in sorted(RESULTS.glob("[!.]*.*")):
        files.append(File.generated(config, f"benchmarks/results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri == "changelog.md":
        return (ROOT / "CHANGELOG.md").read_text()
    for there, here in LINKS.items():
        markdown = markdown.replace(there, here)
    return FIGURES.sub(lambda found: figures(found[1]), markdown)


def figures(name: str) -> str:
    """One of the tables of benchmarks/tables.py."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from benchmarks.tables import TABLES

    return TABLES[name](RESULTS)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """LaTeX becomes MathML, which browsers draw themselves."""
    return MATH.sub(lambda found: equation(found[1], found[2]), content)


def equation(tag: str, text: str) -> str:
    latex = html.unescape(text).strip().removeprefix("\\(").removesuffix("\\)").removeprefix("\\[").removesuffix("\\]")
    found = convert(latex.strip(), display="block" if tag == "div" else "inline")
    if "\\" in found:
        raise PluginError(f"the equation {latex.strip()} holds a command that has no MathML here")
    return found


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    return SHIM.sub(get_relative_url("worker.js", page.url), output)


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    return SHIM.sub("worker.js", output)


def on_shutdown() -> None:
    sources.cleanup()
