"""Freed memory: whether it is really kept, counted by the system's page faults."""

import platform
import resource
import subprocess
import sys

# Rounds of four blocks of 16 MiB, taken as PyTorch takes a tensor's memory, written, and given back together: more than
# glibc keeps unless it is told to. In processes of their own, because what is told to the C library stays. The first
# rounds are not counted: the heap grows in them until every block has its place.
PROGRAM = """
import ctypes, resource, sys
from cedm_ray.allocator import keep_freed_memory
known = keep_freed_memory() if sys.argv[1] == "kept" else None
libc = ctypes.CDLL(None)
def rounds(count):
    for _ in range(count):
        blocks = [ctypes.c_void_p() for _ in range(4)]
        for block in blocks:
            assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(2**24)) == 0
            ctypes.memset(block, 1, 2**24)
        for block in blocks:
            libc.free(block)
rounds(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(10)
print(known, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 4 * 2**24 // resource.getpagesize()


def run(how: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM, how], capture_output=True, check=True)
    known, faults = done.stdout.decode().split()
    return known, int(faults)


def test_freed_memory_is_used_again_without_page_faults():
    known, faults = run("kept")
    if platform.libc_ver()[0] == "glibc":
        assert known == "True"
        assert run("plain")[1] > 0.5 * PAGES
        # Not none: a system that is short of memory takes pages that were not used for a while.
        assert faults < 0.1 * PAGES
    else:
        assert known == "False"
