"""Protocols by name: their values, what changes them, what they refuse, and how an episode is played by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinoise import envs
from kinoise.config import UsageError
from kinoise.envs import episode_seed
from kinoise.envs.libero.names import SUITES
from kinoise.eval.evaluate import evaluate
from kinoise.eval.presets import PRESETS, STANDARD, Wanted, as_settings, survey
from kinoise.eval.protocol import EvaluationProtocol
from kinoise.eval.slot import MIRRORED, TURNS, UPSIDE_DOWN, Job, Simulator, Slot, Terms
from kinoise.spec import Feature, KinoiseError, Spec
from line_world import SPEC, LineWorld
from walker import WalkerPolicy

LIBERO = {suite: tuple(f"libero/{task}" for task in tasks) for suite, tasks in SUITES.items()}
SIMULATOR = Simulator(SPEC, 123, stored=50, idle=(0.0,) * 6 + (-1.0,))
STEPS = {
    "openvla": (220, 280, 300, 520, 400),
    "openpi": (220, 280, 300, 520, 400),
    "lerobot": (280, 280, 300, 520, 400),
    "libero-original": (600,) * 5,
    "mode": (520,) * 5,
}


def resolve(
    tasks: tuple[str, ...], size: int | None = None, simulator: Simulator = SIMULATOR, **wanted: Any
) -> EvaluationProtocol:
    return Wanted(**wanted).resolve("env", tasks, dict.fromkeys(tasks, simulator), size)


@pytest.mark.parametrize("name", STEPS)
def test_liberos_presets_have_the_values_of_those_they_are_named_after(name: str):
    for suite, steps in zip(("spatial", "object", "goal", "10", "90"), STEPS[name], strict=True):
        found = resolve(LIBERO[suite], protocol=name)
        assert (found.name, found.horizon, found.stored, found.seed) == (name, steps, 50, 1000)
    wait, idle, episodes, images, size = {
        "lerobot": (10, (0, 0, 0, 0, 0, 0, -1), 10, MIRRORED, 256),
        "libero-original": (5, (0,) * 7, 20, UPSIDE_DOWN, 128),
        "mode": (0, (), 20, "upright", None),
    }.get(name, (10, (0, 0, 0, 0, 0, 0, -1), 50, MIRRORED, 256))
    assert (found.wait, found.idle, found.episodes, found.images, found.size) == (wait, idle, episodes, images, size)


def test_without_a_preset_every_task_has_its_own_horizon():
    pair = (LIBERO["spatial"][0], LIBERO["10"][0])
    looked: list[str] = []

    def look(task: str) -> Simulator:
        looked.append(task)
        return replace(SIMULATOR, horizon=220)

    found = Wanted().resolve("env", pair, survey(pair, look))
    assert looked == [pair[0]], "one of a family is built"
    assert found.horizon == dict(zip(pair, (220, 520), strict=True))
    assert [found.steps(task) for task in pair] == [220, 520]
    assert resolve(pair[:1], simulator=replace(SIMULATOR, horizon=9)).horizon == 9
    assert Wanted(horizon=7).resolve("env", pair, survey(pair, look)).horizon == 7


def test_tasks_of_several_simulators_have_to_begin_alike():
    pair = ("libero/spatial-0", "metaworld/push")
    simulators = {"libero/spatial-0": SIMULATOR, "metaworld/push": Simulator(SPEC, 77)}
    with pytest.raises(UsageError, match=r"spatial-0 and metaworld/push begin differently \(stored: 50 and 0; idle: .*in turn"):
        Wanted().resolve("env", pair, survey(pair, simulators.__getitem__))
    alike = {"pusht/pusht": Simulator(SPEC, 300), "metaworld/push": Simulator(SPEC, 77)}
    found = Wanted().resolve("env", tuple(alike), survey(tuple(alike), alike.__getitem__))
    assert found.horizon == {"pusht/pusht": 300, "metaworld/push": 77}


def test_what_a_mapping_file_says_is_part_of_the_protocol(tmp_path: Path):
    """Two evaluations compare, and one goes on, only where success means the same."""
    hashes = []
    for text in ("success: {info: done}", "success: {reward: -3.0}", "success: {info: done}\npython: elsewhere\ntimeout: 3"):
        path = tmp_path / "own.yaml"
        path.write_text(f"instruction: go\n{text}\n")
        found = resolve((str(path),))
        assert EvaluationProtocol.from_json(json.loads(json.dumps(found.to_json()))) == found
        hashes.append(found.hash)
    assert hashes[0] != hashes[1]
    assert hashes[0] == hashes[2], "where it is simulated doesn't count"
    assert "mappings" not in resolve(LIBERO["goal"]).to_json()


def test_a_mapping_file_has_no_simulator_s_presets(tmp_path: Path):
    (tmp_path / "metaworld").mkdir()
    path = tmp_path / "metaworld" / "own.yaml"
    path.write_text("instruction: go")
    with pytest.raises(UsageError, match="is for metaworld, and says nothing of"):
        resolve((str(path),), protocol="metaworld")
    with pytest.raises(UsageError, match=r"is for metaworld, and says nothing of metaworld/own\.yaml"):
        Wanted(protocol="metaworld").preset(("metaworld/own.yaml",))


def test_the_other_presets():
    task = ("metaworld/push",)
    for name, episodes in (("metaworld", 50), ("lerobot", 10)):
        found = resolve(task, protocol=name, simulator=Simulator(SPEC, 77))
        assert (found.episodes, found.horizon, found.wait, found.stored) == (episodes, 500, 0, 0)
    found = resolve(("robosuite/lift",), protocol="robomimic")
    assert (found.episodes, found.horizon) == (50, 400)
    found = resolve(("pusht/pusht",), protocol="diffusion-policy")
    assert [seed for *_, seed in found.episode_seeds()] == list(range(100_000, 100_050))
    assert (found.horizon, found.seeding) == (300, "counted")
    assert resolve(("remote/old/robosuite/lift",), protocol="diffusion-policy").horizon == 400


def test_without_a_preset_it_is_the_simulators_own():
    found = resolve(("line/go",), simulator=Simulator(SPEC, 123))
    assert (found.name, found.episodes, found.horizon, found.seed, found.wait) == ("seeded", 10, 123, 1000, 0)
    assert resolve(("line/go",), episodes=3, horizon=4).name == "stored"
    settling = replace(SIMULATOR, settle=7)
    assert [resolve(("line/go",), simulator=settling, wait=wait).wait for wait in (None, 0)] == [7, 0]
    assert [seed for *_, seed in found.episode_seeds()] == [episode_seed(1000, "line/go", index) for index in range(10)]


def test_what_is_changed_is_in_the_name_and_in_the_hash():
    spatial = LIBERO["spatial"]
    preset = resolve(spatial, protocol="openvla")
    same = resolve(spatial, protocol="openvla", episodes=50, horizon=220, wait=10, images=MIRRORED)
    assert same == preset
    for wanted, said in (
        ({"episodes": 5}, "episodes"),
        ({"horizon": 100, "wait": 0}, "horizon, wait"),
        ({"images": "upright"}, "images"),
        ({"perturb": "camera:0.1"}, "perturb"),
    ):
        found = resolve(spatial, protocol="openvla", **wanted)
        assert found.name == f"openvla, changed: {said}"
        assert found.hash != preset.hash
    assert resolve(spatial, protocol="openvla", seed=3).name == "openvla", "it says nothing of seeds"
    assert resolve(("pusht/pusht",), protocol="diffusion-policy", seed=3).name == "diffusion-policy, changed: seed"
    for size, name in ((256, "openvla"), (128, "openvla, changed: size"), (None, "openvla")):
        found = resolve(spatial, protocol="openvla", size=size)
        assert (found.name, found.size) == (name, size or 256)
    assert resolve(spatial, protocol="mode", size=128).size is None


def test_horizons_of_several_suites_are_kept_by_task():
    found = resolve((*LIBERO["spatial"], *LIBERO["10"]), protocol="openvla")
    assert {found.steps(task) for task in LIBERO["spatial"]} == {220}
    assert {found.steps(task) for task in LIBERO["10"]} == {520}
    assert EvaluationProtocol.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert {job.terms.horizon for job in found.jobs(1, ("state",))} == {220, 520}


@pytest.mark.parametrize("name", STANDARD)
def test_perturbed_protocols_have_a_name_and_a_strength(name: str):
    found = resolve(LIBERO["goal"], protocol=f"libero-{name}")
    assert (found.perturb, found.horizon, found.images) == ({name: STANDARD[name]}, 300, "upright")
    other = resolve(LIBERO["goal"], protocol=f"libero-{name}", perturb=f"{name}:0.01")
    assert (other.name, other.perturb) == (f"libero-{name}, changed: perturb", {name: 0.01})
    assert other.hash != found.hash
    assert resolve(LIBERO["goal"], perturb="camera:0.1,lighting:1").name == "stored, perturbed"


@pytest.mark.parametrize(
    ("tasks", "wanted", "text"),
    [
        (
            LIBERO["spatial"],
            {"protocol": "metaworld"},
            "says nothing of libero/spatial-0.*openvla, openpi",
        ),
        (("metaworld/push",), {"protocol": "openvla"}, r"is for libero.*metaworld/push there are lerobot, metaworld"),
        (("libero/new-1",), {"protocol": "openvla"}, "says nothing of libero/new-1"),
        (("line/go",), {"protocol": "mode"}, "For line/go there is none"),
        (("metaworld/push", "libero/goal-1"), {"protocol": "lerobot"}, "protocol=lerobot"),
        (("line/go",), {"protocol": "openvl"}, "Did you mean openvla"),
        (("line/go",), {"wait": -1}, "wait=-1"),
        (("line/go",), {"images": "sideways"}, "upright, mirrored, upside_down"),
        (("line/go",), {"perturb": "camera"}, "camera:0.05"),
        (("line/go",), {"perturb": "camera:0"}, "above 0"),
        (("line/go",), {"perturb": "camera:1,camera:2"}, "each kind once"),
    ],
)
def test_what_does_not_fit_is_refused(tasks: tuple[str, ...], wanted: dict[str, Any], text: str):
    with pytest.raises(UsageError, match=text):
        resolve(tasks, **wanted)
    with pytest.raises(UsageError, match="no action"):
        resolve(("pusht/pusht",), simulator=Simulator(SPEC, 1), wait=3)


def test_a_simulator_without_perturbations_says_so():
    with pytest.raises(UsageError, match="metaworld/push has: none"):
        evaluate(WalkerPolicy().eval(), "metaworld/push", perturb="camera:0.1", progress=False)
    with pytest.raises(KinoiseError, match="no perturbation 'camera'"):
        envs.make("metaworld/push", perturb={"camera": 0.1})


@pytest.mark.parametrize("name", PRESETS)
def test_the_settings_on_record_make_the_same_protocol(name: str):
    (simulator, *_) = PRESETS[name]
    tasks = LIBERO["goal"] if simulator == "libero" else (f"{simulator}/push",)
    for changes in ({}, {"episodes": 3, "horizon": 9}, {"wait": 1}):
        found = resolve(tasks, protocol=name, **changes)
        again = {key: item for key, item in as_settings(found.to_json()).items() if key != "env"}
        assert resolve(tasks, **again) == found


class Watched(LineWorld):
    """Has five stored states, and notes how it was reset and what it was told; the picture's corners differ."""

    stored = 5

    def __init__(self, task: str, *, render: bool = False) -> None:
        super().__init__(task, render=render)
        self.resets: list[tuple[int | None, Any]] = []
        self.told: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self.resets.append((seed, options))
        found = super().reset(seed=seed)
        if options is not None:
            self._goal = (options["index"] % self.stored + 1) / 10
        return found

    def step(self, action: np.ndarray):
        self.told.append(action)
        return super().step(action)

    def idle_action(self) -> np.ndarray:
        return np.array([0.0625], np.float32)

    def _observation(self):
        found = super()._observation()
        found["image.top"] = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
        return found


