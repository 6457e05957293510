"""`kinoise train` as several processes: the same run as one, whatever it is spread by, stopped, killed and handed on.

Run as a script, this file is the process that forks the runs (`drive`), or one of those that torchrun starts (`work`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinoise.cli import main
from kinoise.data import Episode, write_store
from kinoise.spec import Feature, Spec
from safetensors.torch import load_file
from torch import Tensor

STEPS, KILLED_AT = 8, 5
# What they see: the last one small pictures too, which training moves at random.
POLICIES = {"diffusion": ["state"], "mode": ["state"], "discrete_vla": ["state", "image.front"]}
# Nine windows: two processes and three parts get unequal shares of them.
SHORT = [f"train.steps={STEPS}", "train.batch_size=9", "train.save_every=4", "train.log_every=1", "train.warmup=2"]
SHORT += ["train.validation=0.3", "train.validate_every=4", "train.tensorboard=false", "train.augment.shift=1"]
NETWORK = ["policy.network.width=16", "policy.network.depth=2", "policy.network.heads=2", "policy.chunk=4", "policy.execute=2"]
SPREAD = {
    "accumulate": (1, ["train.accumulate=3"]),
    "ddp": (2, []),
    "fsdp": (2, ["train.parallel=fsdp"]),
    "ddp-accumulate": (2, ["train.accumulate=2"]),
    "fsdp-accumulate": (2, ["train.parallel=fsdp", "train.accumulate=2"]),
}
MEMBERS = [(policy, spread) for policy in ("mode", "discrete_vla") for spread in ("ddp", "fsdp")]
MEMBERS += [("diffusion", name) for name in SPREAD]
HANDED_ON = {"ddp": "one", "one": "fsdp", "fsdp": "ddp"}
EVALUATED = ["env=metaworld/mt10", "train.eval_every=4"]


def arguments(data: Path, out: Path, *more: str, policy: str = "diffusion") -> list[str]:
    seen = f"policy.observations=[{','.join(POLICIES[policy])}]"
    pictures = ["policy.encoder.patch=4", "policy.encoder.shift=1"] if policy == "discrete_vla" else []
    return ["train", f"policy={policy}", *NETWORK, seen, *pictures, *SHORT, f"data={data}", f"out={out}", *more]


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def curve(out: Path, name: str) -> list[float]:
    return [item[name] for item in records(out) if name in item]


def tensors(out: Path) -> dict[str, Tensor]:
    files = ("model.safetensors", "ema.safetensors", "training_state/optimizer.safetensors")
    last = out / "checkpoints" / "last"
    return {f"{file}:{key}": item for file in files for key, item in load_file(last / file).items()}


def assert_same_run(one: Path, other: Path, policy: str = "diffusion") -> None:
    """Up to the rounding of sums, and for experts up to their balancing loss, which is of each part of a batch by itself."""
    assert [item["step"] for item in records(other)] == list(range(1, STEPS + 1))
    tolerance = 1e-3 if policy == "mode" else 1e-5
    for name in ("loss", "denoising", "grad_norm", "validation_loss"):
        loose = 20 * tolerance if name == "grad_norm" else tolerance
        np.testing.assert_allclose(curve(other, name), curve(one, name), rtol=loose, err_msg=f"{other.name}: {name}")
    weights, others = tensors(one), tensors(other)
    assert {key: (item.shape, item.dtype) for key, item in weights.items()} == {
        key: (item.shape, item.dtype) for key, item in others.items()
    }
    if policy == "diffusion":  # elsewhere AdamW makes whole steps of gradients that are nothing but rounding
        assert max(float((item - others[key]).abs().max()) for key, item in weights.items()) < 1e-5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five short episodes with a small camera."""
    path, gen = tmp_path_factory.mktemp("distributed") / "data", np.random.default_rng(0)
    observations = {"state": Feature((5,)), "image.front": Feature((8, 8, 3), kind="image")}
    spec = Spec(observations, Feature((2,), low=(-1.0,) * 2, high=(1.0,) * 2), rate=10.0, language=False)

    def episode(steps: int) -> Episode:
        state, action = gen.normal(size=(steps, 5)), gen.uniform(-1, 1, size=(steps, 2))
        images = gen.integers(0, 256, (steps, 8, 8, 3), dtype=np.uint8)
        return Episode({"state": state.astype(np.float32), "image.front": images, "action": action.astype(np.float32)})

    write_store(path, spec, [episode(steps) for steps in range(6, 11)])
    return path


@pytest.fixture(scope="module")
def runs(data: Path) -> Path:
    """Where `drive` left all its runs."""
    base = data.parent / "runs"
    subprocess.run([sys.executable, __file__, "drive", str(data), str(base)], check=True, timeout=600)
    return base


@pytest.mark.parametrize(("policy", "spread"), MEMBERS)
def test_the_loss_curve_is_that_of_one_process(policy: str, spread: str, runs: Path) -> None:
    assert_same_run(runs / f"{policy}-one", runs / f"{policy}-{spread}", policy)
    summary = json.loads((runs / f"{policy}-{spread}" / "train.json").read_text())
    assert summary["processes"] == SPREAD[spread][0]
    assert summary["parallel"] == {"accumulate": "single"}.get(spread, spread.partition("-")[0])


@pytest.mark.parametrize(("before", "after"), HANDED_ON.items())
def test_a_run_goes_on_with_another_number_of_processes(before: str, after: str, runs: Path) -> None:
    assert_same_run(runs / "diffusion-one", runs / f"{before}-then-{after}")


