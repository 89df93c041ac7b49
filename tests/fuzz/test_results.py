"""Results files: any JSON and changed real results, printed as every table, and read for publishing."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import as_json, fuzz, junk, mutated, rewritten, survives
from tests.helpers import results as made

ROOT = Path(__file__).parent.parent.parent
REPORT = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "report.py")))
PUBLISH = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "publish.py")))
COMPLETE = made.complete()
WHOLE = json.dumps(COMPLETE).encode()
WEIGHTS = ROOT / "gandefense" / "weights" / "cifar10" / "trn.safetensors"
CONTENTS = st.one_of(rewritten(COMPLETE).map(as_json), mutated(WHOLE), junk.map(as_json), st.binary(max_size=50))


@fuzz
@given(content=CONTENTS, table=st.sampled_from(sorted(REPORT.TABLES)))
def test_results_are_printed_or_refused(place: Path, content: bytes, table: str) -> None:
    (place / "results.json").write_bytes(content)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        survives(lambda: REPORT.main([str(place / "results.json"), f"table={table}"]))


@fuzz
@given(content=CONTENTS)
def test_results_are_published_or_refused(place: Path, content: bytes) -> None:
    (place / "results.json").write_bytes(content)
    survives(lambda: PUBLISH.read_results(str(place / "results.json"), "cifar10/trn", WEIGHTS))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 10_000, b'{"schema": 1}', b"\xff\xfe", b"null"])
def test_json_made_to_hurt_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    for table in REPORT.TABLES:
        assert survives(lambda table=table: REPORT.main([str(tmp_path), f"table={table}"]) or "printed") is None
