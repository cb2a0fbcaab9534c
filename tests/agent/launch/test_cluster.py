"""The same work on a Ray cluster of this machine, whose workers and nodes die."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.agree import AgreeConfig, agree
from agent.build import PolicyConfig
from agent.collect import CollectConfig, collect
from agent.collection.imagining import Keep
from agent.evaluate import EvaluateConfig, evaluate
from agent.evaluation import agreement
from agent.generate import GenerateConfig, generate
from agent.launch import processes
from agent.launch.command import RunError
from envs.data.store import EpisodeStore
from tests.mortal import Mortal, Stuck, Waiting, started

ROOT = Path(__file__).parents[3]
TIMES = ("decision_seconds", "dream_seconds", "simulator_seconds")  # of the clock, so never equal


@pytest.fixture(scope="module")
def ray():
    """Ray, connected to nothing; what a test connects to ends with the module."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray, which `dev` leaves out for its 70 MB: pip install -c constraints.txt ray")
    from agent.launch import cluster

    yield cluster.ray
    cluster.ray.shutdown()


def test_a_killed_worker_has_its_seeds_done_again(ray, tmp_path):
    """Catches seeds that are lost with a worker, and those that it had already done that come twice."""
    job = Mortal(tmp_path / "log", "killed")
    assert sorted(processes.run(job, range(16), 2, "ray")) == [2 * seed for seed in range(16)]
    assert [started(job.log).count(seed) for seed in (2, 3)] == [2, 2], "the task of seeds 2 and 3 ran twice"
    assert len(started(job.log)) == 18, "and no other"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("known", "^seed 3 is wrong$"),
        ("unknown", "ZeroDivisionError: a bug"),
        ("skip", "16 seeds gave 15 results: a job must give one for each"),
        ("unsendable", "(?s)a worker failed:.*[Pp]ickle"),
        ("killed", "lost its worker or its node more than 3 times.*[Rr]un the same command again"),
    ],
)
def test_a_worker_that_gives_no_result(ray, tmp_path, what, message):
    """Catches a command that waits for ever for a seed that cannot be done, and one that tries a bug again."""
    job = Mortal(tmp_path / "log", what, once=False)
    with pytest.raises(RunError, match=message):
        list(processes.run(job, range(16), 1, "ray"))
    assert started(job.log).count(3) == (4 if what == "killed" else 1)


def test_two_workers_are_faster_than_one(ray):
    """Catches tasks that wait for each other, and a last worker for which the others wait long."""
    took = {}
    list(processes.run(Waiting(0.0), range(4), 2, "ray"))  # both workers have started
    for workers in (1, 2):
        began = time.monotonic()
        list(processes.run(Waiting(0.25), range(32), workers, "ray"))
        took[workers] = time.monotonic() - began
    assert took[1] / took[2] > 1.6, took


@pytest.fixture
def runs(reach, over_the_table, untrained, tmp_path, monkeypatch):
    """What each command does: name -> what runs it with a launcher, a number of workers and a folder.

    Of one robot each: the last bit of what a model computes depends on how many robots it computes for at once, and
    with several that depends on who is done first, for either launcher.
    """
    monkeypatch.setattr(agreement, "RESAMPLES", 20)
    reach, table = (replace(env, id=f"tests.reach:{env.id}") for env in (reach, over_the_table))
    random, noisy = PolicyConfig(name="random", execute=8), {"noise": 0.3}
    collected = CollectConfig(env=reach, policy=PolicyConfig(name="perturbed"), seed=5, episodes=5, out="", workers=0)
    model = PolicyConfig(name="model", execute=8, checkpoint=str(untrained), device="cpu")
    evaluated = EvaluateConfig(env=table, policy=model, seed=5, episodes=5, out="", workers=0, keep=True)
    dreamt = GenerateConfig(
        env=replace(table, expert="tests.reach:Ahead", max_steps=16), policy=replace(random, disturb=noisy),
        imagines=str(untrained), keep=Keep(success=False), verify="simulator", seed=7, episodes=5, out="", workers=0,
    )  # fmt: skip
    agreed = AgreeConfig(
        env=table, policies={"random": random, "noisy": replace(random, disturb=noisy)}, checkpoint=str(untrained),
        seed=3, episodes=3, out="", workers=0, robots=1,
    )  # fmt: skip
    return {
        "collect": lambda **new: collect(replace(collected, **new)),
        "evaluate": lambda **new: evaluate(replace(evaluated, **new), "c"),
        "generate": lambda **new: generate(replace(dreamt, **new), "c"),
        "agree": lambda **new: agree(replace(agreed, **new), "c"),
    }


