"""A policy into a directory of ONNX graphs, with a JSON file that says what goes in and what comes out.

export.json   {"format", "kinoise", "checkpoint", "opset", "policy": settings, "spec", "stats", "texts", "graphs"}
context.onnx, evaluation.onnx, plan.onnx, replan.onnx   the last where decode.warm is below 1
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ... import __version__
from ...config import UsageError
from ...files import new_directory, sha256, write_file, write_json
from ...spec import KinoiseError
from ..base import Policy
from ..diffusion import DiffusionPolicy
from ..discrete_vla import DiscreteVLAPolicy
from . import actions, tokens
from .graph import BATCH, Graph, Port

FORMAT = 1
MANIFEST = "export.json"
OPSET = 18
MOST = 4096

TOKENS = 7
"""An example's size where a call decides it; what it is doesn't matter."""


def export_policy(
    policy: Policy, out: Path, *, texts: Sequence[str] = (), checkpoint: Path | None = None, weights: Path | None = None
) -> dict[str, Any]:
    """Writes `out` in one step, and returns what export.json says.

    Args:
        policy: in eval mode; its `decode` settings are what is exported.
        texts: the instructions that the graphs know; the training data's if none are given.
        checkpoint, weights: where the policy is from, and the file whose sha256 the export carries; None for one never saved.

    Raises:
        UsageError: something is at `out` already.
        KinoiseError: a policy that no fixed graph can stand for, or the packages of the extra `onnx` are missing.
    """
    vacant(out)
    kind = check(policy)
    policy = policy.cpu()
    known = tuple(texts) or policy.texts
    with new_directory(out) as directory, torch.no_grad():
        found = {}
        for name, graph in kind.graphs(policy, known).items():
            evaluations = _write(graph, directory / f"{name}.onnx")
            found[name] = {
                "file": f"{name}.onnx",
                "sha256": sha256(directory / f"{name}.onnx"),
                "evaluations": evaluations,
                "inputs": [port._asdict() for port in graph.inputs],
                "outputs": [port._asdict() for port in graph.outputs],
            }
        manifest = {
            "format": FORMAT,
            "kinoise": __version__,
            "checkpoint": {
                "path": None if checkpoint is None else str(checkpoint),
                "sha256": None if weights is None else sha256(weights),
                "parameters": policy.parameter_count,
                **({} if policy.frame is None else {"frame": policy.frame}),
            },
            "opset": OPSET,
            "policy": asdict(policy.config),
            "spec": policy.spec.to_json(),
            "stats": {key: item.to_json() for key, item in policy.stats.items()},
            "texts": list(known),
            "grids": actions.grids(policy) if isinstance(policy, DiffusionPolicy) else {},
            "graphs": found,
        }
        write_json(directory / MANIFEST, manifest)
    return manifest


def vacant(out: Path) -> None:
    """Raises UsageError where something is at `out`."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UsageError(f"out={out}: something is there already. Choose another out=, or remove it first")


def check(policy: Policy) -> Any:
    """The module that makes this policy's graphs. Raises KinoiseError for a policy that can't be exported."""
    decode = policy.config.decode
    if policy.training:
        raise KinoiseError("a policy in training mode can't be exported: call policy.eval() first")
    if decode.cache != "none":
        raise KinoiseError(f"decode.cache={decode.cache}: an exported plan computes every branch. Set decode.cache=none")
    if decode.gate is not None:
        raise KinoiseError(f"decode.gate={decode.gate}: an exported replan can't start anew from noise. Set decode.gate=null")
    if decode.prefix == "guided":
        raise KinoiseError("decode.prefix=guided: gradients aren't exported. Set decode.prefix=auto, and plan without a prefix")
    if isinstance(policy, DiffusionPolicy):
        actions.check(policy)
        return actions
    if isinstance(policy, DiscreteVLAPolicy):
        tokens.check(policy)
        return tokens
    raise KinoiseError(f"the policy '{policy.config.name}' can't be exported: diffusion, mode and discrete_vla can")


def needed(*names: str) -> list[ModuleType]:
    """These modules of the extra `onnx`. Raises KinoiseError where one is missing."""
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        raise KinoiseError(f"ONNX needs {error.name}: pip install -c constraints.txt -e '.[onnx]'") from error


def _write(graph: Graph, path: Path) -> int:
    """Traces and writes; network evaluations of a run."""
    needed("onnx", "onnxscript")
    graph = graph.eval()
    example = tuple(port.example(2, {"tokens": TOKENS}) for port in graph.inputs)
    evaluations = graph.rehearse(*example)
    batch, others = torch.export.Dim(BATCH, max=MOST), {"tokens": torch.export.Dim("tokens", max=MOST)}
    with quiet():
        program = torch.export.export(
            graph, example, dynamic_shapes=(tuple(_dynamic(port, batch, others) for port in graph.inputs),), strict=False
        )
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            opset_version=OPSET,
            verbose=False,
        )
        assert made is not None
        write_file(path, lambda temporary: made.save(temporary, external_data=False))
    return evaluations


def _dynamic(port: Port, batch: Any, others: dict[str, Any]) -> dict[int, Any]:
    sizes = {BATCH: batch, **others}
    return {index: sizes[size] for index, size in enumerate(port.shape) if isinstance(size, str)}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's progress and advice, which speak of its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            Path(os.devnull).open("w") as nothing,
            warnings.catch_warnings(),
            redirect_stdout(nothing),
            redirect_stderr(nothing),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
