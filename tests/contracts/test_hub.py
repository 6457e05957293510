"""kinoise push and pull against a small server of the hub's HTTP interface, on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from huggingface_hub import ModelCard
from kinoise.data import Episode, open_store, write_store
from kinoise.data.hub.client import content
from kinoise.data.lerobot import LeRobotStore
from kinoise.data.replay.writer import write_replay
from kinoise.files import claimed, write_json
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import Feature, KinoiseError, Spec
from small_policies import small
from tiny_hub import Hub, Side


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server) -> Hub:
    server.forget()
    return server


@pytest.fixture(scope="module")
def kinoise(server, tmp_path_factory) -> Iterator[Side]:
    side = Side(server.address, tmp_path_factory.mktemp("home"))
    yield side
    side.close()


@pytest.fixture(scope="module")
def stranger(server, tmp_path_factory) -> Iterator[Side]:
    """Has no token."""
    side = Side(server.address, tmp_path_factory.mktemp("home"), token=None)
    yield side
    side.close()


SPEC = Spec({"state": Feature((3,))}, Feature((2,)), 10.0, language=False)
EPISODES = [Episode({"state": np.full((4, 3), 2.5, np.float32), "action": np.ones((4, 2), np.float32)})]


def test_a_data_set_goes_to_the_hub_and_comes_back_without_pickles(hub, kinoise, stranger, tmp_path):
    write_store(tmp_path / "da ta", SPEC, EPISODES)
    (tmp_path / "da ta/notes.pkl").write_bytes(b"not for others")
    done = kinoise("push", tmp_path / "da ta", "me/push-t")
    assert done.code == 0, done.err
    files = hub.repos["dataset", "me/push-t"]
    assert {"kinoise.json", "data/action/0.0", "data/state/.zarray", "meta/episode_ends/0", ".zgroup"} < files.keys()
    assert "notes.pkl" not in files
    assert "left out: notes.pkl" in done.out
    assert hub.private["dataset", "me/push-t"]

    harmful = {name: b"\x80" for name in ("data/0.pkl", "pytorch_model.bin", "x.pt", "load.py", "data/state/1.pickle")}
    files |= harmful
    done = stranger("pull", "me/push-t", tmp_path / "back")
    assert done.code == 0, done.err
    assert not harmful.keys() & set(hub.fetched)
    assert all(f"left out: {name}" in done.out for name in harmful)
    store = open_store(tmp_path / "back")
    assert store.spec == SPEC
    np.testing.assert_array_equal(store.read("state", 0, 4), EPISODES[0].arrays["state"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "da ta"]
    again = kinoise("pull", "me/push-t", tmp_path / "back")
    assert again.code == 1
    assert "exists already" in again.err


def test_a_run_goes_as_its_last_checkpoint_to_a_branch_of_a_model(hub, kinoise, tmp_path):
    checkpoint = tmp_path / "run/checkpoints/000100"
    checkpoint.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "ema.safetensors", "optimizer.pt"):
        (checkpoint / name).write_text("{}")
    (checkpoint.parent / "last").symlink_to("000100")
    done = kinoise("push", tmp_path / "run", "me/mode", "private=false", "revision=trial")
    assert done.code == 0, done.err
    assert set(hub.repos["model", "me/mode"]) == {"config.json", "model.safetensors", "ema.safetensors"}
    assert hub.branches == ["trial"]
    assert not hub.private["model", "me/mode"]
    done = kinoise("pull", "me/mode", tmp_path / "policy")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == [
        "config.json",
        "ema.safetensors",
        "model.safetensors",
    ]


def test_a_policy_goes_with_its_card_and_without_what_only_training_needs(hub, kinoise, tmp_path):
    checkpoint = tmp_path / "run/checkpoints/100"
    (checkpoint / "training_state").mkdir(parents=True)
    save_policy(checkpoint, small("mode"), {})
    (checkpoint / "training_state/optimizer.safetensors").write_bytes(b"twice the weights")
    settings = {"data": "/home/me/mt10", "seed": 0, "env": None, "train": {"batch_size": 8, "lr": 1e-3}}
    write_json(checkpoint / "training_state/state.json", {"step": 100, "settings": settings})
    (checkpoint.parent / "last").symlink_to("100")

    done = kinoise("push", tmp_path / "run", "me/mode", "license=mit", "datasets=[me/mt10]")
    assert done.code == 0, done.err
    files = hub.repos["model", "me/mode"]
    assert set(files) == {"README.md", "config.json", "ema.safetensors", "model.safetensors"}
    assert "left out: training_state/optimizer.safetensors" in done.out
    data = ModelCard(files["README.md"].decode()).data
    assert (data.license, data.datasets, data.library_name) == ("mit", ["me/mt10"], "kinoise")

    done = kinoise("pull", "me/mode", tmp_path / "policy")
    assert done.code == 0, done.err
    assert load_policy(tmp_path / "policy").config.name == "mode"
    assert (tmp_path / "policy/README.md").read_bytes() == files["README.md"]

    (checkpoint / "README.md").write_text("# mine\n")
    done = kinoise("push", tmp_path / "run", "me/mode", "license=mit")
    assert (done.code, "not as kinoise wrote it" in done.err) == (2, True), done.err
    done = kinoise("push", tmp_path / "run", "me/mode")
    assert (done.code, files["README.md"]) == (0, b"# mine\n"), done.err

    write_store(tmp_path / "data", SPEC, EPISODES)
    done = kinoise("push", tmp_path / "data", "me/data", "license=mit")
    assert (done.code, "is a data set" in done.err) == (2, True), done.err


def test_a_data_set_that_is_a_file_is_one_there(hub, kinoise, tmp_path):
    write_replay(tmp_path / "a.zarr.zip", SPEC, EPISODES)
    done = kinoise("push", tmp_path / "a.zarr.zip", "me/zip")
    assert done.code == 0, done.err
    assert list(hub.repos["dataset", "me/zip"]) == ["a.zarr.zip"]
    done = kinoise("pull", "me/zip", tmp_path / "back", "kind=dataset")
    assert (tmp_path / "back/a.zarr.zip").read_bytes() == (tmp_path / "a.zarr.zip").read_bytes()


def test_what_an_earlier_push_left_is_not_read_as_part_of_the_next(hub, kinoise, tmp_path):
    write_store(tmp_path / "native", SPEC, EPISODES)
    LeRobotStore.write(tmp_path / "lerobot", SPEC, EPISODES)
    for name in ("native", "lerobot"):
        assert kinoise("push", tmp_path / name, "me/data").code == 0
    assert kinoise("pull", "me/data", tmp_path / "back").code == 0
    assert len(open_store(tmp_path / "back").ends) == 1
    write_replay(tmp_path / "a.zarr.zip", SPEC, EPISODES)
    done = kinoise("push", tmp_path / "a.zarr.zip", "me/data")
    assert "holds another data set" in done.err


def test_a_file_that_pull_would_not_know_is_not_pushed(hub, kinoise, tmp_path):
    write_replay(tmp_path / "a.zarr.zip", SPEC, EPISODES)
    (tmp_path / "a.zarr.zip").rename(tmp_path / "a")
    done = kinoise("push", tmp_path / "a", "me/zip")
    assert done.code == 1
    assert "ends in .hdf5 or .zip" in done.err
    assert not hub.repos


def test_a_lerobot_data_set_is_tagged_with_its_version_for_lerobot_finds_it_by_that(hub, kinoise, tmp_path):
    LeRobotStore.write(tmp_path / "data", SPEC, EPISODES)
    done = kinoise("push", tmp_path / "data", "me/arm")
    assert done.code == 0, done.err
    assert hub.tags == ["v3.0"]
    done = kinoise("pull", "me/arm", tmp_path / "back")
    assert done.code == 0, done.err
    assert open_store(tmp_path / "back").spec == open_store(tmp_path / "data").spec


def test_two_pulls_do_not_mix(hub, kinoise, tmp_path):
    hub.repos["dataset", "me/data"] = {"kinoise.json": b"{}", "data/action/0.0": b"1234"}
    partial = tmp_path / "out.partial"
    partial.mkdir()
    with claimed(partial, "pulls"):
        done = kinoise("pull", "me/data", tmp_path / "out")
    assert done.code == 1
    assert "another process pulls there" in done.err
    assert list(partial.iterdir()) == []


def test_an_interrupted_pull_leaves_no_folder_and_goes_on(hub, kinoise, tmp_path):
    files = {"kinoise.json": b"{}", "data/action/0.0": b"1234", "data/action/1.0": b"5678"}
    hub.repos["dataset", "me/data"] = files
    hub.breaks_at = "data/action/1.0"
    done = kinoise("pull", "me/data", tmp_path / "out")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out.partial/data").mkdir(parents=True, exist_ok=True)
    (tmp_path / "out.partial/data/old.json").write_text("of another commit")
    hub.breaks_at = None
    done = kinoise("pull", "me/data", tmp_path / "out")
    assert done.code == 0, done.err
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == files.keys()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("pull", "me/nothing", "OUT"), 1, "there is none, or this token may not see it"),
        (("pull", "me/empty", "OUT"), 1, "holds nothing that kinoise reads: train.py"),
        (("pull", "a/b/c", "OUT"), 1, "expected a repository's name"),
        (("pull", "me/empty", "OUT", "kind=tape"), 2, "expected dataset or model"),
        (("pull", "me/empty", "OUT", "more"), 2, "expected key=value after REPO OUT"),
        (("pull", "me/empty"), 2, "out"),
        (("push", "NOWHERE", "me/data"), 1, "does not exist"),
    ],
)
def test_what_cannot_be_moved_is_said_in_a_line(arguments, code, message, hub, kinoise, tmp_path):
    hub.repos["dataset", "me/empty"] = {"train.py": b""}
    done = kinoise(*(tmp_path / item if item.isupper() else item for item in arguments))
    assert (done.code, message in done.err) == (code, True), done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "OUT").exists()


def test_no_token_and_no_network_are_said_in_a_line(hub, stranger, tmp_path):
    write_store(tmp_path / "data", SPEC, EPISODES)
    done = stranger("push", tmp_path / "data", "me/data")
    assert (done.code, "HF_TOKEN" in done.err) == (1, True), done.err
    gone = Hub()
    gone.server_close()
    nowhere = Side(gone.address, tmp_path / "home")
    for arguments in (("push", tmp_path / "data", "me/data"), ("pull", "me/data", tmp_path / "out")):
        done = nowhere(*arguments)
        assert (done.code, "can't be reached" in done.err) == (1, True), done.err
        assert "Traceback" not in done.err
    nowhere.close()


def test_only_data_sets_and_policies_are_pushed(tmp_path):
    (tmp_path / "mix.yaml").write_text("datasets: [{path: a}]\n")
    (tmp_path / "other").mkdir()
    with pytest.raises(KinoiseError, match="push each of them"):
        content(tmp_path / "mix.yaml")
    with pytest.raises(KinoiseError, match="neither a data set"):
        content(tmp_path / "other")
