"""A search as a Ray job, on a real head with token authentication: submitted, stopped, submitted again.

Everything that the head starts carries a mark of its own in its environment, by which it is found and ended, whatever
happened: neither another Ray on this machine nor its files are touched.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from cedm_ray import durable
from cedm_ray.lock import is_held
from cedm_ray.search.study import Study

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).parent / "ray"
MARK = "CEDM_RAY_TEST_MARK"
# On a machine that many share a job of ten seconds may take minutes; what is asked is asked again and again until then.
PATIENCE_S = 600

# Ray gives up a head that has not started within 30 seconds of its clock, and this machine may be busier than that.
PATIENT_RAY = """
import sys, time, types
import ray._private.node as node
clock = {name: getattr(time, name) for name in dir(time)} | {"monotonic": lambda: time.monotonic() / 40}
node.time = types.SimpleNamespace(**clock)
from ray.scripts.scripts import main
sys.exit(main())
"""

SPACE = {
    "name": "submission",
    "images": {"source": None},
    "clustering": {
        "num_heads": 2,
        "hidden": 32,
        "bottleneck": 16,
        "num_neighbors": 10,
        "batch_size": 256,
        "epochs": 10,
        "warmup_epochs": 1,
        "learning_rate": 1e-3,
        "feature_norm": "standardize",
    },
    "bound": {"c_start": 4, "c_limit": 16},
    "candidates": {"count": 2},
    "rungs": {"rungs_kimg": [1, 2], "reduction_factor": 2},
    "network": {"model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attention_resolutions": [], "dropout": 0},
    "augmentation": {"probability": 0},
    "training": {"batch_size": 50, "learning_rate": 2e-3, "lr_rampup_kimg": 0.2, "ema_halflife_kimg": 0.2},
    "sampling": {"num_steps": 4},
    "evaluation": {"detector": "pixels", "num_samples": 64},
}


class Head:
    """A Ray head of its own: ports, token, folder."""

    def __init__(self) -> None:
        # Ray's sockets need a short path, which pytest's own is not.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.mark = secrets.token_hex(8)
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.port, self.dashboard, client, agent, metrics = free_ports(5)
        known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = {
            **known,
            MARK: self.mark,
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(PATIENCE_S),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_agent_register_timeout_ms": str(PATIENCE_S * 1000),
            "RAY_worker_register_timeout_seconds": str(PATIENCE_S),
            "RAY_health_check_failure_threshold": "100",
        }
        options = {
            "port": self.port,
            "node-ip-address": "127.0.0.1",
            "dashboard-host": "127.0.0.1",
            "dashboard-port": self.dashboard,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": agent,
            "metrics-export-port": metrics,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": 2,
            "num-gpus": 0,
            "object-store-memory": 100_000_000,
            "temp-dir": self.folder / "ray",
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-c", PATIENT_RAY, "start", "--head", "--block", *given]
        self.log = self.folder / "head.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def answers(self) -> bool:
        # Its dashboard may answer before the head has given itself up.
        if "Ray runtime started" not in self.log.read_text():
            return False
        try:
            return self.ask("jobs/") is not None
        except OSError:
            return False

    def ray(self, *arguments: str, environment: dict | None = None) -> subprocess.CompletedProcess:
        """The `ray` command as a user gives it in the project's folder."""
        return subprocess.run(
            [RAY, *map(str, arguments)],
            env={**self.environment, **(environment or {})},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def submit(self, name: str, job: str, **variables: object) -> None:
        given = json.dumps({"env_vars": {key: str(value) for key, value in variables.items()}})
        how = ["--no-wait", "--submission-id", name, "--runtime-env-json", given]

        def submitted() -> bool:
            told = self.ray("job", "submit", *how, "--working-dir", ".", "--", "bash", job)
            # A head that answers may still wait for its own agent.
            assert told.returncode == 0 or "No available agent" in told.stderr, told.stderr
            return told.returncode == 0

        until(submitted, "the head found no agent to run a job")

    def status(self, name: str) -> str:
        """SUCCEEDED, FAILED, STOPPED, RUNNING or PENDING, asked as `ray job status` asks, without its seconds."""
        return self.ask(f"jobs/{name}")["status"]

    def logs(self, name: str) -> str:
        return self.ask(f"jobs/{name}/logs")["logs"]

    def ask(self, what: str) -> dict:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        address = f"http://127.0.0.1:{self.dashboard}/api/{what}"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def processes(self, word: str = "") -> list[str]:
        """The command lines of all that this head and its jobs have running, with `word` in them."""
        return [line for _, line in self._found() if word in line]

    def _found(self) -> list[tuple[int, str]]:
        found = []
        for folder in Path("/proc").iterdir():
            # A process may end while it is looked at, and those of other users cannot be.
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append((int(folder.name), line))
        return found

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        # Whatever is left, and whatever that has started meanwhile.
        while left := self._found():
            for process, _ in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until(true, what: str, every_s: float = 0.2):
    """Ask until it is so; what it was then."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < give_up, what
        time.sleep(every_s)
    return found


@pytest.fixture(scope="module")
def head():
    head = Head()
    try:
        until(lambda: head.answers() or head.process.poll() is not None, "the head did not answer")
        assert head.process.poll() is None, head.log.read_text()
        yield head
    finally:
        head.end()


@pytest.fixture
def space(tmp_path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return path


def acknowledged(study: Study) -> dict[str, bytes]:
    found = [*study.path.glob("fits/*"), *study.path.glob("trials/*/reports/*"), *study.path.glob("decisions/*")]
    return {str(path): path.read_bytes() for path in found if not durable.is_temporary(path)}


def test_a_stopped_job_goes_on_where_it_stopped_when_it_is_submitted_again(head, space, tmp_path):
    study = Study(tmp_path / "study")
    # Ray gives a job three seconds to end before it kills it, unless it is told to wait.
    given = {"SPACE": space, "IMAGES": "sklearn:digits", "STUDY": study.path, "RAY_JOB_STOP_WAIT_TIME_S": PATIENCE_S}
    head.submit("first", "jobs/new_dataset.sh", **given)
    until(
        lambda: study.decisions() or head.status("first") in ("FAILED", "SUCCEEDED"),
        "the job came to no decision",
    )
    assert head.status("first") == "RUNNING", head.logs("first")
    stopped = head.ray("job", "stop", "first")
    assert stopped.returncode == 0, stopped.stderr
    assert head.status("first") == "STOPPED"
    # Fault 21: the study is free and none of ours is left.
    until(lambda: not is_held(study.lock), "the driver still holds the study")
    until(lambda: not head.processes("cedm_ray search"), "the driver is still there")
    until(lambda: not head.processes("StudyTask"), "a task is still there")
    # Fault 2: it has ended by itself, and says how.
    assert study.read_exit()["code"] == 128 + signal.SIGTERM, (study.read_exit(), head.logs("first"))
    kept = acknowledged(study)
    assert not (study.path / "result.json").exists()

    head.submit("second", "jobs/new_dataset.sh", **given)
    until(lambda: head.status("second") in ("SUCCEEDED", "FAILED"), "the job did not end")
    assert head.status("second") == "SUCCEEDED", head.logs("second")
    assert study.read_exit() == {"code": 0, "text": "done"}
    assert {path: Path(path).read_bytes() for path in kept} == kept
    assert durable.read_record(study.path / "result.json")["best"] is not None
    assert "C_V = " in head.logs("second")
    assert not head.processes("cedm_ray search")


def test_exit_json_tells_what_ray_flattens(head, space, tmp_path):
    study = Study(tmp_path / "study")
    head.submit("broken", "jobs/new_dataset.sh", SPACE=space, IMAGES=tmp_path / "nothing", STUDY=study.path)
    until(lambda: head.status("broken") in ("SUCCEEDED", "FAILED"), "the job did not end")
    assert head.status("broken") == "FAILED"
    assert study.read_exit()["code"] == 3
    assert str(tmp_path / "nothing") in head.logs("broken")


def test_without_the_token_nobody_gets_in(head, tmp_path):
    other = tmp_path / "token"
    other.write_text(secrets.token_hex(32))
    for environment in ({"RAY_AUTH_TOKEN_PATH": str(other)}, {"RAY_AUTH_MODE": "disabled"}):
        refused = head.ray("job", "list", environment=environment)
        assert refused.returncode != 0
        assert "401" in refused.stderr + refused.stdout or "token" in (refused.stderr + refused.stdout).lower()
