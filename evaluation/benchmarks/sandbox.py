"""Generated programs, run apart: a process of its own without network, with little memory and time, in an empty folder.

For HumanEval, and only where `--allow-code` was said. The process writes nowhere but in its folder where the kernel has
Landlock (Linux 5.13). Root, as whom containers mostly run, becomes nobody where nobody can read Python; where not, it
must have Landlock. This holds off accidents and simple mischief, not an attacker: what the user can read, the process
can read. Run it in a container where that matters.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.errors import TrivetError

SECONDS = 10
"""Of computing time, and of waiting."""
_MEMORY = 1 << 30
_NOBODY = 65534
"""User and group that own no files, on every Linux."""
_GUARD = f"""\
import ctypes, os, resource, struct, sys
passed, no_space, stays_root, to_nobody = map(int, sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)
apart, root = False, os.geteuid() == 0
if to_nobody:
    apart = libc.unshare(0x40000000) == 0  # CLONE_NEWNET: root of a machine may, root of a container mostly not
    try:
        os.setgroups([])
        os.setresgid({_NOBODY}, {_NOBODY}, {_NOBODY})
        os.setresuid({_NOBODY}, {_NOBODY}, {_NOBODY})
        root = False
    except OSError:
        apart = False
if not apart and libc.unshare(0x10000000 | 0x40000000) != 0:  # CLONE_NEWUSER | CLONE_NEWNET
    os._exit(no_space)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: no way back through a program that runs as root

def fenced():  # Landlock: landlock_create_ruleset, landlock_add_rule, landlock_restrict_self
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    changes = 0x1FF2 | (0x2000 if version > 1 else 0) | (0x4000 if version > 2 else 0)
    handled = (ctypes.c_uint64 * 3)(changes, 0, 3 if version > 5 else 0)  # the last: signals, abstract sockets
    rules = libc.syscall(444, handled, 24 if version > 5 else 8, 0)
    for path, allowed in ((".", changes), (os.devnull, 2)):
        place = os.open(path, os.O_PATH)
        libc.syscall(445, rules, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    return libc.syscall(446, rules, 0) == 0

if not fenced() and root:
    os._exit(stays_root)
for limit, value in (
    (resource.RLIMIT_CPU, {SECONDS}), (resource.RLIMIT_AS, {_MEMORY}), (resource.RLIMIT_FSIZE, 1 << 20),
    (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(limit, (value, value))
source = sys.stdin.read()
sys.stdin.close()
program = compile(source, "program", "exec")
del sys.argv[1:]
exec(program, {{"__name__": "program"}})
os._exit(passed)  # Only whoever comes here has passed: a program that ends itself early has not.
"""
_WHY = (
    "this system does not let a process give up its network (user namespaces are off), so generated code is not run; "
    "run it in a container that allows them",
    "generated code is not run as root where it could write everywhere: this kernel has no Landlock, and nobody cannot "
    "read Python here, or root not become nobody; run it as a user of your own",
)


def passes_tests(program: str, seconds: float = SECONDS) -> bool:
    """Whether a program runs to its end without an error.

    Args:
        program: Python source, tests included.
        seconds: to wait for it.

    Raises:
        TrivetError: this system cannot run it without network, or not without root's rights.
    """
    to_nobody = os.geteuid() == 0 and _everybody_reads(Path(os.__file__).resolve())
    # Drawn anew each time, so that no program ends itself with one of them.
    codes = random.SystemRandom().sample(range(3, 125), 1 + len(_WHY))
    with tempfile.TemporaryDirectory(prefix="trivet-code-") as folder:
        if to_nobody:
            os.chown(folder, _NOBODY, _NOBODY)
        code = _run(program, Path(folder), seconds, [*codes, int(to_nobody)])
    passed, *unable = codes
    if code in unable:
        raise TrivetError(f"HumanEval: {_WHY[unable.index(code)]}, or leave humaneval out")
    return code == passed


def _everybody_reads(file: Path) -> bool:
    """Whether every user may read a file: the programs' own imports come from Python's library."""
    return bool(file.stat().st_mode & 0o004) and all(folder.stat().st_mode & 0o001 for folder in file.parents)


def _run(program: str, folder: Path, seconds: float, arguments: list[int]) -> int:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, *map(str, arguments)],
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    try:
        process.communicate(program, timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    with suppress(ProcessLookupError):
        # What it left running, where it could: the bound on processes is none for root.
        os.killpg(process.pid, signal.SIGKILL)
    return process.returncode
