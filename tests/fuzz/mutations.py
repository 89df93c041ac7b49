"""How hostile input is made out of real files, and what every reader of it must keep to."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gandefense.errors import CONTROL, LONGEST, UserError

QUICK = 40  # cases of a target in the ordinary suite; GANDEFENSE_FUZZ=2000 asks for more
CASES = int(os.environ.get("GANDEFENSE_FUZZ", QUICK))
SECONDS = 20  # no case may take longer, on the slowest machine
MOST_MEMORY = 2**30  # bytes by which a whole target may raise the process' peak

fuzz = settings(
    max_examples=CASES,
    deadline=None,  # `survives` ends a case that hangs, which a deadline would only find out afterwards
    derandomize=CASES == QUICK,  # the ordinary suite does the same every time
    database=None,
    suppress_health_check=list(HealthCheck),
)


class HangError(BaseException):
    """A case took too long; no `except Exception` of a reader may take it for an error of the file."""


@contextmanager
def time_limit(seconds: int = SECONDS) -> Iterator[None]:
    """End what takes too long with a HangError."""

    def ring(*_: object) -> None:
        raise HangError(f"a case took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def survives(work: Callable[[], Any], refusal: type[Exception] = UserError) -> Any:
    """What `work` returns, or None where it refuses its input in one clear line; anything else it raises is a failure."""
    with time_limit():
        try:
            return work()
        except refusal as error:
            text = str(error)
    assert text and not CONTROL.search(text) and len(text) <= LONGEST, repr(text)
    assert "Traceback" not in text and "weights_only" not in text
    return None


def _memory(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"no {field} in /proc/self/status")
    return int(found[1]) * 1024


@contextmanager
def memory_limit(most: int) -> Iterator[None]:
    """Fail where this process' memory rises by more than `most` bytes at its peak; one inside another starts it anew.

    The peak is that of the time in between, not of the process' life, so that earlier tests cannot hide what this one needs.
    Where the system does not tell it (only Linux does), what is inside runs all the same, and the test is then skipped.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew, proc(5)
        before = _memory("VmRSS")
        _memory("VmHWM")
    except OSError:
        before = None
    yield
    if before is None:
        pytest.skip("the peak of a process' memory is read from /proc")
    risen = _memory("VmHWM") - before
    assert risen < most, f"the memory rose by {risen / 2**20:.0f} MiB"


EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**62, 2**64 - 1]
SIZES = ((4, "big"), (4, "little"), (8, "little"))
EDGE_BYTES = [value.to_bytes(size, order) for value in EDGES for size, order in SIZES if value < 256**size]


@st.composite
def mutated(draw: st.DrawFn, original: bytes, near: int | None = None) -> bytes:
    """A real file with one to four changes: bytes flipped, overwritten, cut out, put in or doubled, or its end missing.

    Args:
        draw: hypothesis'.
        original: the whole file.
        near: changes lie in the first so many bytes, where a format keeps its header; None: anywhere.
    """
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        end = max(1, min(len(data), near or len(data)))
        start = draw(st.integers(0, end - 1))
        stop = min(len(data), start + draw(st.integers(1, 40)))
        how = draw(st.sampled_from(["flip", "edge", "cut", "insert", "double", "end"]))
        if how == "flip" and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif how == "edge":
            value = draw(st.sampled_from(EDGE_BYTES))
            data[start : start + len(value)] = value
        elif how == "cut":
            del data[start:stop]
        elif how == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=40))
        elif how == "double":
            data[start:start] = data[start:stop]
        elif how == "end":
            del data[start:]
    return bytes(data)


def with_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, so that a change is not found by them alone."""
    parts, at = [png[:8]], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        body = png[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        parts.append(png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join(parts) + png[at:]


numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.sampled_from(EDGES), st.sampled_from([-1, 10**400, 1e308]))
WORDS = ["", "8/255", "1/0", "none", "cifar10", "${data.name}", "${oc.env:HOME}", "a\nb", "\x1b[2J", "../../x", "[1,", "é" * 300]
words = st.one_of(st.sampled_from(WORDS), st.text(max_size=20))
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=8,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path to every value inside nested lists and dictionaries."""
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


@st.composite
def rewritten(draw: st.DrawFn, original: Any, values: st.SearchStrategy = junk) -> Any:
    """Real nested lists and dictionaries in which one to three values are replaced, removed, or put in a second time."""
    changed = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        known = places(changed)
        if not known:
            break
        *path, last = draw(st.sampled_from(known))
        parent = changed
        for key in path:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "nest"]))
        if how == "replace":
            parent[last] = draw(values)
        elif how == "remove":
            del parent[last]
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(words)] = parent.pop(last)
        elif how == "nest":
            parent[last] = [parent[last]]
    return changed


def as_json(value: Any) -> bytes:
    """A value as JSON text, NaN and infinity included."""
    return json.dumps(value).encode("utf-8", errors="surrogatepass")


def safetensors_parts(file: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def safetensors_file(header: Any, data: bytes) -> bytes:
    """A safetensors file with any header."""
    text = as_json(header)
    return struct.pack("<Q", len(text)) + text + data


@st.composite
def mutated_safetensors(draw: st.DrawFn, original: bytes) -> bytes:
    """A safetensors file with changed bytes, most often in its header, or with a header that says other things."""
    header, data = safetensors_parts(original)
    how = draw(st.sampled_from(["header", "anywhere", "says", "says"]))
    if how == "header":
        return draw(mutated(original, near=len(original) - len(data)))
    if how == "anywhere":
        return draw(mutated(original))
    types = st.sampled_from(["F16", "BF16", "F64", "I64", "U64", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "Q9"])
    values = st.one_of(types, st.lists(st.sampled_from([0, 1, 2, 3, 10, len(data), 2**31, 2**63]), max_size=5), junk)
    return safetensors_file(draw(rewritten(header, values)), data)
