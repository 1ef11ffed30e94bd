"""Freed memory: whether it is really kept, counted by the system's page faults."""

import platform
import subprocess
import sys

# Four blocks of 16 MiB, taken and given back together: more than glibc keeps unless it is told to. In processes of
# their own, because what is told to the C library stays.
PROGRAM = """
import resource, sys, torch
from cedm_ray.allocator import keep_freed_memory
known = keep_freed_memory() if sys.argv[1] == "kept" else None
def rounds(count):
    for _ in range(count):
        blocks = [torch.empty(2**22).fill_(1.0) for _ in range(4)]
rounds(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(10)
print(known, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 4 * 2**24 // 4096


def run(how: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM, how], capture_output=True, check=True)
    known, faults = done.stdout.decode().split()
    return known, int(faults)


def test_freed_memory_is_used_again_without_page_faults():
    _, plain = run("plain")
    known, kept = run("kept")
    if platform.libc_ver()[0] == "glibc":
        # Without being told, glibc gives back and takes anew most of what the rounds use.
        assert known == "True"
        # Not none: a system that is short of memory takes pages that were not used for a while.
        assert kept < min(PAGES, plain) / 2
    else:
        assert known == "False"
