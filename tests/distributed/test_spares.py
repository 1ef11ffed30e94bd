"""Processes ahead of their tasks, on a real machine of Ray's: the private calls that they need are there."""

import os
import time

import grpc
import pytest

from cedm_ray.distributed import spares
from cedm_ray.distributed.spares import Spares, machine_of, processes


def until(true):
    """Ask until it is so; a busy machine may take long."""
    give_up = time.monotonic() + 120
    while not (found := true()):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    return found


def spare_pids(machine, job):
    return {pid for pid, waits in processes(machine, job).items() if waits}


def test_a_task_begins_in_a_process_that_was_started_before(cluster, monkeypatch):
    # What other tests have left waits beside it.
    monkeypatch.setattr(spares, "MOST", 100)
    context = cluster.get_runtime_context()
    node, job = context.get_node_id(), bytes.fromhex(context.get_job_id())
    machine = machine_of(node)
    wanted = len(spare_pids(machine, job)) + 1
    with Spares({node: wanted, "a machine that is gone": 3}).kept() as kept:
        until(lambda: len(spare_pids(machine, job)) >= wanted)
        kept.wanted = {}
    waiting = spare_pids(machine, job)

    @cluster.remote(num_cpus=0)
    class Task:
        def pid(self):
            return os.getpid()

    # Ray itself has started some for whichever job comes; they are given away before a new one is started.
    tasks = [Task.remote() for _ in range(5)]
    taken = set(cluster.get([task.pid.remote() for task in tasks]))
    assert taken & waiting
    assert not taken & spare_pids(machine, job)
    for task in tasks:
        cluster.kill(task)


def test_no_more_are_started_than_are_missing(cluster, monkeypatch):
    started = []
    # One of them has a task.
    monkeypatch.setattr(spares, "processes", lambda machine, job: {1: True, 2: True, 3: True, 4: False})
    monkeypatch.setattr(spares, "_start", lambda machine, job, environment, count: started.append(count))
    node = cluster.get_runtime_context().get_node_id()
    for count in (2, 3, 5, 99):
        with Spares({node: count}).kept():
            pass
    assert started == [2, spares.MOST - 3]


def test_one_that_has_not_arrived_yet_is_not_started_twice(cluster, monkeypatch):
    # What the machine tells, look by look: the first two processes arrive late, and one of them is given a task.
    told = [{}, {}, {1: True}, {1: False, 2: True}, {1: False, 2: False}, {1: False, 2: False}]
    started, looks = [], []

    def look(machine, job):
        looks.append(len(looks))
        return told[min(looks[-1], len(told) - 1)]

    monkeypatch.setattr(spares, "processes", look)
    monkeypatch.setattr(spares, "_start", lambda machine, job, environment, count: started.append(count))
    monkeypatch.setattr(spares, "_LOOK_S", 0.01)
    monkeypatch.setattr(spares, "_START_S", 1e9)
    with Spares({cluster.get_runtime_context().get_node_id(): 2}).kept():
        until(lambda: len(looks) > len(told) + 2)
    assert started == [2, 1, 1]


def test_one_that_never_arrives_is_given_up(cluster, monkeypatch):
    started = []
    monkeypatch.setattr(spares, "processes", lambda machine, job: {})
    monkeypatch.setattr(spares, "_start", lambda machine, job, environment, count: started.append(count))
    monkeypatch.setattr(spares, "_LOOK_S", 0.01)
    monkeypatch.setattr(spares, "_START_S", 0.0)
    with Spares({cluster.get_runtime_context().get_node_id(): 1}).kept():
        until(lambda: len(started) > 2)
    assert set(started) == {1}


def test_a_machine_that_does_not_answer_is_no_error(cluster, monkeypatch):
    asked = []

    def refused(machine, job):
        asked.append(job)
        raise grpc.RpcError

    monkeypatch.setattr(spares, "processes", refused)
    with Spares({cluster.get_runtime_context().get_node_id(): 1}).kept():
        until(lambda: asked)


def test_a_machine_that_is_gone_is_told_apart(cluster):
    with pytest.raises(LookupError):
        machine_of("0" * 56)
