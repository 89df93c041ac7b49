"""What SECURITY.md promises beyond the fuzzed readers: nothing unpickled or evaluated, bombs bounded, names escaped."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gandefense import config, zoo
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.errors import CONTROL, LONGEST, UserError
from gandefense.evaluation.figures import Panel, Strip
from gandefense.evaluation.page import page
from gandefense.evaluation.plots import Plot
from gandefense.image_files import MOST_PIXELS, UnreadableError, read_image
from gandefense.training.run import Run
from gandefense.training.trn import TRNConfig
from tests.fuzz.mutations import memory_limit, time_limit
from tests.helpers import results as made

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted([*(ROOT / "gandefense").rglob("*.py"), *(ROOT / "tools").glob("*.py")])

# name of a call → may it be made with these keywords?
FORBIDDEN: dict[str, Callable[[dict[str, ast.expr]], bool]] = {
    **dict.fromkeys(("eval", "exec", "compile", "__import__", "os.system", "os.popen"), lambda words: False),
    **dict.fromkeys(("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"), lambda words: False),
    **dict.fromkeys(("joblib.load", "dill.load", "dill.loads", "yaml.load", "yaml.unsafe_load"), lambda words: False),
    "torch.load": lambda words: _is(words.get("weights_only"), True),
    "torch.hub.load": lambda words: False,
    **dict.fromkeys(("np.load", "numpy.load"), lambda words: _is(words.get("allow_pickle", ast.Constant(False)), False)),
    **{f"subprocess.{name}": lambda words: _is(words.get("shell", ast.Constant(False)), False) for name in ("run", "Popen")},
    "archive.extractall": lambda words: False,
}
IMPORTING = {"gandefense/own_parts.py"}  # where a name that the user wrote may choose what is imported


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _calls(source: str) -> list[tuple[int, str, dict[str, ast.expr]]]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            found.append((node.lineno, ast.unparse(node.func), {word.arg: word.value for word in node.keywords if word.arg}))
    return found


def _offences(source: str) -> list[str]:
    return [
        f"line {line}: {name}"
        for line, name, words in _calls(source)
        if (name in FORBIDDEN and not FORBIDDEN[name](words)) or name.endswith(".extractall")
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_evaluated_or_unpickled(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not _offences(source)
    if any(name.endswith("import_module") for _, name, _ in _calls(source)):
        assert str(path.relative_to(ROOT)) in IMPORTING


@pytest.mark.parametrize(
    "source",
    ["eval('1')", "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "a.extractall(x)"],
)
def test_an_offence_would_be_found(source: str) -> None:
    assert _offences(source)
    assert not _offences("torch.load(p, weights_only=True); np.load(p); network.eval(); subprocess.run(['a'])")


class Harmful:
    """An object whose unpickling would leave a file behind."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {os.environ['HARM']}",)


def _zipped(folder: Path) -> bytes:
    torch.save({"kind": "trn", "parts": Harmful()}, folder / "harmful.pt")
    return (folder / "harmful.pt").read_bytes()


