"""Work in parts, here, on Ray and by submitit: the same results as by one process; sweeps that survive a kill."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from kinoise.cli import main
from kinoise.envs import make
from kinoise.eval.launch import Cluster
from kinoise.eval.launch.job import Job, run_all
from kinoise.eval.launch.on_ray import termination_kept
from kinoise.policies import build_policy, choices
from kinoise.policies.checkpoint import save_policy
from kinoise.spec import Stats
from omegaconf import OmegaConf

# With two slots every plan is for one observation, so that not even the last bits depend on what else is played.
PLAYED = ["env=metaworld/reach", "episodes=3", "horizon=12", "slots=2"]
PARTS = ["shards=2", "cluster.cpus=1"]
TINY = ["policy=diffusion", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
SHORT = ["train.steps=2", "train.batch_size=4", "train.tensorboard=false"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is before its first update."""
    place, env = tmp_path_factory.mktemp("policy"), make("metaworld/reach")
    tiny = {"network": {"width": 16, "depth": 1, "heads": 2}, "observations": ["state"]}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(choices()["diffusion"]), tiny))
    sizes = {"state": env.spec.observations["state"].shape[0], "action": env.spec.action_dim}
    stats = {
        key: Stats((0.0,) * n, (1.0,) * n, (-1.0,) * n, (1.0,) * n, (-0.9,) * n, (0.9,) * n, 9) for key, n in sizes.items()
    }
    save_policy(place, build_policy(config, env.spec, stats, (env.instruction,), 0), {})
    env.close()
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data") / "reach"
    assert main(["collect", "env=metaworld/reach", "episodes=3", "workers=1", f"out={place}"]) == 0
    return place


