"""Runs in the other interpreter: makes this very kinoise importable there, whatever that environment holds, and serves.

A script with one argument, the number of an open socket. Written for any Python, so that an old one gets a clear word.
"""

import importlib
import importlib.util
import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 (the interpreter is anybody's)
    sys.exit("kinoise needs Python 3.11 or newer, this is %s at %s" % (sys.version.split()[0], sys.executable))  # noqa: UP031


def main() -> None:
    here = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 (as Python has it in its path, where links lead here)
    sys.path.remove(here)  # Python puts a script's folder first, where its files would hide packages of the same names
    root = os.path.dirname(os.path.dirname(here))  # noqa: PTH120
    face = os.path.join(root, "__init__.py")  # noqa: PTH118
    spec = importlib.util.spec_from_file_location("kinoise", face, submodule_search_locations=[root])
    assert spec is not None and spec.loader is not None  # noqa: PT018
    sys.modules["kinoise"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    try:
        child = importlib.import_module("kinoise.envs.remote.child")
    except ModuleNotFoundError as error:
        sys.exit(
            f"the package {error.name} is not installed for {sys.executable}; an environment's process needs gymnasium, "
            f"jaxtyping, msgpack and numpy: {sys.executable} -m pip install gymnasium jaxtyping msgpack numpy"
        )
    child.serve(int(sys.argv[1]))


if __name__ == "__main__":
    main()