def test_a_signal_to_one_process_stops_all_after_the_same_update(runs: Path) -> None:
    stopped = json.loads((runs / "stopped.json").read_text())
    assert stopped["codes"] == [143, 143]
    assert stopped["updates"] == [stopped["last"]] * 2
    assert stopped["last"] < STEPS
    assert_same_run(runs / "diffusion-one", runs / "stopped")


def test_the_leader_evaluates_and_the_others_wait(runs: Path) -> None:
    assert sorted(item.name for item in (runs / "evaluated" / "evaluations").iterdir()) == ["4", "8"]
    assert_same_run(runs / "diffusion-one", runs / "evaluated")


def test_an_error_of_one_process_ends_all(runs: Path) -> None:
    refused = json.loads((runs / "refused.json").read_text())
    assert refused["codes"] == [1, 1]
    assert "resume=true continues" in refused["said"]
    assert "the connection to this run's other processes failed" in refused["said"]
    assert "Traceback" not in refused["said"]


@pytest.mark.parametrize("meeting", ["standalone", "c10d"])
def test_torchrun_starts_a_killed_run_again_from_its_last_checkpoint(
    meeting: str, runs: Path, data: Path, tmp_path: Path
) -> None:
    """With c10d the processes meet at an address, as those of several machines do."""
    address = ["--nnodes=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=run"]
    where = ["--standalone"] if meeting == "standalone" else address
    launcher = [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node=2", "--max-restarts=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, __file__, "work", str(data), str(tmp_path / "run"), str(tmp_path / "killed")]
    subprocess.run(command, check=True, timeout=600, env=environment)
    assert (tmp_path / "killed").read_text() == str(KILLED_AT)
    assert_same_run(runs / "diffusion-one", tmp_path / "run")


def drive(data: Path, base: Path) -> None:
    """All runs but torchrun's, each in processes forked out of this one, which has everything imported."""
    import hydra  # noqa: F401
    import kinoise.train.__main__  # noqa: F401
    import torch._dynamo
    import torch.distributed.fsdp
    from kinoise.eval import evaluate as module

    torch.set_num_threads(1)
    module.evaluate = evaluate
    for policy in POLICIES:
        assert launch(1, arguments(data, base / f"{policy}-one", policy=policy)) == [0]
    for policy, name in MEMBERS:
        count, more = SPREAD[name]
        assert launch(count, arguments(data, base / f"{policy}-{name}", *more, policy=policy)) == [0] * count, name
    for before, after in HANDED_ON.items():
        out, (count, more) = base / f"{before}-then-{after}", {**SPREAD, "one": (1, [])}[after]
        shutil.copytree(base / f"diffusion-{before}", out, symlinks=True)
        shutil.rmtree(out / "checkpoints" / str(STEPS))
        assert launch(count, arguments(data, out, "resume=true", *more)) == [0] * count, out.name
    assert launch(2, arguments(data, base / "evaluated", *EVALUATED)) == [0, 0]
    stop(data, base)
    refuse(data, base)


def stop(data: Path, base: Path) -> None:
    """A run whose second process alone gets SIGTERM, in its third update, and what goes on from there."""
    from kinoise.train.loop import Trainer

    update = Trainer.update

    def interrupted(trainer: Trainer) -> None:
        if trainer.step == 2 and trainer.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        update(trainer)
        (base / f"stopped-{trainer.processes.rank}").write_text(str(trainer.step))

    Trainer.update = interrupted
    codes = launch(2, arguments(data, base / "stopped"))
    Trainer.update = update
    last = int((base / "stopped" / "checkpoints" / "last").readlink().name)
    updates = [int((base / f"stopped-{rank}").read_text()) for rank in range(2)]
    (base / "stopped.json").write_text(json.dumps({"codes": codes, "updates": updates, "last": last}))
    assert launch(1, arguments(data, base / "stopped", "resume=true")) == [0]


def refuse(data: Path, base: Path) -> None:
    """A run whose leader finds that its directory is taken."""
    with (base / "said").open("w") as said:
        codes = launch(2, arguments(data, base / "diffusion-one"), lambda: os.dup2(said.fileno(), 2))
    (base / "refused.json").write_text(json.dumps({"codes": codes, "said": (base / "said").read_text()}))


def evaluate(policy: object, env: str, *, out: Path, **_: object) -> dict[str, Any]:
    """In place of rollouts."""
    assert os.environ["RANK"] == "0"
    time.sleep(0.3)
    out.mkdir(parents=True)
    result = {"success": {"rate": 0.5, "low": 0.1, "high": 0.9}}
    (out / "result.json").write_text(json.dumps(result))
    return result


def launch(count: int, command: list[str], first: Callable[[], object] = lambda: None) -> list[int]:
    """The exit codes of `kinoise` with that command as `count` processes, which call `first`; negative after a signal."""
    port, children = free_port(), []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                if count > 1:
                    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
                    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                    os.environ.update({key: str(value) for key, value in {**where, **ranks}.items()})
                first()
                os._exit(main(command))
            finally:
                os._exit(70)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work(data: Path, out: Path, killed: Path) -> int:
    """One of torchrun's processes. The second one is killed once, between two checkpoints."""
    from kinoise.train.loop import Trainer

    update = Trainer.update

    def updated(trainer: Trainer) -> None:
        if trainer.step == KILLED_AT and trainer.processes.rank == 1 and not killed.exists():
            killed.write_text(str(trainer.step))
            os.kill(os.getpid(), signal.SIGKILL)
        update(trainer)

    Trainer.update = updated
    return main(arguments(data, out))


if __name__ == "__main__":
    places = [Path(item) for item in sys.argv[2:]]
    sys.exit({"drive": drive, "work": work}[sys.argv[1]](*places))
