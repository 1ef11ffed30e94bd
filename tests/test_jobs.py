"""What jobs/ holds can be submitted as it stands: small, without choices, and whole by whatever schema is at hand.

The cluster files are checked as far as a machine without a cluster can: spot.yaml by Ray's own schema and defaults,
rayjob.yaml against the fields of KubeRay's RayJob v1 as they are written down here, slurm.sh by running it with
stand-ins for Slurm's commands. None of them has been applied to a real cluster by a test.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

# Sets what Ray reads when it is imported.
import cedm_ray.distributed as distributed
from cedm_ray.cli import cli
from cedm_ray.config import read_config
from cedm_ray.search.space import SearchSpace

assert distributed.ENVIRONMENT

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "jobs"
PAGES = sorted(JOBS.glob("*.sh"))
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
RAY_VERSION = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]


def head(path: Path) -> str:
    """The comment that a file begins with."""
    lines = path.read_text().splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:count])


def commands(path: Path) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_every_search_space_has_its_page():
    assert [page.stem for page in PAGES] == [space.stem for space in SPACES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_one_command_without_choices_and_tells_its_promise(page):
    (command,) = commands(page)
    words = command.split()
    assert words[:5] == ["exec", "python", "-m", "cedm_ray", "search"]
    assert f"search_spaces/{page.stem}.yaml" in command
    known = {name for option in cli.commands["search"].params for name in option.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert {word for word in words if word.startswith("--")} <= {"--images", "--study"}
    for word in ("Command", "Cost:", "Expect:", f"-- bash jobs/{page.name}", "RAY_AUTH_MODE=token"):
        assert word in head(page), word
    assert subprocess.run(["bash", "-n", page], check=False).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_the_search_with_the_places_that_it_was_given(page, tmp_path):
    """The page as bash runs it, with a python that only says what it was asked."""
    echo = tmp_path / "python"
    echo.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    echo.chmod(0o755)
    plain = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": "/home/x"}
    told = subprocess.run(["bash", page], env=plain, capture_output=True, text=True, check=True).stdout.split("\n")
    assert f"/home/x/runs/{page.stem}" in told
    given = {**plain, "STUDY": "/shared/a study", "IMAGES": "/shared/my images"}
    told = subprocess.run(["bash", page], env=given, capture_output=True, text=True, check=True).stdout.split("\n")
    assert told[told.index("--study") + 1] == "/shared/a study"
    if page.stem != "digits":
        assert told[told.index("--images") + 1] == "/shared/my images"
    assert read_config(SearchSpace, ROOT / told[told.index("search") + 1]).name == page.stem


def test_what_is_uploaded_is_small_and_whole(tmp_path):
    """By Ray's own packing, which knows .gitignore and .rayignore. Its limit is 100 MiB."""
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size < 5 * 2**20
    with zipfile.ZipFile(package) as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}
    for folder in ("cedm_ray", "search_spaces", "jobs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in names
    assert {"pyproject.toml", "constraints.txt"} <= names
    assert not [name for name in names if name.split("/")[0] in (".git", ".venv", "tests", "runs", "benchmarks")]


def test_nothing_in_jobs_holds_a_secret():
    for path in JOBS.rglob("*"):
        if path.is_file():
            assert not re.search(r"(?i)(password|secret|token)\S*\s*[=:]\s*['\"]?[0-9a-f]{16,}", path.read_text()), path
    environment = yaml.safe_load((JOBS / "runtime_env.yaml").read_text())
    assert not [name for name in environment["env_vars"] if re.search("TOKEN|KEY|SECRET|PASSWORD", name)]


def test_the_runtime_environment_is_one_that_ray_takes():
    from ray.runtime_env import RuntimeEnv

    plain = yaml.safe_load((JOBS / "runtime_env.yaml").read_text())
    checked = RuntimeEnv(**plain).to_dict()
    assert checked["env_vars"] == plain["env_vars"]
    assert set(plain["pip"]["packages"]) <= set(checked["pip"]["packages"])


def test_versions_of_ray_are_one():
    assert f"rayproject/ray:{RAY_VERSION}-" in (JOBS / "cluster/Dockerfile").read_text()
    assert (
        yaml.safe_load((JOBS / "cluster/rayjob.yaml").read_text())["spec"]["rayClusterSpec"]["rayVersion"]
        == RAY_VERSION
    )


def test_the_image_copies_what_exists():
    for line in (JOBS / "cluster/Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            for name in line.split()[2:-1]:
                assert (ROOT / name).exists(), name


# ray up -------------------------------------------------------------------------------------------------------------


def test_the_launchers_file_fits_rays_schema():
    """By Ray's own check, after its own defaults for AWS have been filled in, as `ray up` does."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((JOBS / "cluster/spot.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"
    workers = prepared["available_node_types"]["spot-gpu"]
    assert workers["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in prepared["available_node_types"]["head"]["node_config"]
    # Machines come because they are listed here, and not because the search asks for them.
    assert workers["min_workers"] == workers["max_workers"] <= prepared["max_workers"]
    for kind in ("head", "worker"):
        starts = [line for line in prepared[f"{kind}_start_ray_commands"] if "ray start" in line]
        assert starts
        assert all("RAY_AUTH_MODE=token" in line for line in starts)


def test_a_wrong_key_in_the_launchers_file_would_be_found():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((JOBS / "cluster/spot.yaml").read_text())
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config({**config, "idle_timeout": 3}))


# KubeRay ------------------------------------------------------------------------------------------------------------

# Fields of RayJob v1 and of what it holds, from KubeRay's documentation; not all there are.
RAYJOB = {
    "entrypoint",
    "submissionMode",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "backoffLimit",
    "activeDeadlineSeconds",
    "runtimeEnvYAML",
    "rayClusterSpec",
    "suspend",
    "jobId",
    "metadata",
    "clusterSelector",
    "submitterPodTemplate",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
}
RAYCLUSTER = {
    "rayVersion",
    "authOptions",
    "headGroupSpec",
    "workerGroupSpecs",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headServiceAnnotations",
    "suspend",
}
WORKERS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
    "numOfHosts",
    "idleTimeoutSeconds",
    "scaleStrategy",
    "suspend",
}


def test_the_ray_job_has_the_fields_of_its_kind():
    job = yaml.safe_load((JOBS / "cluster/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert set(spec) <= RAYJOB
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    page = spec["entrypoint"].split()[-1]
    assert (ROOT / page) in PAGES
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    cluster = spec["rayClusterSpec"]
    assert set(cluster) <= RAYCLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert set(groups[0]) <= {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
    for group in groups:
        # KubeRay gives these to `ray start` as they are, and wants words.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        # Images and study lie on what every pod sees.
        for place in ("IMAGES", "STUDY"):
            assert environment[place].startswith(mounted["shared"] + "/")
    for group in groups[1:]:
        assert set(group) <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]


# Slurm --------------------------------------------------------------------------------------------------------------

STAND_INS = {
    # It says more than a pipe holds, so that a reader who leaves after the first line is found out every time.
    "scontrol": 'echo node1; [ "$SLURM_JOB_NUM_NODES" = 1 ] || seq -f node%.0f 2 20000\n',
    # The step of the head opens its port, the step of the workers only waits; both say what they were asked.
    "srun": """
echo "$@" >> "$SAID/steps"
env | grep ^RAY_ >> "$SAID/environment"
for word; do case "$word" in --port=*) port=${word#--port=} ;; esac; done
exec "$REAL_PYTHON" -c "
import socket, sys, threading
if len(sys.argv) > 1:
    listening = socket.create_server(('127.0.0.1', int(sys.argv[1])))
threading.Event().wait()" $port
""",
    # As far as the script asks it: a token, and whether the head answers, which here is on this machine.
    "python": 'args=("$@"); exec "$REAL_PYTHON" "${args[@]//node1/127.0.0.1}"\n',
}


@pytest.fixture
def slurm(tmp_path):
    """Run slurm.sh as sbatch would, with stand-ins for Slurm; whatever it started is gone at the end."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / name).chmod(0o755)
    started = []

    def start(job: str, nodes: int = 2) -> subprocess.Popen:
        (tmp_path / "job.sh").write_text(job)
        environment = {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "REAL_PYTHON": sys.executable,
            "SAID": str(tmp_path),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_PER_NODE": "4",
        }
        command = ["bash", JOBS / "cluster/slurm.sh", "job.sh"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_is_gone(process: subprocess.Popen) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_slurms_lines_are_options_of_sbatch():
    lines = re.findall(r"^#SBATCH (.*)$", (JOBS / "cluster/slurm.sh").read_text(), flags=re.MULTILINE)
    options = dict(line.removeprefix("--").partition("=")[::2] for line in lines)
    assert set(options) <= {
        "job-name",
        "nodes",
        "ntasks-per-node",
        "cpus-per-task",
        "gpus-per-node",
        "exclusive",
        "time",
        "signal",
        "output",
        "partition",
        "account",
        "mem",
    }
    assert options["ntasks-per-node"] == "1"
    assert re.fullmatch(r"B:TERM@\d+", options["signal"])
    assert re.fullmatch(r"\d+:\d\d:\d\d", options["time"])
    # sbatch reads them only before the first command.
    text = (JOBS / "cluster/slurm.sh").read_text()
    assert text.rindex("#SBATCH") < text.index("\nset -euo")


def test_slurm_starts_a_head_and_workers_with_a_token_and_ends_as_the_job_does(slurm, tmp_path):
    process = slurm('echo "address $RAY_ADDRESS"; ls -l "$RAY_AUTH_TOKEN_PATH"; exit 4\n')
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 4, out
    port = 20000 + os.getpid() % 10000
    assert f"address node1:{port}" in out
    assert "-rw-------" in out
    first, second = (tmp_path / "steps").read_text().splitlines()
    if "--address" in first:
        first, second = second, first
    assert "--nodelist=node1" in first
    assert "ray start --head --block" in first
    assert f"--port={port}" in first
    assert "--num-gpus=4" in first
    assert "--nodes=1 --ntasks=1 --exclude=node1" in second
    assert f"ray start --block --address=node1:{port}" in second
    assert (tmp_path / "environment").read_text().count("RAY_AUTH_MODE=token") == 2
    assert not list(tmp_path.glob(".ray-token-*"))
    wait_until(lambda: group_is_gone(process))


def test_slurm_hands_its_signal_on_and_waits_for_the_search(slurm, tmp_path):
    process = slurm('trap "echo saved; exit 143" TERM; echo ready; while :; do sleep 0.05; done\n', nodes=1)
    for line in process.stdout:
        if "ready" in line:
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert "saved" in out
    assert process.returncode == 143
    # One node has no workers to start.
    assert len((tmp_path / "steps").read_text().splitlines()) == 1
    wait_until(lambda: group_is_gone(process))


def wait_until(true) -> None:
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.02)
