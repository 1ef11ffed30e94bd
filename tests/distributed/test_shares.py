"""One, two and three workers give the sums that one process gives."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from cedm_ray.distributed.shares import cluster_runner
from cedm_ray.errors import InputDataError
from cedm_ray.evaluation.gathering import FileImages, Keep, Network, Work, gather, run_here
from cedm_ray.search.results import Progress


@pytest.fixture
def work(tmp_path, color_network):
    pixels = np.random.default_rng(0).integers(0, 256, (260, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    return Work(
        task="samples",
        subject=FileImages(path=str(tmp_path / "images.npz"), batch_size=16),
        num_sets=2,
        num_images=130,
        networks=(Network(spec=str(color_network)),),
        keeps=(Keep(statistics=True, blocks=True, rows=20),),
        fitted_on=None,
        image_size=8,
        pixel_components=1,
    )


def test_the_number_of_workers_changes_nothing(cluster, work, shown):
    alone = gather(work, run_here, lambda event: None)
    for workers in (1, 2, 3):
        with cluster_runner(None, workers=workers) as run:
            found = gather(work, run, shown.append)
        for (one,), (other,) in zip(found, alone, strict=True):
            np.testing.assert_allclose(one.statistics.outer, other.statistics.outer, rtol=1e-12)
            np.testing.assert_allclose(one.statistics.sum, other.statistics.sum, rtol=1e-12)
            assert one.statistics.count == 130
            assert [block.count for block in one.blocks] == [21] * 6
            np.testing.assert_array_equal(one.rows, other.rows)
    assert shown[-1] == Progress(task="samples", done=260, total=260, unit="images", ended=True)


def test_a_lost_worker_is_started_again_and_its_unit_done_again(cluster, work):
    class DyingOnce(FileImages):
        """Images of a file whose reader's process dies when they are first read."""

        def batches(self, positions, opened):
            note = Path(f"{self.path}.died")
            if not note.exists():
                note.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().batches(positions, opened)

    alone = gather(work, run_here, lambda event: None)
    subject = DyingOnce(path=work.subject.path, batch_size=work.subject.batch_size)
    with cluster_runner(None, workers=2) as run:
        found = gather(dataclasses.replace(work, subject=subject), run, lambda event: None)
    assert Path(f"{work.subject.path}.died").exists()
    for (one,), (other,) in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.statistics.outer, other.statistics.outer, rtol=1e-12)


def test_an_error_of_ours_arrives_as_itself(cluster, work, tmp_path):
    (tmp_path / "images.npz").unlink()
    with cluster_runner(None, workers=1) as run, pytest.raises(InputDataError, match="there is no file"):
        gather(work, run, lambda event: None)
