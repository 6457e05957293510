"""Exported policies: the graphs say what the policy says, through onnxruntime too; and what can't be exported is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from kinoise.config import UsageError
from kinoise.files import sha256
from kinoise.policies.base import Policy
from kinoise.policies.checkpoint import save_policy
from kinoise.policies.diffusion import DiffusionPolicy
from kinoise.policies.discrete_vla import DiscreteVLAPolicy, Embedded
from kinoise.policies.onnx import OnnxPolicy, export_policy, load_onnx
from kinoise.policies.onnx.export import check
from kinoise.policies.onnx.graph import Graph
from kinoise.policies.onnx.runner import Session
from kinoise.policies.replan import left_of
from kinoise.spec import KinoiseError, Observation, Plan
from small_policies import IMAGES, SHARED, TEXTS, generators, observation, small, train

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NAMES = ("diffusion", "mode", "discrete_vla")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def warm(name: str, **over: object) -> Policy:
    """Trained a little, and decoding in two steps, or in one from the plan before."""
    policy = small(name, **{"decode": {"steps": 2, "warm": 0.5, "warm_steps": 1}, **over})
    train(policy)
    return policy.eval()


def graphs(policy: Policy, texts: tuple[str, ...] = TEXTS) -> dict[str, Graph]:
    return check(policy).graphs(policy, texts)


class Traced:
    """A graph where a session is expected: computed by torch."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(self, outputs: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            found = self.graph(*(torch.from_numpy(given[port.name]) for port in self.graph.inputs))
        return [item.numpy() for item in found]


def untranslated(policy: Policy) -> OnnxPolicy:
    """The exported policy before it is ONNX: its graphs by torch."""
    sessions = {}
    for name, graph in graphs(policy).items():
        ports = (tuple(port.name for port in side) for side in (graph.inputs, graph.outputs))
        sessions[name] = Session(Traced(graph), *ports, evaluations=0)
    return OnnxPolicy(policy.config, policy.spec, policy.stats, TEXTS, sessions, {"parameters": 0})


def agree(policy: Policy, exported: Policy, rows: int = 3, *, nfe: bool = True) -> None:
    """Cold plans, and replans with something left of the plan before and with all of it."""
    obs = observation(policy, rows)
    for seed in range(3):
        draw = [[torch.Generator().manual_seed(100 * seed + row) for row in range(rows)] for _ in range(8)]
        plan, other = policy.plan(obs, draw[0]), exported.plan(obs, draw[1])
        same(plan, other, nfe)
        for elapsed in (0, 3):
            replan, again = (item.plan(obs, draw.pop(), previous=plan, elapsed=elapsed) for item in (policy, exported))
            same(replan, again, nfe)
        without = replace(plan, confidence=None)
        same(*(item.plan(obs, draw.pop(), previous=without, elapsed=1) for item in (policy, exported)), nfe)


def same(plan: Plan, other: Plan, nfe: bool) -> None:
    torch.testing.assert_close(other.actions, plan.actions, **CLOSE)
    assert other.surprise == pytest.approx(plan.surprise, abs=1e-4)
    assert (other.confidence is None) == (plan.confidence is None)
    if plan.confidence is not None and other.confidence is not None:
        torch.testing.assert_close(other.confidence, plan.confidence, **CLOSE)
    assert not nfe or other.nfe == plan.nfe


