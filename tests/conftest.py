"""What holds for all tests."""

import signal

import pytest
from hypothesis import settings

# A shell that runs pytest in the background has it ignore Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None)  # an example may be slow where the machine is busy
settings.load_profile("untimed")

# Files whose tests run clocks, deadlines or several processes against each other: `make test` has no others beside them.
ALONE = {
    "test_cli",
    "test_client",
    "test_control",
    "test_controller",
    "test_distributed",
    "test_doctor",
    "test_inference",
    "test_latency",
    "test_pipeline",
    "test_process",
    "test_remote_env",
    "test_remote_process",
    "test_replay",
    "test_ros2_node",
    "test_serve",
    "test_serve_env",
    "test_server",
    "test_worker_deaths",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)
