"""Rows that a stage leaves of its measurements, rewound to a checkpoint."""

from __future__ import annotations

import json

from pipeline.stages.held_out_rows import rewind_rows


def test_rewinding_keeps_every_row_up_to_the_checkpoint(tmp_path):
    """Whatever the answers in them hold; a torn last line goes."""
    path = tmp_path / "rollouts.jsonl"
    rows = [{"rollout": rollout, "answer": f"a\u2028b\u0085{rollout} é"} for rollout in (1, 1, 2, 3)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    torn = '{"rollout": 3, "answer": "é'.encode()[:-1]
    path.write_bytes("".join(lines).encode() + torn)
    rewind_rows(path, "rollout", 2)
    assert path.read_text(encoding="utf-8") == "".join(lines[:3])
    rewind_rows(path, "rollout", -1)
    assert path.read_text(encoding="utf-8") == ""


def test_no_file_is_left_so(tmp_path):
    rewind_rows(tmp_path / "none.jsonl", "step", 4)
    assert not (tmp_path / "none.jsonl").exists()