def written(folder: Path) -> dict[str, object]:
    """Episodes by their bytes, and what logs say beside the clock's times and the order in which seeds were done."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npz")}
    for path in folder.rglob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
        found[str(path.relative_to(folder))] = sorted(json.dumps(line) for line in kept)
    return found


@pytest.mark.parametrize("command", ["collect", "evaluate", "generate", "agree"])
def test_results_are_those_of_the_local_launcher(ray, runs, tmp_path, command):
    """Catches episodes and outcomes that depend on who makes them, and what a worker writes where nobody looks."""
    runs[command](out=str(tmp_path / "local"))
    runs[command](out=str(tmp_path / "ray"), workers=2, launcher="ray")
    here, there = written(tmp_path / "local"), written(tmp_path / "ray")
    assert here.keys() == there.keys() and len([name for name in here if name.endswith(".npz")]) >= 5
    assert [name for name in here if here[name] != there[name]] == []


KILLED = """
import os, signal
from pathlib import Path
from tests.reach import Ahead

class Killed(Ahead):
    def init(self, instruction, seed=0):
        marker = Path(__file__).with_name("marker")
        if seed == 6 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_command_whose_worker_is_killed(ray, tmp_path):
    """Catches a command, started as a user does, whose classes, folder or plug-in its workers do not find, and one that
    a dead worker ends or leaves an episode out of."""
    (tmp_path / "killed.py").write_text(KILLED)
    settings = [
        "env=plugin", "env.id=tests.reach:nextstate-test/Reach-v0", "env.name=reach", "env.instruction=null",
        "policy=plugin", "policy.target=killed:Killed", "seed=4", "episodes=8", "split=seen", "robots=2",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = f"{ROOT}:{tmp_path}"
    for place in (["out=killed", "workers=2", "launcher=ray"], ["out=local", "workers=1"]):
        command = [sys.executable, "-m", "agent.collect", *settings, *place]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "marker").exists() and len(EpisodeStore(tmp_path / "killed")) == 8
    assert written(tmp_path / "killed") == written(tmp_path / "local")


def test_a_node_that_dies_has_its_seeds_done_again(ray, tmp_path):
    """Catches a command that waits for the seeds of a machine that is gone, or goes on without them."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        dies = nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        ray.init(address=nodes.address)
        job = Stuck(tmp_path / "log", dies.node_id)
        results = processes.run(job, range(8), 2, "ray")
        first = next(results)
        nodes.remove_node(dies, allow_graceful=False)
        assert sorted([first, *results]) == [2 * seed for seed in range(8)]
    finally:
        ray.shutdown()
        nodes.shutdown()


def test_a_cluster_that_does_not_answer(ray, monkeypatch):
    """Catches a command that says nothing for twelve minutes where the cluster's address is wrong."""
    ray.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free}")
    with pytest.raises(RunError, match=f"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:{free} "):
        processes.default_workers("ray")


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    """Catches a traceback, or the local launcher without a word, where Ray is not installed."""
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not there
    monkeypatch.delitem(sys.modules, "agent.launch.cluster", raising=False)
    monkeypatch.delattr("agent.launch.cluster", raising=False)
    said = r"^launcher=ray needs Ray: pip install 'nextstate\[ray\]'$"
    with pytest.raises(RunError, match=said):
        list(processes.run(Mortal(tmp_path / "log"), [1], 1, "ray"))
    with pytest.raises(RunError, match=said):
        processes.default_workers("ray")