@pytest.fixture(params=["pickle", "torch zip", "plain zip"])
def harmful(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A file with code in it, in each of the wrappings there are."""
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    if request.param == "pickle":
        return pickle.dumps({"kind": "trn", "parts": Harmful()})
    if request.param == "torch zip":
        return _zipped(tmp_path)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Harmful()))
        archive.writestr("archive/version", "3")
    return file.getvalue()


def _resume(path: Path) -> None:
    settings = TRNConfig(run=RunConfig(folder=str(path.parent / "runs"), device="cpu"))
    with Run.start("trn", settings, settings.run) as run:
        (run.folder / "checkpoint.pt").write_bytes(path.read_bytes())
        run.restore(network=nn.Linear(2, 2))


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": _resume,
    "classifier": zoo.load_classifier,
    "restorer": lambda path: zoo.load_restorer(path, nn.Identity()),
    "defence": zoo.load,
    "data.file": lambda path: datasets.load(DataConfig(file=str(path)), "test"),
    "config": lambda path: config.load(TRNConfig, path),
}


@pytest.mark.parametrize("reader", READERS)
def test_code_in_a_file_is_never_run(reader: str, harmful: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(harmful)
    with pytest.raises(UserError) as caught:
        READERS[reader](path)
    assert not CONTROL.search(str(caught.value)) and "weights_only" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IEND", b"")


def _jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose header says that it is large."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, format="JPEG")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of many pixels": lambda: _png(60_000, 60_000, _chunk(b"IDAT", zlib.compress(bytes(10**6)))),
    "PNG just above the limit": lambda: _png(2**13, MOST_PIXELS // 2**13 + 1, _chunk(b"IDAT", zlib.compress(bytes(10**6)))),
    "JPEG of many pixels": lambda: _jpeg(60_000, 60_000),
    "PNG with a text that unpacks to 300 MB": lambda: _png(
        4, 4, _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * 10**8), 9)), _chunk(b"IDAT", b"x")
    ),
    "PNG with more data than pixels": lambda: _png(4, 4, _chunk(b"IDAT", zlib.compress(bytes(3 * 10**8), 9))),
}


def test_the_memory_limit_sees_what_was_freed_again() -> None:
    with memory_limit(100 * 2**20):
        assert len(b"x" * (20 * 2**20)) == 20 * 2**20
    for _ in range(2):  # the second time the process has had as much before
        with pytest.raises(AssertionError, match="the memory rose by"), memory_limit(100 * 2**20):
            assert len(b"x" * (200 * 2**20)) == 200 * 2**20


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_decompression_bomb_costs_little(bomb: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(BOMBS[bomb]())
    with memory_limit(100 * 2**20), time_limit():
        try:
            image = read_image(tmp_path / "x.png", channels=3, size=None)[0]
            assert image.shape == (3, 4, 4)
        except UnreadableError as error:
            assert not CONTROL.search(str(error))
    if "pixels" in bomb and "than" not in bomb:
        with pytest.raises(UnreadableError, match="exceeds limit of"):
            read_image(tmp_path / "x.png", channels=3, size=None)


PAYLOAD = """<script>alert(1)</script><img src=x onerror=alert(2)>"' onmouseover='alert(3)"""


class Tags(HTMLParser):
    """All tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def _poisoned(value: object) -> object:
    """Results in which every name and every sentence that comes from a user or a file ends in markup."""
    text = json.dumps(value)
    for name in (made.TRN, made.GAN, made.RANDOM, "cifar10/classifier", "pgd-20", "runs/full", "2030-01-01", "3.11.7"):
        text = text.replace(json.dumps(name)[1:-1], json.dumps(f"{name}{PAYLOAD}")[1:-1])
    poisoned = json.loads(text)
    for finding in poisoned["checks"]:
        finding["text"] += PAYLOAD
    poisoned["made"]["config"]["name"] = PAYLOAD
    poisoned["data"]["name"] += PAYLOAD
    return poisoned


def test_the_report_escapes_every_name() -> None:
    results = made.complete()
    strip = Strip(b"png", [PAYLOAD], [True])
    panels = [Panel("00", PAYLOAD, [PAYLOAD], b"png", [strip], [strip])]
    plots = [Plot("p", name, PAYLOAD, b"png") for name in ("curve_eps", "detection")]
    poisoned = page(_poisoned(results), panels, plots)
    assert poisoned.count("alert(1)") > 20, "the payload is shown as text"
    plain = Tags(page(results, [Panel("00", "title", ["a"], b"png", [strip], [])], plots[:0]))
    found = Tags(poisoned)
    assert "script" not in found.tags and not [name for name in found.attributes if name.startswith("on")]
    assert found.tags <= plain.tags | {"img", "div", "figure"} and found.attributes <= plain.attributes | {"alt", "src"}


@pytest.mark.parametrize("name", ["../up", "a/b", "/tmp/x", "a\\b", "a\nb", "a\x00b", "", "x" * 300])
def test_a_run_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    settings = TRNConfig(run=RunConfig(folder=str(tmp_path / "runs"), name=name, device="cpu"))
    with pytest.raises(UserError, match="plain name"):
        Run.start("trn", settings, settings.run)
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize("name", ["..", "..."])
def test_dots_alone_lead_nowhere(tmp_path: Path, name: str) -> None:
    settings = TRNConfig(run=RunConfig(folder=str(tmp_path / "runs"), name=name, device="cpu"))
    with Run.start("trn", settings, settings.run) as run:
        assert run.folder.resolve().parent == (tmp_path / "runs").resolve()


@pytest.mark.parametrize("name", ["../weights/cifar10/gan", "/etc/passwd", "a/../cifar10/gan", "x" * 5000, "a\x00b", "~/x", ""])
def test_a_zoo_name_leads_nowhere_else(name: str) -> None:
    with pytest.raises(UserError):
        zoo.find(name)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred\x07", "x" * 10**6, "\u202eturned", "half \ud800", "\u2028"])
def test_a_message_is_one_printable_line(text: str) -> None:
    message = str(UserError(f"bad: {text}"))
    assert message.startswith("bad:") and not CONTROL.search(message) and len(message) <= LONGEST
    message.encode("utf-8")


def test_every_promise_names_its_test() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 8
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