@pytest.fixture(scope="module", params=NAMES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    policy = warm(request.param, network={"width": 32, "depth": 1})
    save_policy(directory / "run", policy, {})
    weights = directory / "run" / "ema.safetensors"
    with unchecked():
        export_policy(policy, directory / "out", checkpoint=directory / "run", weights=weights)
    return policy, directory


@contextmanager
def unchecked() -> Iterator[None]:
    """Without checks of annotations: while a graph is traced, the batch's size is a symbol and no int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def session(out: Path, name: str) -> "runtime.InferenceSession":
    return runtime.InferenceSession(out / f"{name}.onnx", providers=["CPUExecutionProvider"])


def test_an_exported_policy_plans_as_the_policy_for_any_batch(exported: tuple[Policy, Path]) -> None:
    policy, directory = exported
    other = load_onnx(directory / "out", checkpoint=sha256(directory / "run" / "ema.safetensors"))
    for rows in (1, 3):
        agree(policy, other, rows)
    assert (other.config, other.spec, other.texts) == (policy.config, policy.spec, policy.texts)
    assert other.parameter_count == policy.parameter_count


def test_an_exported_evaluation_is_the_networks(exported: tuple[Policy, Path]) -> None:
    policy, directory = exported
    obs, shape = observation(policy, 3), (3, policy.config.chunk, 3)
    given = {"observation.state": obs.values["state"].numpy(), "text": obs.text.numpy()}
    encode, evaluate = (session(directory / "out", name) for name in ("context", "evaluation"))
    dropped = torch.tensor([False, True, False])
    context = encode.run(None, {**given, "dropped": dropped.numpy()})
    gen = torch.Generator().manual_seed(0)
    for draw in range(3):
        with torch.no_grad():
            if isinstance(policy, DiffusionPolicy):
                x, label = torch.randn(shape, generator=gen), torch.tensor(0.1 + 0.3 * draw)
                expected = policy.network(x, label, policy.observe(obs, dropped)).value
                found = evaluate.run(None, {"x": x.numpy(), "noise": label.numpy(), "context": context[0]})[0]
            else:
                assert isinstance(policy, DiscreteVLAPolicy)
                assert isinstance(policy.backbone, Embedded)
                x = torch.randint(0, policy.process.mask + 1, shape, generator=gen)
                expected = policy.backbone(x, policy.backbone.prefix(obs, dropped)).value
                found = evaluate.run(None, {"x": x.numpy(), "context": context[0], "there": context[1]})[0]
                assert np.array_equal(found.argmax(-1), expected.argmax(-1).numpy())
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_the_manifest_says_what_the_graphs_take(exported: tuple[Policy, Path]) -> None:
    policy, directory = exported
    manifest = json.loads((directory / "out" / "export.json").read_text())
    assert manifest["checkpoint"]["sha256"] == sha256(directory / "run" / "ema.safetensors")
    assert manifest["policy"]["decode"]["steps"] == policy.config.decode.steps
    assert manifest["graphs"].keys() == {"context", "evaluation", "plan", "replan"}
    kinds = {"float32": "tensor(float)", "int64": "tensor(int64)", "uint8": "tensor(uint8)", "bool": "tensor(bool)"}
    for name, graph in manifest["graphs"].items():
        found = session(directory / "out", name)
        for said, had in ((graph["inputs"], found.get_inputs()), (graph["outputs"], found.get_outputs())):
            assert [(item["name"], kinds[item["dtype"]], len(item["shape"])) for item in said] == [
                (item.name, item.type, len(item.shape)) for item in had
            ]
    opsets = {
        item.domain: item.version for item in pytest.importorskip("onnx").load(directory / "out" / "plan.onnx").opset_import
    }
    assert opsets[""] == manifest["opset"]


def test_what_an_exported_policy_cannot_do_is_said(exported: tuple[Policy, Path]) -> None:
    policy, directory = exported
    other, obs = load_onnx(directory / "out"), observation(policy)
    plan = policy.plan(obs, generators(3))
    for refused, words in (({"previous": plan, "prefix": 1}, "prefix=0"), ({"budget": 1.0}, "decode.steps")):
        with pytest.raises(KinoiseError, match=words):
            other.plan(obs, generators(3), **refused)
    with pytest.raises(KinoiseError, match=r"texts=\[\.\.\.\]"):
        other.plan(replace(obs, texts=("sit down", "stand up")), generators(3))
    with pytest.raises(KinoiseError, match="NaN"):
        other.plan(replace(obs, values={"state": obs.values["state"] * float("nan")}), generators(3))


def test_instructions_go_by_their_words(exported: tuple[Policy, Path]) -> None:
    policy, directory = exported
    obs = observation(policy)
    swapped = Observation(obs.values, TEXTS[::-1], 1 - obs.text)
    plans = [load_onnx(directory / "out").plan(item, generators(3)).actions for item in (obs, swapped)]
    assert torch.equal(*plans)


def test_damage_is_named(exported: tuple[Policy, Path], tmp_path: Path) -> None:
    _, directory = exported
    for file in (directory / "out").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest, plan = tmp_path / "export.json", tmp_path / "plan.onnx"
    with pytest.raises(KinoiseError, match="export of the weights"):
        load_onnx(tmp_path, checkpoint="0" * 64)
    with pytest.raises(KinoiseError, match=r"export\.json does not exist"):
        load_onnx(tmp_path / "elsewhere")
    whole, text = plan.read_bytes(), manifest.read_text()
    plan.write_bytes(whole[:-10])
    with pytest.raises(KinoiseError, match=r"plan\.onnx is not the file"):
        load_onnx(tmp_path)
    plan.unlink()
    with pytest.raises(KinoiseError, match=r"plan\.onnx is missing"):
        load_onnx(tmp_path)
    plan.write_bytes(whole)
    for damaged in (
        text[: len(text) // 2],
        "[]",
        json.dumps({**json.loads(text), "graphs": {"plan": 3}}),
        json.dumps({**json.loads(text), "spec": None}),
    ):
        manifest.write_text(damaged)
        with pytest.raises(KinoiseError, match=r"export\.json"):
            load_onnx(tmp_path)


def test_an_export_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="out="):
        export_policy(small("diffusion").eval(), tmp_path)


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("diffusion", {"decode": {"sampler": "heun", "steps": 3, "warm": 0.5}}),
        ("diffusion", {"decode": {"sampler": "dpmpp_2m", "steps": 4, "warm": 0.7, "renoise": False}}),
        ("diffusion", {"decode": {"steps": 2, "guidance": 2.0, "warm": 0.5}}),
        ("diffusion", {"decode": {"steps": 2, "guidance": 0.0}}),
        ("ddim", {"decode": {"steps": 3, "warm": 0.4}}),
        ("dp_t", {"decode": {"sampler": "ddim", "steps": 3, "warm": 0.4}}),
        ("mode_dense", {"decode": {"steps": 3, "warm": 0.4}}),
        ("discrete_vla", {"decode": {"steps": 5, "guidance": 2.0, "warm": 0.6}}),
        ("discrete_vla", {"decode": {"steps": 30, "confidence": "gap", "value": "centre", "warm": 0.9}}),
        ("discrete_vla", {"decode": {"steps": 4, "confidence": "spread", "noise": "ranks", "warm": 0.3}}),
        *((name, {"observations": ["state", "image.front"], "history": 2, "decode": {"warm": 0.5}}) for name in NAMES),
    ],
)
def test_graphs_are_what_the_policy_computes(name: str, over: dict) -> None:
    seen = {"encoder": IMAGES.get(name, SHARED)} if "observations" in over else {}
    policy = warm(name, **over, **seen)
    agree(policy, untranslated(policy), nfe=False)


@pytest.mark.parametrize(
    ("name", "decode", "remedy"),
    [
        ("diffusion", {"sampler": "ddpm"}, "ddim"),
        ("diffusion", {"gate": 0.5, "warm": 0.5}, "decode.gate=null"),
        ("diffusion", {"prefix": "guided"}, "decode.prefix=auto"),
        ("mode", {"cache": "every"}, "decode.cache=none"),
        ("mode_token", {}, "network.routing=noise"),
        ("discrete_vla", {"sampler": "autoregressive"}, "decode.sampler=reveal"),
        ("discrete_vla", {"temperature": 1.0, "value": "centre"}, "decode.temperature=0"),
        ("discrete_vla", {"adaptive": 0.5}, "decode.adaptive=1"),
        ("discrete_vla", {"confidence": "random"}, "decode.confidence=max"),
        ("discrete_vla", {"threshold": 0.2}, "decode.threshold=0"),
    ],
)
def test_what_no_graph_can_stand_for_is_refused(name: str, decode: dict, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(KinoiseError, match=remedy):
        export_policy(small(name, decode=decode).eval(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_replan_of_tokens_masks_as_the_policy_does() -> None:
    policy = warm("discrete_vla", decode={"steps": 3, "warm": 0.45})
    assert isinstance(policy, DiscreteVLAPolicy)
    graph = graphs(policy)["replan"]
    plan = policy.plan(observation(policy), generators(3))
    for elapsed in range(policy.config.chunk):
        guess = left_of(plan, elapsed, policy.config.chunk)
        assert guess is not None
        mine = graph._masked(graph._tokens(guess.actions), torch.tensor(guess.elapsed), guess.confidence)
        assert torch.equal(mine, policy._warm(guess, 0))
