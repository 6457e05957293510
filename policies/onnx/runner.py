"""An exported policy where a policy is asked for: the same plans, by onnxruntime."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...files import read_json, sha256
from ...spec import Batch, KinoiseError, Observation, Plan, Spec, Stats
from ..base import Policy, PolicyConfig
from ..checkpoint import policy_config
from ..core.process.base import Losses
from ..core.random import Gen, normal
from ..encoders.observation import check_observation
from ..replan import Start, timed
from .export import FORMAT, MANIFEST, needed
from .graph import OBSERVATION

SECTIONS = {"checkpoint": dict, "policy": dict, "spec": dict, "stats": dict, "texts": list, "graphs": dict}
AGAIN = "Export the policy again"


@dataclass(frozen=True)
class Session:
    """A graph, ready to run.

    Args:
        run: onnxruntime's session.
        evaluations: of the network, in a run.
    """

    run: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    evaluations: int

    def __call__(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        found = self.run.run(list(self.outputs), {name: given[name].contiguous().numpy() for name in self.inputs})
        return {name: torch.from_numpy(np.ascontiguousarray(item)) for name, item in zip(self.outputs, found, strict=True)}


class OnnxPolicy(Policy):
    """Plans as the policy that was exported did, for the same generators, up to rounding; see `Policy.plan`.

    Cold and warm plans of as many steps as were exported: no prefix, no budget. `surprise` and `confidence` are there as the
    policy's own; `timing` has no `encode` of its own.
    """

    def __init__(
        self,
        config: PolicyConfig,
        spec: Spec,
        stats: dict[str, Stats],
        texts: tuple[str, ...],
        sessions: dict[str, Session],
        checkpoint: dict[str, Any],
    ) -> None:
        super().__init__(config, spec, stats, texts)
        self.sessions, self.checkpoint = sessions, checkpoint
        self.eval()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def parameter_count(self) -> int:
        return self.checkpoint["parameters"]

    @property
    def compilable(self) -> bool:
        return False

    def loss(self, batch: Batch, gen: Gen) -> Losses:
        """Raises KinoiseError."""
        raise KinoiseError("an exported policy can't be trained: train the checkpoint that it was exported from")

    def decode(self, obs: Observation, gen: Gen, start: Start) -> Plan:
        """See `Policy`. Raises KinoiseError for a prefix, a budget, and an instruction that was not exported."""
        if start.prefix > 0:
            raise KinoiseError(
                f"prefix={start.prefix}: an exported policy keeps no actions of the plan before. Plan with prefix=0, "
                "or with the checkpoint"
            )
        if start.budget is not None:
            raise KinoiseError(
                "budget: an exported policy takes all its steps. Leave it out, or export one with fewer decode.steps"
            )
        begin = time.perf_counter()
        given = self._observed(obs)
        session = self.sessions["replan" if start.warm else "plan"]
        if start.warm and start.guess is not None:
            guess, chunk = start.guess, self.config.chunk
            given |= {"guess": guess.actions.float(), "elapsed": torch.tensor(guess.elapsed)}
            sure = guess.confidence
            falling = torch.linspace(2, 1, chunk)[None, :, None].expand(guess.actions.shape)
            given["confidence_before"] = falling if sure is None else sure.float()
        if "noise" in session.inputs:
            given["noise"] = normal((obs.batch, self.config.chunk, self.spec.action_dim), gen)
        found = session(given)
        return Plan(
            actions=found["actions"],
            dt=1.0 / self.spec.rate,
            nfe=session.evaluations,
            confidence=found.get("confidence"),
            surprise=tuple(found["surprise"].tolist()) if "surprise" in found else (),
            timing=timed(begin, begin, session.evaluations),
        )

    def _observed(self, obs: Observation) -> dict[str, Tensor]:
        check_observation(obs, self.spec.observations, self.config.history, self.spec.language)
        given = {OBSERVATION + key: obs.values[key].cpu() for key in self.spec.observations}
        if self.spec.language and obs.text is not None:
            unknown = [text for text in obs.texts if text not in self.texts]
            if unknown:
                raise KinoiseError(
                    f"'{unknown[0][:80]}' is none of the {len(self.texts)} instructions that were exported. "
                    "Export the policy again with texts=[...] that name it"
                )
            places = torch.tensor([self.texts.index(text) for text in obs.texts])
            given["text"] = places[obs.text.cpu()]
        return given


def load_onnx(directory: Path | str, *, threads: int = 1, checkpoint: str | None = None) -> OnnxPolicy:
    """The exported policy, on the CPU.

    Args:
        directory: what `kinoise export-onnx` wrote.
        threads: that onnxruntime computes one plan with.
        checkpoint: sha256 of the weights that it has to be an export of; None for any.

    Raises:
        KinoiseError: onnxruntime is missing; nothing there; a file that is missing, damaged or another; other weights.
    """
    if threads < 1:
        raise KinoiseError(f"threads={threads}: expected at least 1")
    directory = Path(directory)
    path = directory / MANIFEST
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise KinoiseError(f"{path}: expected format {FORMAT} of kinoise export-onnx. {AGAIN}.")
    absent = [key for key, kind in SECTIONS.items() if not isinstance(value.get(key), kind)]
    if absent or not {"plan"} <= value["graphs"].keys() or "parameters" not in value["checkpoint"]:
        raise KinoiseError(f"{path}: {absent or 'parts'} are missing or damaged. {AGAIN}.")
    found = value["checkpoint"].get("sha256")
    if checkpoint is not None and checkpoint != found:
        raise KinoiseError(f"{path}: this is an export of the weights {found}, not of {checkpoint}. {AGAIN}.")
    config = policy_config(value["policy"], {}, path)
    stats = {key: Stats.from_json(item) for key, item in value["stats"].items()}
    sessions = {
        name: _session(directory, path, value["graphs"][name], threads)
        for name in ("plan", "replan")
        if name in value["graphs"]
    }
    if config.decode.warm < 1 and "replan" not in sessions:
        raise KinoiseError(f"{path}: decode.warm is below 1 and the graph 'replan' is missing. {AGAIN}.")
    return OnnxPolicy(config, Spec.from_json(value["spec"]), stats, tuple(value["texts"]), sessions, value["checkpoint"])


def _session(directory: Path, manifest: Path, about: Any, threads: int) -> Session:
    try:
        path, expected, evaluations = directory / about["file"], about["sha256"], int(about["evaluations"])
        inputs, outputs = (tuple(port["name"] for port in about[side]) for side in ("inputs", "outputs"))
    except (KeyError, TypeError, ValueError) as error:
        raise KinoiseError(f"{manifest}: what it says of its graphs is damaged. {AGAIN}.") from error
    if not path.is_file():
        raise KinoiseError(f"{path} is missing: the export is incomplete. {AGAIN}.")
    if sha256(path) != expected:
        raise KinoiseError(f"{path} is not the file that {manifest.name} describes: it was cut short or exchanged. {AGAIN}.")
    (runtime,) = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return Session(runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), inputs, outputs, evaluations)