@pytest.fixture(scope="module")
def whole(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("whole")
    assert main(["eval", str(policy), *PLAYED, "workers=1", f"out={place}"]) == 0
    return decided(place)


def decided(out: Path) -> dict[str, Any]:
    """What of a result the episodes decide."""
    result = json.loads((out / "result.json").read_text())
    cost = {key: result["decode_cost"][key] for key in ("nfe_per_plan", "cold_share")}
    timed = ("wall_s", "env_steps_per_s", "rollout", "decode_cost")
    return {key: item for key, item in result.items() if key not in timed} | cost


def tree(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in sorted(path.rglob("*")) if item.is_file()}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of Ray on this machine, for all tests of it."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with termination_kept():  # later tests of this process fork, and end their children with it
            ray.init(num_cpus=2, object_store_memory=128 * 2**20, include_dashboard=False, log_to_driver=False)
        try:
            yield ray
        finally:
            ray.shutdown()


def test_an_evaluation_in_parts_is_that_of_one_process(policy: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    command = ["eval", str(policy), *PLAYED, *PARTS, "launcher=local", f"out={tmp_path}"]
    assert main(command) == 0
    assert decided(tmp_path) == whole
    assert main(["eval", str(policy), *PLAYED, "launcher=local", "execute=99", "shards=1", f"out={tmp_path / 'none'}"]) == 1
    (tmp_path / "2-of-2/episodes.jsonl").unlink()
    assert main([*command[:-4], "cluster.cpus=1", "launcher=local", f"out={tmp_path}", "resume=true"]) == 0
    assert decided(tmp_path) == whole
    parts = json.loads((tmp_path / "result.json").read_text())["rollout"]["parts"]
    assert [item["rollout"]["resumed"] for item in parts] == [2, 0]


def test_a_collection_in_parts_is_that_of_one_process(data: Path, tmp_path: Path) -> None:
    here = ["collect", "env=metaworld/reach", "episodes=3", f"out={tmp_path / 'data'}"]
    assert main([*here, *PARTS, "launcher=local"]) == 0
    assert tree(tmp_path / "data") == tree(data)
    by_hand = [*here[:-1], "workers=1", f"out={tmp_path / 'hand'}"]
    assert main([*by_hand, "shard=2/2"]) == 0
    assert not (tmp_path / "hand").exists()
    assert main(by_hand) == 0
    assert tree(tmp_path / "hand") == tree(data)


def test_rays_results_are_the_local_ones(cluster: Any, policy: Path, whole: dict[str, Any], data: Path, tmp_path: Path) -> None:
    assert main(["eval", str(policy), *PLAYED, *PARTS, "launcher=ray", f"out={tmp_path / 'eval'}"]) == 0
    assert decided(tmp_path / "eval") == whole
    assert main(["collect", "env=metaworld/reach", "episodes=3", *PARTS, "launcher=ray", f"out={tmp_path / 'data'}"]) == 0
    assert tree(tmp_path / "data") == tree(data)


def test_a_part_whose_ray_worker_was_killed_is_played_again(
    cluster: Any, policy: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    """The worker is killed with the command that it carries out under way."""
    from kinoise.eval.launch.on_ray import OnRay

    killed: list[int] = []

    class Deadly(OnRay):
        def start(self, job: Job):
            self.job = job
            return super().start(job)

    def kill() -> None:
        """The parent of the first process that carries out the command."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if not killed and f"out={tmp_path}/1-of-1" in process.cmdline():
                    killed.append(process.ppid())
                    os.kill(killed[0], signal.SIGKILL)

    common = ("eval", f"run={policy}", *PLAYED, "workers=1", "shard=1/1", f"out={tmp_path}/1-of-1")
    with Deadly(Cluster(cpus=1)) as launcher:
        (done,) = run_all(launcher, [Job("part", common, tmp_path / "part.log", (*common, "resume=true"))], kill)
    assert (len(killed), done.tries, done.ended.code) == (1, 2, 0)
    shard = decided(tmp_path / "1-of-1")
    assert shard.pop("shard") == "1/1"
    assert shard == whole


def test_a_sweep_runs_every_combination_and_goes_on_where_it_was_killed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "train", *TINY, *SHORT, f"data={data}", f"out={tmp_path / 'sweep'}", "seed=0,1"]
    assert main([*command, "train.steps=0"]) == 2
    assert not (tmp_path / "sweep").exists()
    assert main(command) == 0
    sweep = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [(item["name"], item["state"]) for item in sweep["jobs"]] == [("seed=0", "finished"), ("seed=1", "finished")]
    losses = [item["figures"]["loss"] for item in sweep["jobs"]]
    (group,) = sweep["over_seeds"]
    assert group["seeds"] == 2
    assert group["figures"]["loss"]["mean"] == pytest.approx(sum(losses) / 2)
    assert "seed" in capsys.readouterr().out
    assert (tmp_path / "sweep/seed=0/checkpoints/last/README.md").is_file()

    # As after a kill: one job was not noted, and another setting's job is asked for besides.
    sweep["jobs"][1] |= {"state": "waiting"}
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(sweep))
    assert main(command) == 1
    assert "resume=true continues" in capsys.readouterr().err
    assert main([*command, "train.lr=0.1", "resume=true"]) == 1
    assert "fixed" in capsys.readouterr().err
    before = (tmp_path / "sweep/seed=0/train.json").stat().st_mtime_ns
    assert main(["train", "--multirun", *command[2:-1], "seed=0,1,2", "resume=true"]) == 0
    again = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [item["state"] for item in again["jobs"]] == ["finished"] * 3
    assert (tmp_path / "sweep/seed=0/train.json").stat().st_mtime_ns == before
    assert again["jobs"][1]["figures"] == sweep["jobs"][1]["figures"]


def test_a_job_that_fails_is_said_and_the_others_are_run(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = f"run={policy},{tmp_path / 'nothing'}"
    assert main(["sweep", "eval", runs, *PLAYED, f"out={tmp_path / 'sweep'}"]) == 1
    assert "no checkpoint there" in capsys.readouterr().out
    states = {item["state"]: item for item in json.loads((tmp_path / "sweep/sweep.json").read_text())["jobs"]}
    assert states["finished"]["figures"]["n"] == 3
    assert "no checkpoint there" in states["failed"]["said"]


def test_a_sweep_by_submitit(policy: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    out = tmp_path / "sweep"
    how = ["launcher=submitit", "cluster.executor=local", "cluster.cpus=1"]
    assert main(["sweep", "eval", str(policy), *PLAYED, "execute=2,3", *how, f"out={out}"]) == 0
    sweep = json.loads((out / "sweep.json").read_text())
    assert [item["state"] for item in sweep["jobs"]] == ["finished"] * 2
    assert (out / "execute=3/result.json").is_file()


def test_a_job_may_use_up_its_time_more_often_than_submitit_would_let_it(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from kinoise.eval.launch.on_submitit import REQUEUES, OnSubmitit

    launcher = OnSubmitit(Cluster(executor="local"), tmp_path)
    assert launcher._executor._executor.max_num_timeout == REQUEUES > 3


def test_what_slurm_preempts_is_queued_again_as_what_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from kinoise.eval.launch.on_submitit import Resumed

    job = Job("part", ("eval", "RUN"), tmp_path / "log", ("eval", "RUN", "resume=true"))
    queued = Resumed().checkpoint(job)
    assert queued.args[0].argv == job.again
    assert isinstance(queued.function, Resumed)
