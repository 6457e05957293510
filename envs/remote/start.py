"""Runs in the other interpreter: makes this very kinoise importable there, whatever that environment holds, and serves.

A script with one argument, the number of an open socket. Written for any Python, so that an old one gets a clear word.
"""

import importlib
import importlib.util
import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 (the interpreter is anybody's)
    sys.exit("kinoise needs Python 3.11 or newer, this is %s at %s" % (sys.version.split()[0], sys.executable))  # noqa: UP031

HERE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 (as Python has it in its path, where links lead here)
sys.path.remove(HERE)  # Python puts a script's folder first, where its files would hide packages of the same names
ROOT = os.path.dirname(os.path.dirname(HERE))  # noqa: PTH120
spec = importlib.util.spec_from_file_location("kinoise", os.path.join(ROOT, "__init__.py"), submodule_search_locations=[ROOT])  # noqa: PTH118
assert spec is not None and spec.loader is not None  # noqa: PT018
sys.modules["kinoise"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

try:
    child = importlib.import_module("kinoise.envs.remote.child")
except ModuleNotFoundError as error:
    sys.exit(
        f"the package {error.name} is not installed for {sys.executable}; an environment's process needs gymnasium, jaxtyping, "
        f"msgpack and numpy: {sys.executable} -m pip install gymnasium jaxtyping msgpack numpy"
    )
child.serve(int(sys.argv[1]))
