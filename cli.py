"""`kinoise COMMAND`: finds the command's module, nothing else."""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module

from . import __version__

COMMANDS = {
    "collect": (".eval.collect", "scripted demonstrations from a simulator"),
    "inspect": (".data.inspection.inspect", "what a data set holds, and what is wrong with it"),
    "convert": (".data.convert", "a data set from one file format into another"),
    "push": (".data.hub.push", "a data set or a policy to the Hugging Face hub"),
    "pull": (".data.hub.pull", "a data set or a policy from the Hugging Face hub"),
    "train": (".train.__main__", "a policy from demonstrations"),
    "sweep": (".train.sweep", "train or eval once for every combination of settings"),
    "eval": (".eval.__main__", "a trained policy's success, by rollouts"),
    "merge": (".eval.merge", "one result of an evaluation whose parts were played apart"),
    "compare": (".eval.compare", "two evaluations, paired episode by episode"),
    "delay-sweep": (".eval.delay_sweep", "what late plans cost, for each way of joining them"),
    "calibrate": (".eval.calibrate", "from where a replan may start from the plan before"),
    "fit-cache": (".eval.fit_cache", "what a plan's evaluations need not compute again"),
    "latency": (".deploy.speed", "how fast a policy plans on this machine, and how often a robot can replan"),
    "control": (".deploy.control", "a trained policy in the real-time control loop"),
    "replay": (".deploy.replay", "a recorded run of that loop once more: does the controller do the same?"),
    "serve": (".deploy.serve", "a trained policy for robots elsewhere, over a websocket"),
    "serve-env": (".deploy.serve_env", "a simulator for kinoise elsewhere, over a websocket"),
    "simulator": (".envs.simulators", "install a simulator in a Python environment of its own"),
    "export-onnx": (".deploy.export_onnx", "a trained policy as ONNX graphs, for machines without torch"),
    "import": (".train.import_policy", "a model that was trained elsewhere, as a run"),
    "import-lerobot": (".train.import_lerobot", "LeRobot's own DiffusionPolicy or the plugin's policy, as a run"),
    "export-lerobot": (".deploy.export_lerobot", "a U-Net policy as LeRobot's own DiffusionPolicy, any as the plugin's"),
    "report": (".eval.report", "one HTML page about a run"),
    "view": (".eval.view.command", "an evaluation or a trace as a recording for rerun's viewer"),
    "doctor": (".deploy.doctor", "what this machine has, and how to mend what it lacks"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 well, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h"):
        print("usage: kinoise COMMAND [key=value ...]\n")
        width = max(map(len, COMMANDS))
        print("\n".join(f"  {command:<{width}} {about}" for command, (_, about) in COMMANDS.items()))
        print("\nkinoise COMMAND --help lists a command's settings and choices.")
        return 0 if arguments else 2
    if name == "--version":
        print(f"kinoise {__version__}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(f"kinoise: unknown command '{name}'; the commands are {', '.join(COMMANDS)}.{hint}", file=sys.stderr)
        return 2
    if name != "sweep" and {"--multirun", "-m"} & {*arguments}:  # as Hydra's own applications are told
        arguments, name = ["sweep", *arguments], "sweep"
    # GNU OpenMP reads this once, when torch is imported. By default a thread that waits for another spins; where a third
    # process wants a core, both then wait for each other most of the time (seen: 0.2 updates a second instead of 14).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from .config import run

    return run(import_module(COMMANDS[name][0], __package__).main, arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
