"""Starts the ranks of `stages_of_a_rank.py` and reads what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.runtime import ROOT


def launched(processes: int, cases: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """What every case found."""
    (folder / "cases.json").write_text(json.dumps(cases))
    script = [str(Path(__file__).with_name("stages_of_a_rank.py")), str(folder), str(folder / "cases.json")]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "RANK"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *(many if processes > 1 else []), *script],
        env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    found = {each["name"]: folder / each["name"] / "found.json" for each in cases}
    missing = [name for name, path in found.items() if not path.is_file()]
    assert not missing, f"{missing}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return {name: {**json.loads(path.read_text()), "place": str(path.parent)} for name, path in found.items()}
