"""A defence as one graph for other programs: ONNX, or torch's own exported program, checked against the eager network."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gandefense.attacks.suite import AttackSpec, attack
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.data.batches import to_float
from gandefense.data.datasets import Dataset
from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier, Restoration, Restorer
from gandefense.restorers.gan import GANRestorer, Judged

INPUT = "input"
OUTPUTS = ("images", "score", "flagged", "level", "logits")
PARTS = {"defence": OUTPUTS, "restorer": OUTPUTS[:-1]}  # what a file may hold → its outputs
TOLERANCE = 1e-4  # the largest absolute difference to the eager network, in every output
OPSET = 18  # the first one whose ScatterElements can add, which the gradient of max pooling needs
MOST_IMAGES = 2**16  # in a batch of the exported program; a symbolic size needs some bound
TRACED_BATCH = 11  # no other size in the networks, so that it is not taken for one of them

ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")  # to write a file, and to check it

aten = torch.ops.aten


class FixedRounds(Restorer):
    """The GAN defence's loop without a batch that shrinks: every image goes through every round, and masks decide.

    A graph cannot hold a loop that depends on its data. Images that are finished are computed again and not used, so
    that what comes out is the same and the cost is that of the slowest image.

    Args:
        restorer: the defence whose networks, threshold, rounds and tolerance are taken.
    """

    def __init__(self, restorer: GANRestorer) -> None:
        super().__init__()
        self.networks, self.regenerate = restorer.networks, restorer.regenerate
        self.detector, self.limit = restorer.detector, restorer.limit
        self.threshold, self.rounds, self.tolerance = restorer.threshold, restorer.rounds, restorer.tolerance

    def forward(self, images: Tensor) -> Restoration:
        """Restore images (B, C, H, W) in [0, 1] as `GANRestorer` does; `maps` is empty."""
        first: Judged = self.networks.judge(images)
        judged = first
        score = first.logit if self.detector is None else self.detector(images, first)
        flagged = active = score > self.limit
        before, restored = first.cleaned, images
        for number in range(1, self.rounds + 1):
            regenerated = self.regenerate(judged)
            restored = torch.where(active.view(-1, 1, 1, 1), regenerated, restored)
            if number < self.rounds:
                judged = self.networks.judge(regenerated)
                settled = (regenerated - before).abs().mean((1, 2, 3)) < self.tolerance
                active = active & ~(settled & (judged.logit <= self.threshold))
                before = regenerated
        return Restoration(restored, score, flagged, first.level, {})


class Exportable(nn.Module):
    """A defence as a module with tensors in and out: images (B, C, H, W) in [0, 1] → `OUTPUTS`, or those of a restorer.

    Args:
        defended: restorer and classifier, on the CPU; its parameters need no gradient from here on.
        part: a key of PARTS.
    """

    def __init__(self, defended: DefendedClassifier, part: str = "defence") -> None:
        super().__init__()
        restorer = defended.restorer
        self.restorer = FixedRounds(restorer) if isinstance(restorer, GANRestorer) else restorer
        self.classifier = defended.classifier if part == "defence" else None
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        restoration = self.restorer(images)
        outputs = (restoration.images, restoration.score, restoration.flagged, restoration.level)
        return outputs if self.classifier is None else (*outputs, self.classifier(restoration.images))


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Tensor | None, None, None]:
    """The gradient for a convolution's input, which is a convolution too; weights need none in a graph that is not trained."""
    if mask[1] or mask[2]:
        raise NotImplementedError("the gradient of a weight")
    if not mask[0]:
        return None, None, None
    dimensions = range(len(stride))
    if transposed:
        wanted = aten.convolution(gradient, weight, None, stride, padding, dilation, False, [0 for _ in dimensions], groups)
        return wanted, None, None
    reached = [
        (gradient.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in dimensions
    ]
    rest = [x.shape[2 + i] - reached[i] for i in dimensions]  # pixels that a stride leaves over at the end
    return aten.convolution(gradient, weight, None, stride, padding, dilation, True, rest, groups), None, None


def _max_pool2d_backward(
    gradient: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, indices: Tensor
) -> Tensor:
    """The gradient of 2-D max pooling: each maximum's place gets what its windows got."""
    return torch.zeros_like(x).flatten(2).scatter_add(2, indices.flatten(2), gradient.flatten(2)).view_as(x)


def _decompositions() -> dict[Any, Callable]:
    """How to write the backward passes that TRN's gradient maps need in operations that ONNX has."""
    from torch._decomp import get_decompositions

    written = [aten.native_batch_norm_backward, aten.native_group_norm_backward, aten.native_layer_norm_backward]
    return {
        **get_decompositions([*written, aten.gelu_backward, aten.silu_backward, aten.leaky_relu_backward]),
        aten.convolution_backward.default: _convolution_backward,
        aten.max_pool2d_with_indices_backward.default: _max_pool2d_backward,
    }


def trace(module: nn.Module, shape: tuple[int, int, int], *, batch: int | None = None) -> torch.export.ExportedProgram:
    """A module's computation as one graph, backward passes inside it included.

    `torch.export` cannot look into `torch.autograd.grad`. `make_fx` records what runs beneath it, operation by operation;
    what it gives holds no autograd any more, and `torch.export` takes that.

    Args:
        module: images (B, C, H, W) → tensors; no decisions in Python that depend on its data.
        shape: (C, H, W).
        batch: images in a batch; None leaves it open.

    Raises:
        UserError: the module does something that no graph can hold.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    images = torch.rand(batch or TRACED_BATCH, *shape)
    sizes = [DimDynamic.STATIC if batch else DimDynamic.DYNAMIC, *(DimDynamic.STATIC for _ in shape)]
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    stand_in = mode.from_tensor(images, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1, max=MOST_IMAGES)},)
    try:
        with mode, enable_python_dispatcher():
            graph = make_fx(module, decomposition_table=_decompositions(), _allow_non_fake_inputs=True)(stand_in)
        for node in list(graph.graph.nodes):
            if node.target is aten._assert_async.msg:  # of one_hot, whose labels are known to be in range here
                graph.graph.erase_node(node)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return torch.export.export(graph, (images,), dynamic_shapes=dynamic)
    except Exception as error:  # the tracers raise errors of many kinds, all of which mean the same
        raise UserError(f"cannot be exported: its computation cannot be traced ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}{f': {lines[0][:200]}' if lines else ''}"


def write_onnx(program: torch.export.ExportedProgram, path: Path, outputs: tuple[str, ...], about: dict[str, Any]) -> None:
    """Write an exported program as ONNX, weights inside, with what it is in its metadata.

    Raises:
        UserError: ONNX has no equivalent of an operation.
    """
    images = program.example_inputs[0][0]
    try:
        made = torch.onnx.export(
            program, (images,), dynamo=True, verbose=False, input_names=[INPUT], output_names=list(outputs), opset_version=OPSET
        )
        made.model.metadata_props["gandefense"] = json.dumps(about)
        made.save(str(path), external_data=False)
    except Exception as error:  # as in `trace`
        raise UserError(f"cannot be exported as ONNX; try a .pt2 file ({_reason(error)})") from None


def write_pt2(program: torch.export.ExportedProgram, path: Path, outputs: tuple[str, ...], about: dict[str, Any]) -> None:
    """Write an exported program in torch's own format; the outputs come in the order of `outputs`."""
    extra = {"gandefense.json": json.dumps({**about, "outputs": outputs})}
    torch.export.save(program, str(path), extra_files=extra)


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    """What an ONNX file makes of images, by onnxruntime on the CPU."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # its warnings speak of its own optimisations
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(np.asarray(found)) for found in session.run(None, {INPUT: images.numpy()})]


def run_pt2(path: Path, images: Tensor) -> list[Tensor]:
    """What a .pt2 file that `write_pt2` has just written makes of images; never give it a file from elsewhere."""
    return list(torch.export.load(str(path)).module()(images))


FORMATS: dict[str, tuple[Callable, Callable]] = {".onnx": (write_onnx, run_onnx), ".pt2": (write_pt2, run_pt2)}


def differences(found: list[Tensor], eager: tuple[Tensor, ...], outputs: tuple[str, ...]) -> dict[str, float]:
    """The largest absolute difference in each output; infinite where shapes differ or NaN stand at different places."""
    worst = {}
    for name, ours, wanted in zip(outputs, found, eager, strict=True):
        if ours.shape != wanted.shape or not torch.equal(ours.isnan(), wanted.isnan()):
            worst[name] = float("inf")
        else:
            distance = (ours.double() - wanted.double()).abs().nan_to_num(nan=0.0)
            worst[name] = distance.max().item() if distance.numel() else 0.0
    return worst


def installed(name: str) -> bool:
    """Whether a package is there."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # something stands for it that is no module
        return False


@contextmanager
def _beside(path: Path) -> Any:
    """A file of the same ending in a folder of its own beside `path`: exporters may leave more than one file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
            yield Path(folder) / path.name
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def samples(defended: DefendedClassifier, data: Dataset, count: int = 8, seed: int = 0) -> tuple[Tensor, bool]:
    """Images to compare with: `count` test images and the same attacked by PGD at 8/255 (gray box), and whether they are real.

    Where the data set is not on this machine, smooth random images stand in for it.
    """
    try:
        found = datasets.load(DataConfig(name=data.name, download=False, limit=count), "test", seed=seed)
        clean, labels, real = to_float(found.images), found.labels, True
    except UserError:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(count, data.channels, 4, 4, generator=generator)
        clean = nn.functional.interpolate(coarse, size=(data.size, data.size), mode="bilinear")
        labels, real = torch.randint(len(data.classes), (count,), generator=generator), False
    attacked = attack(defended.classifier, clean, labels, AttackSpec("pgd", steps=5), seed=seed).images
    return torch.cat([clean, attacked]), real


def export(
    defended: DefendedClassifier,
    path: str | Path,
    images: Tensor,
    *,
    batch: int | None = None,
    part: str = "defence",
    about: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Write a defence as one file, and put it in place only if it does on images what the eager defence does.

    Args:
        defended: restorer and classifier.
        path: ends in .onnx or .pt2; a file that is there is replaced.
        images: (N, C, H, W) in [0, 1], to compare with; with an open batch, the first one alone too.
        batch: images in a batch; None leaves it open.
        part: "defence", or "restorer" without the classifier's logits.
        about: goes into the file's metadata; JSON-able.

    Returns:
        The largest absolute difference in each output.

    Raises:
        UserError: another ending, packages missing, a computation that cannot be exported, or a difference above TOLERANCE.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise UserError(f"an exported file ends in {' or '.join(FORMATS)}, got {path.name!r}")
    if part not in PARTS:
        raise UserError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    missing = [name for name in ONNX_NEEDS if not installed(name)] if path.suffix == ".onnx" else []
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'gandefense[export]'")
    outputs = PARTS[part]
    write, run = FORMATS[path.suffix]
    module = Exportable(defended.cpu(), part)
    # The eager network itself is what counts, not the equivalent of it that is exported.
    with torch.no_grad():
        restoration = defended.restorer(images)
        logits = [defended.classifier(restoration.images)] if part == "defence" else []
    eager = (restoration.images, restoration.score, restoration.flagged, restoration.level, *logits)
    program = trace(module, tuple(images.shape[1:]), batch=batch)
    worst = dict.fromkeys(outputs, 0.0)
    with _beside(path) as temporary:
        write(program, temporary, outputs, about or {})
        for rows in _slices(len(images), batch):
            found = run(temporary, images[rows])
            for name, value in differences(found, tuple(value[rows] for value in eager), outputs).items():
                worst[name] = max(worst[name], value)
        if not max(worst.values()) <= TOLERANCE:
            said = ", ".join(f"{name} {value:.2g}" for name, value in worst.items())
            raise UserError(f"{path} was not written: it differs from the eager network by more than {TOLERANCE:g} ({said})")
        temporary.replace(path)
    return worst


def _slices(count: int, batch: int | None) -> list[slice]:
    """Rows to compare: with an open batch all at once and one alone, else batch after batch, an incomplete one left out."""
    if batch is None:
        return [slice(0, count), slice(0, 1)]
    if count < batch:
        raise UserError(f"a batch of {batch} cannot be compared on {count} images")
    return [slice(start, start + batch) for start in range(0, count - batch + 1, batch)]
