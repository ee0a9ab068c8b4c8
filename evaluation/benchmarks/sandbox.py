"""Generated programs, run apart: a process of its own without network, with little memory and time, in an empty folder.

For HumanEval, and only where `--allow-code` was said. This holds off accidents and simple mischief, not an attacker:
the process runs as the same user and can read what that user can read. Run it in a container where that matters.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.errors import TrivetError

SECONDS = 10
"""Of computing time, and of waiting."""
_MEMORY = 1 << 30
_GUARD = f"""\
import ctypes, os, resource, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x40000000) != 0:  # CLONE_NEWUSER | CLONE_NEWNET
    sys.exit(97)
for limit, value in (
    (resource.RLIMIT_CPU, {SECONDS}), (resource.RLIMIT_AS, {_MEMORY}), (resource.RLIMIT_FSIZE, 1 << 20),
    (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(limit, (value, value))
source = sys.stdin.read()
sys.stdin.close()
program = compile(source, "program", "exec")
space = {{"__name__": "program"}}
exec(program, space)
os._exit(int(sys.argv[1]))  # Only whoever comes here has passed: a program that ends itself early has not.
"""
_NO_NETWORK_SPACE = 97


def passes_tests(program: str, seconds: float = SECONDS) -> bool:
    """Whether a program runs to its end without an error.

    Args:
        program: Python source, tests included.
        seconds: to wait for it.

    Raises:
        TrivetError: this system cannot run it without network.
    """
    with tempfile.TemporaryDirectory(prefix="trivet-code-") as folder:
        passed = secrets.choice([code for code in range(3, 250) if code != _NO_NETWORK_SPACE])
        code = _run(program, Path(folder), seconds, passed)
    if code == _NO_NETWORK_SPACE:
        raise TrivetError(
            "HumanEval: this system does not let a process give up its network (user namespaces are off), so generated "
            "code is not run; run it in a container that allows them, or leave humaneval out"
        )
    return code == passed


def _run(program: str, folder: Path, seconds: float, passed: int) -> int:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, str(passed)],
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
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return process.returncode
