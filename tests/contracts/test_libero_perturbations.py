"""Perturbed LIBERO: what is changed depends on the seed alone, is undone, and leaves the task what it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinoise import envs
from kinoise.envs.libero.names import TASKS
from kinoise.envs.libero.paraphrase import paraphrase
from kinoise.envs.libero.perturb import LIMITS, PERTURBATIONS, Perturber, check_strengths
from kinoise.spec import KinoiseError

ALL = {"positions": 0.05, "lighting": 0.5, "camera": 0.05, "distractors": 3.0}
SEED = 11


def test_strengths_have_limits_and_are_explained():
    assert PERTURBATIONS.keys() == LIMITS.keys()
    check_strengths(LIMITS)
    for kind, strength in (("wind", 1.0), ("camera", 0.6), ("positions", 0.0), ("distractors", 1.5), ("instruction", 3.0)):
        with pytest.raises(KinoiseError, match=kind):
            check_strengths({kind: strength})


@given(task=st.sampled_from(sorted(TASKS)), seed=st.integers(0, 2**53 - 1), level=st.sampled_from([1, 2]))
def test_an_instruction_in_other_words_names_the_same_things(task: str, seed: int, level: int):
    text = TASKS[task]
    other = paraphrase(text, seed, level)
    assert other == paraphrase(text, seed, level)
    assert other != text
    for word in ("basket", "plate", "stove", "drawer", "cabinet", "bowl", "mug", "moka", "left", "right", "bottom", "middle"):
        assert (word in text.split()) == (word in other.replace(",", "").replace("?", "").split())


@pytest.mark.parametrize("level", [1, 2])
def test_every_instruction_is_said_in_several_ways(level: int):
    for text in set(TASKS.values()):
        assert len({paraphrase(text, seed, level) for seed in range(12)}) >= 2 + (level - 1)


@pytest.fixture(scope="module")
def scene() -> Iterator[Any]:
    pytest.importorskip("libero")
    from kinoise.envs.libero.scene import Scene

    made = Scene("spatial-3", perturb={"distractors": 3.0})
    yield made
    made.close()


def changed(scene: Any) -> dict[str, np.ndarray]:
    """All that a perturbation may change."""
    model, data = scene.model, scene.data
    names = ("light_diffuse", "light_specular", "light_dir", "cam_pos", "cam_quat")
    found = {name: getattr(model, name).copy() for name in names}
    found |= {name: getattr(data, name).copy() for name in ("qpos", "mocap_pos", "mocap_quat", "cam_xpos", "light_xdir")}
    return found | {"headlight": model.vis.headlight.diffuse.copy()}


def alike(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> set[str]:
    return {name for name in first if np.array_equal(first[name], second[name])}


def test_the_seed_alone_says_what_is_changed_and_it_is_undone(scene: Any):
    scene.reset(7, 0)
    plain, perturber = changed(scene), Perturber(scene.model, ALL)
    perturber.apply(scene.data, SEED)
    first = changed(scene)
    assert not alike(plain, first)
    scene.reset(8, 3)
    perturber.apply(scene.data, SEED + 1)
    assert not alike(first, changed(scene))
    perturber.restore()
    scene.reset(7, 0)
    assert alike(plain, changed(scene)) == plain.keys()
    perturber.apply(scene.data, SEED)
    assert alike(first, changed(scene)) == first.keys()


def test_each_kind_is_the_same_beside_others_and_changes_its_own(scene: Any):
    kinds = {
        "positions": {"qpos"},
        "lighting": {"light_diffuse", "light_specular", "light_dir", "light_xdir", "headlight"},
        "camera": {"cam_pos", "cam_quat", "cam_xpos"},
    }
    scene.reset(7, 0)
    plain, together = changed(scene), Perturber(scene.model, ALL)
    together.apply(scene.data, SEED)
    all_of_it = changed(scene)
    together.restore()
    for kind, own in kinds.items():
        scene.reset(7, 0)
        alone = Perturber(scene.model, {kind: ALL[kind]})
        alone.apply(scene.data, SEED)
        found = changed(scene)
        alone.restore()
        assert found.keys() - alike(plain, found) == own
        assert own <= alike(all_of_it, found)


def test_things_are_displaced_with_what_they_lie_on(scene: Any):
    """In this task a bowl lies on the box of cookies, another on the cabinet."""
    from kinoise.envs.libero.surroundings import movable

    places = {scene.model.body(body).name.removesuffix("_main"): start for body, start in movable(scene.model).items()}
    most, moves = 0.0, []
    for seed in range(5):
        scene.reset(7, 0)
        before, perturber = scene.data.qpos.copy(), Perturber(scene.model, {"positions": 0.05})
        perturber.apply(scene.data, seed)
        moved = scene.data.qpos - before
        others = np.setdiff1d(np.arange(len(moved)), [start + axis for start in places.values() for axis in (0, 1)])
        assert not moved[others].any()
        by_name = {name: moved[start : start + 2] for name, start in places.items()}
        np.testing.assert_allclose(by_name["akita_black_bowl_1"], by_name["cookies_1"], atol=1e-12)
        assert not by_name["akita_black_bowl_2"].any()
        lengths = [np.linalg.norm(item) for item in by_name.values()]
        most = max(most, *lengths)
        moves.append(by_name["plate_1"])
        after = scene.data.qpos.copy()
        for _ in range(10):
            scene.step(np.array([0.0] * 6 + [-1.0]))
        for name in ("plate_1", "cookies_1"):
            start = places[name]
            assert np.linalg.norm(scene.data.qpos[start : start + 2] - after[start : start + 2]) < 0.005, "it was pushed away"
    assert 0.02 < most <= 0.05
    assert len({tuple(item) for item in moves}) == 5


def test_distractors_are_seen_and_have_no_part_in_the_physics(scene: Any):
    from kinoise.envs.libero.distractors import AWAY, PREFIX
    from kinoise.envs.libero.scene import Scene

    plain = Scene("spatial-3")
    plain.reset(7, 0)
    scene.reset(7, 0)
    Perturber(scene.model, {"distractors": 3.0}).apply(scene.data, SEED)
    assert (scene.data.mocap_pos[:, 2] > AWAY[2] + 5).sum() == 3
    names = {scene.model.body(body).name for body in range(scene.model.nbody)}
    assert not {f"{PREFIX}_cookies_main", f"{PREFIX}_glazed_rim_porcelain_ramekin_main"} & names, "the scene has these already"
    for step in range(20):
        action = np.array([0.5, 0.2, -1.0, 0.0, 0.1, 0.0, -1.0 if step < 10 else 1.0])
        plain.step(action)
        scene.step(action)
    np.testing.assert_array_equal(plain.data.qpos, scene.data.qpos)
    plain.close()


def test_an_environment_is_perturbed_by_its_seed():
    pytest.importorskip("libero")
    strengths = {"positions": 0.05, "instruction": 2.0}
    plain, perturbed = envs.make("libero/goal-0"), envs.make("libero/goal-0", perturb=strengths)
    found = []
    for env in (plain, perturbed, perturbed):
        observation, _ = env.reset(seed=5, options={"index": 3})
        found.append((env.instruction, env.initial()["positions"], observation["objects"].tolist()))
        env.reset(seed=6, options={"index": 4})
    assert found[1] == found[2]
    assert all(one != other for one, other in zip(found[0], found[1], strict=True))
    assert found[0][0] == TASKS["goal-0"]
    plain.close()
    perturbed.close()
    with pytest.raises(KinoiseError, match=r"no perturbation 'wind'.*positions, lighting"):
        envs.make("libero/goal-0", perturb={"wind": 1.0})
    with pytest.raises(KinoiseError, match=r"up to 0\.5"):
        envs.make("libero/goal-0", perturb={"camera": 1.0})
