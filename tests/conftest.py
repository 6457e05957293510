"""What holds for all tests."""

import signal

import pytest
from hypothesis import settings

# A shell that runs pytest in the background has it ignore Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None)  # an example may be slow where the machine is busy
settings.load_profile("untimed")

# Files whose tests run against a clock: `make test` has no others beside them.
ALONE = {
    "test_client",
    "test_control",
    "test_controller",
    "test_inference",
    "test_latency",
    "test_process",
    "test_remote_process",
    "test_replay",
    "test_ros2_node",
    "test_serve",
    "test_serve_env",
    "test_server",
    "test_worker_deaths",
}


# Files that take a minute or more: begun first, since a worker that has one left at the end keeps the other waiting.
SLOW = {"test_distributed", "test_docs", "test_kills", "test_onnx", "test_pipeline", "test_plugin", "test_scaling"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in SLOW)
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)