def watched(terms: Terms, index: int = 7) -> tuple[Watched, Slot]:
    made: list[Watched] = []

    def make(task: str, *, render: bool) -> Watched:
        made.append(Watched(task, render=render))
        return made[-1]

    slot = Slot(make)
    assert slot.build("line/stuck", False) == Simulator(SPEC, 30, stored=5, idle=(0.0625,))
    assert slot.begin(Job("line/stuck", index, 4, terms)) is None
    return made[0], slot


def test_an_episode_begins_in_the_stored_state_of_its_index_after_the_wait():
    env, slot = watched(Terms(2, ("state", "image.top"), 3, wait=4, idle=(-1.0,)))
    assert env.resets == [(4, {"index": 7})]
    assert [action.tolist() for action in env.told] == [[-1.0]] * 4
    state = slot.observation()["state"]
    assert state[:, 2].tolist() == [4, 4], "the history begins after the wait"
    assert state[0, 1] == pytest.approx(0.3), "7 modulo 5"
    outcome = slot.advance(np.zeros((8, 1), np.float32))
    assert outcome is not None
    assert outcome.steps == 3, "waiting doesn't count"
    assert env.horizon == 7


@pytest.mark.parametrize("horizon", [2, 50])
def test_the_protocols_horizon_may_be_shorter_or_longer_than_the_simulators(horizon: int):
    """Metaworld's upstream ends at 500 by itself."""
    slot = Slot(envs.make)
    slot.build("metaworld/reach", False)
    own, terms = 500, Terms(1, ("state",), 500 + horizon)
    slot.begin(Job("metaworld/reach", 0, 4, terms if horizon > 2 else Terms(1, ("state",), 2)))
    outcome, up = None, np.tile(np.float32([0, 0, 1, 0]), (10, 1))
    while outcome is None:
        outcome = slot.advance(up)
    assert (outcome.steps, outcome.error) == (own + 50 if horizon > 2 else 2, None)
    slot.close()


