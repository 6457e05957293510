"""What holds for all tests."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

# A shell that runs pytest in the background has it ignore Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None)  # an example may be slow where the machine is busy
settings.load_profile("untimed")

# Files whose tests run against a clock: `make test` has no others beside them.
ALONE = {
    "contracts/test_client",
    "contracts/test_controller",
    "contracts/test_inference",
    "contracts/test_process",
    "contracts/test_remote_process",
    "contracts/test_ros2_node",
    "contracts/test_serve_env",
    "contracts/test_server",
    "contracts/test_worker_deaths",
    "end_to_end/test_control",
    "end_to_end/test_latency",
    "end_to_end/test_replay",
    "end_to_end/test_serve",
    "faults/test_collecting",
    "faults/test_environments",
    "faults/test_time",
}


# Files that take half a minute or more: begun first, since a worker that has one left at the end keeps the other waiting.
SLOW = {
    "test_acting",
    "test_collect",
    "test_disk",
    "test_distributed",
    "test_docs",
    "test_every_env",
    "test_kills",
    "test_lerobot_policy",
    "test_onnx",
    "test_pipeline",
    "test_plugin",
    "test_scaling",
    "test_train_resumed",
}


def _alone(path: Path) -> bool:
    return f"{path.parent.name}/{path.stem}" in ALONE


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Half a minute is saved by not even importing the files that `-m alone` leaves out."""
    if config.getoption("markexpr") == "alone" and collection_path.name.startswith("test_") and not _alone(collection_path):
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in SLOW)
    for item in items:
        if _alone(item.path):
            item.add_marker(pytest.mark.alone)
