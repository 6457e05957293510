"""The documentation as its readers use it: pages walked through, commands that exist, figures that were measured."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest
import yaml
from kinoise.cli import COMMANDS
from kinoise.cli import main as kinoise

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WALKED = ["add_data.md", "add_policy.md", "add_robot.md"]
FIGURED = ["diffusion.md", "mode.md", "discrete_vla.md"]
"""Pages that hold what was measured beside what papers say."""


class Block(NamedTuple):
    """A fenced block of a page: a file if it has a title, else commands."""

    language: str
    title: str
    text: str


def blocks(text: str) -> list[Block]:
    found = re.finditer(r'^( *)```(\w+)(?: title="([^"]+)")?\n(.*?)^\1```$', text, re.M | re.S)
    return [Block(language, title or "", dedent(inside)) for _, language, title, inside in map(re.Match.groups, found)]


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", WALKED)
def test_a_page_is_walked_through_as_it_stands(page: str, tmp_path: Path) -> None:
    """Files are written and commands are run, in the page's order; nothing on it is left out."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    steps = blocks((DOCS / page).read_text())
    assert any(step.language == "bash" for step in steps)
    for step in steps:
        if step.title:
            (tmp_path / step.title).write_text(step.text)
            continue
        assert step.language == "bash", f"{page}: a block is neither a file nor commands:\n{step.text}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", step.text],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{page}:\n{step.text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """Every `kinoise COMMAND ...` in the documentation: where, the command, its arguments."""
    for page in [*PAGES, ROOT / "README.md", ROOT / "benchmarks" / "README.md"]:
        for block in blocks(page.read_text()):
            if block.language != "bash":
                continue
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables of the environment
                    words = words[1:]
                if words[:1] == ["kinoise"]:
                    yield names(page), words[1], words[2:]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_settings_that_the_documentation_names_are_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    told_by_two = "sweep", "--multirun"  # their settings are their own and those of the command that is swept
    lines = [(page, words) for page, name, words in commands() if name == command and not {name, *words} & {*told_by_two}]
    asked = [(page, word) for page, words in lines for word in words if "=" in word]
    if not asked:
        return
    with pytest.raises(SystemExit):
        kinoise([command, "--help"])
    told = capsys.readouterr().out
    keys = [(page, word.split("=")[0]) for page, word in asked]
    keys = [(page, key) for page, key in keys if not key.startswith("policy") and f"also {key}=" not in told]
    unknown = [f"{page}: {key}" for page, key in keys if f"\n  {key} " not in told]
    assert not unknown, unknown


def test_the_commands_that_the_documentation_names_are_there() -> None:
    assert {command for _, command, _ in commands()} <= {*COMMANDS, "--help", "--version"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "benchmarks" / "README.md"], ids=names)
def test_commands_stand_in_fences_where_the_tests_above_find_them(page: Path) -> None:
    beside = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.M | re.S)
    assert not re.findall(r"^(?: {4,}|\t)kinoise .*", beside, re.M)


def test_every_page_is_in_the_sites_navigation() -> None:
    def pages(item: Any) -> Iterator[str]:
        if isinstance(item, str):
            yield item
        else:
            for part in item.values() if isinstance(item, dict) else item:
                yield from pages(part)

    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "benchmarks" / "README.md"], ids=names)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S))
    absent = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not absent, absent


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


@pytest.mark.parametrize("page", FIGURED)
def test_figures_beside_a_result_are_in_it(page: str) -> None:
    """In a table's row that links to results, every number with a decimal point, as a rate or in per cent, is among theirs.

    What the papers say stands in cells of its own, marked by `paper` in the column's head.
    """
    found = 0
    for table in re.findall(r"(?:^\|.*\n)+", (DOCS / page).read_text(), re.M):
        head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
        for row in rows:
            files = [ROOT / "benchmarks" / "results" / name for name in re.findall(r"results/(\w+\.json)", " ".join(row))]
            if not files:
                continue
            known = [number for file in files for number in numbers(json.loads(file.read_text()))]
            for title, cell in zip(head, row, strict=True):
                if "paper" in title or "results/" in cell:
                    continue
                for text in re.findall(r"(?<![\w.])\d+\.\d+", cell):
                    places = len(text.split(".")[1])
                    near = [n for n in known if f"{n:.{places}f}" == text or f"{100 * n:.{places}f}" == text]
                    assert near, f"{page}: {text} is not in {[file.name for file in files]}: {row}"
                    found += 1
    assert found > 10