@pytest.mark.parametrize(("images", "corner"), [("upright", 0), (MIRRORED, 5 * 3), (UPSIDE_DOWN, 3 * 6 * 3)])
def test_images_are_turned_as_the_protocol_says(images: str, corner: int):
    _, slot = watched(Terms(1, ("state", "image.top"), 3, images=images))
    image = slot.observation()["image.top"][0]
    assert image.shape == (4, 6, 3)
    assert image[0, 0, 0] == corner


def test_a_mirrored_image_is_liberos_own_turned_by_180_degrees():
    """Its own is the upright one upside down."""
    upright = np.arange(24).reshape(4, 6, 1)
    own = upright[TURNS[UPSIDE_DOWN]]
    np.testing.assert_array_equal(own[::-1, ::-1], upright[TURNS[MIRRORED]])


def test_evaluation_says_what_it_was_played_by(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PRESETS, "lines", {"line": PRESETS["mode"]["libero"]})
    monkeypatch.setattr(envs, "tasks", lambda env: ("line/go", "line/stuck"))
    from line_world import make

    result = evaluate(
        WalkerPolicy().eval(), "line/all", protocol="lines", episodes=2, wait=1, make=make, workers=1, progress=False
    )
    played = result["protocol"]
    assert (played["name"], played["horizon"], played["episodes"]) == ("lines, changed: episodes, wait", 520, 2)
    assert (played["wait"], played["idle"]) == (1, [0.0])
    stuck = [item["steps"] for item in result["episodes"] if item["task"] == "line/stuck" and not item["success"]]
    assert stuck
    assert set(stuck) == {29}, "this world has an end of its own, of which one step was waited"


def test_counted_seeds_are_the_simulators():
    spec = Spec({"state": Feature((1,))}, Feature((1,), low=(-1.0,), high=(1.0,)), rate=1.0)
    found = resolve(("pusht/pusht",), simulator=Simulator(spec, 9), protocol="diffusion-policy", episodes=2)
    assert [job.seed for job in found.jobs(1, ("state",))] == [100_000, 100_001]
