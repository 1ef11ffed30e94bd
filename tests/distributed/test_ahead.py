"""Ray ahead of the imports: only where a study is sure to need it, and without what takes long to import."""

import subprocess
import sys

import pytest

from cedm_ray import durable
from cedm_ray.distributed import ahead
from cedm_ray.distributed.ahead import import_meanwhile, ray_ahead
from cedm_ray.lock import exclusive_lock
from cedm_ray.search.study import Study

STARTS = """
import sys
from pathlib import Path
from cedm_ray.distributed.ahead import ray_ahead
from cedm_ray.search.study import Study
import ray
assert "torch" not in sys.modules
with ray_ahead(Study(Path(sys.argv[1])), None, imports=("cedm_ray.distributed.run",)) as spares:
    assert "cedm_ray.distributed.run" in sys.modules
    assert ray.is_initialized()
    assert spares.wanted == {ray.get_runtime_context().get_node_id(): 1}
assert not ray.is_initialized()
"""


@pytest.fixture
def begun(tmp_path) -> Study:
    """A study that has its images and nothing else."""
    study = Study(tmp_path / "study")
    durable.write_record(study.images / durable.MANIFEST, {})
    return study


@pytest.fixture
def refused(monkeypatch):
    """As if the tests' own cluster were not there, and none may be started."""

    def started(address):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(ahead, "ray_cluster", started)
    monkeypatch.setattr(ahead, "import_meanwhile", lambda *names: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def nothing_is_started(study, address=None):
    with ray_ahead(study, address, imports=()) as spares:
        return spares is None


@pytest.mark.usefixtures("refused")
def test_a_study_that_may_not_need_ray_does_not_start_it(begun, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match="was started"):
        nothing_is_started(begun)
    assert nothing_is_started(Study(tmp_path / "without images"))
    assert nothing_is_started(begun, "10.0.0.1:6379")
    with exclusive_lock(begun.lock):
        assert nothing_is_started(begun)
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "auto")
        assert nothing_is_started(begun)
    with pytest.raises(AssertionError, match="was started"):
        nothing_is_started(begun)
    begun.write_bound({})
    assert nothing_is_started(begun)


def test_a_connection_that_is_there_is_left_alone(cluster, begun):
    assert nothing_is_started(begun)
    assert cluster.is_initialized()


def test_ray_and_the_imports_are_there_in_the_block_and_nothing_runs_after_it(begun):
    ended = subprocess.run([sys.executable, "-c", STARTS, str(begun.path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_module_that_cannot_be_imported_keeps_no_other_from_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    import_meanwhile("cedm_ray.there_is_no_such_room", "colorsys").join()
    assert "colorsys" in sys.modules
