"""Ray and the first process of a fit, started while this process still imports what will use them.

Both sides import torch, which takes seconds: one after the other they would make a command wait twice. Nothing that is
imported here needs torch.
"""

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator, Sequence

import ray

from cedm_ray import durable
from cedm_ray.distributed.session import ray_cluster
from cedm_ray.distributed.spares import Spares
from cedm_ray.lock import is_held
from cedm_ray.search.study import Study


@contextlib.contextmanager
def ray_ahead(study: Study, address: str | None, *, imports: Sequence[str]) -> Iterator[Spares | None]:
    """Inside the block, be connected to a Ray of this machine's own where the study is sure to need it; its Spares, for
    `run_study`.

    Sure is a study that has its images and not yet its bound, that no other command works on, and for which no
    cluster is named. Any other gets None, and `run_study` connects where it finds something to do. address: as
    `ray_cluster`. imports: names of modules, which are imported in another thread meanwhile.
    """
    named = address not in (None, "local") or os.environ.get("RAY_ADDRESS")
    begun = (study.images / durable.MANIFEST).exists()
    if named or ray.is_initialized() or not begun or study.bound_is_known or is_held(study.lock):
        yield None
        return
    thread = import_meanwhile(*imports)
    with ray_cluster("local"), Spares({ray.get_runtime_context().get_node_id(): 1}).kept() as spares:
        # Two threads that import the same modules can each find the other's half-done.
        thread.join()
        yield spares


def import_meanwhile(*names: str) -> threading.Thread:
    """Import modules in another thread, while this one waits for processes to start. What cannot be imported is an
    error where it is imported next."""

    def work() -> None:
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    thread = threading.Thread(target=work, name="imports", daemon=True)
    thread.start()
    return thread
