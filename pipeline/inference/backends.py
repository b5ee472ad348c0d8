"""Inference on a CPU by ONNX Runtime or OpenVINO instead of torch.

A network is exported once, the export is kept beside the model file, and it is compared with its
network before it is used.

The export is torch's by tracing (``dynamo=False``). Measured with torch 2.13: tracing takes about a
second, needs no package but ``onnx``, and follows every network here at any size; the newer
exporter takes 12 to 26 seconds for each, needs ``onnxscript`` and refuses
:class:`~pipeline.networks.unet.DeepUNet`, which sets an attribute while it runs. Tracing may get a
branch wrong that depends on the size; the comparison with the network finds that.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

import pipeline
from pipeline import files
from pipeline.inference.models import load_header
from pipeline.networks import HeadedNet
from pipeline.records import UserError

logger = logging.getLogger(__name__)

Session = Callable[[np.ndarray], Sequence[np.ndarray]]
"""From normalised tiles ``(B, C, *S)`` float32 to the logits ``(B, K, *S)`` float32 of each head.

Axes of the tiles are multiples of the network's divisor.
"""

EXPORTED_HEADS = ("main", "mask")
"""Heads that a prediction reads; an export gives those that its network has, in this order."""

OPSET = 17
TOLERANCE = 1e-3
"""Largest difference between an export and its network on noise, relative to the largest logit.

Absolute where the largest logit is below 1. Rounding stays below 1e-4.
"""


class BackendError(UserError):
    """A backend that is not installed, or does not support the device, options or network."""


class Exported(HeadedNet):
    """An exported network with the interface of the network that it was made from.

    It pads and crops as that network does, and returns those of its heads that are in
    ``EXPORTED_HEADS``. ``layers`` is the network without its weights (on torch's meta device), for
    code that inspects which of its layers depend on the whole tile.

    Args:
        session: computes the heads of normalised tiles.
        network: the network that was exported; its layers are copied.
    """

    def __init__(self, session: Session, network: HeadedNet) -> None:
        super().__init__(_exported_heads(network), network.divisor)
        self.session = session
        self.layers = copy.deepcopy(network).to("meta")

    def padded_size(self, size: Sequence[int]) -> list[int]:
        """Size that tiles are padded to, as the network does it.

        Args:
            size: voxels along each axis.

        Returns:
            Voxels along each axis, multiples of the divisor.
        """
        return self.layers.padded_size(size)

    def cut(self, heads: Mapping[str, Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """Crop heads of padded tiles back, as the network does it.

        Args:
            heads: outputs ``(B, K, *padded)`` by head.
            size: voxels of the tiles along each axis, before padding.

        Returns:
            The cropped outputs by head.
        """
        return self.layers.cut(heads, size)

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Heads of tiles that need no padding.

        Args:
            x: normalised tiles ``(B, C, *S)`` on the CPU.

        Returns:
            Logits ``(B, K, *S)`` float32 by head.
        """
        found = self.session(x.float().contiguous().numpy())
        return {head: torch.from_numpy(y) for head, y in zip(self.heads, found, strict=True)}


class _Traced(nn.Module):
    """The heads of an export, for sizes that need no padding."""

    def __init__(self, network: HeadedNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        heads = self.network.run(x)
        return tuple(heads[head] for head in _exported_heads(self.network))


def _exported_heads(network: HeadedNet) -> tuple[str, ...]:
    """Heads of a network that its export has, in the order of ``EXPORTED_HEADS``."""
    return tuple(head for head in EXPORTED_HEADS if head in network.heads)


def check(backend: str, device: str, norms: str = "tile") -> None:
    """Check that a backend can be used.

    Args:
        backend: ``torch``, ``onnx`` or ``openvino``.
        device: name of the device, as torch gives it.
        norms: ``predict.norms``: ``tile``, ``frozen`` or ``exact``.

    Raises:
        BackendError: ``backend`` is unknown or not installed, or cannot compute on ``device`` or
            with ``norms``.
    """
    if backend == "torch":
        return
    if backend not in BACKENDS:
        raise BackendError(
            f"--backend is {backend!r}, must be one of: torch, {', '.join(BACKENDS)}."
        )
    if device != "cpu":
        raise BackendError(
            f"--backend {backend} computes on the CPU, not on {device}. Use --device cpu, or"
            " --backend torch."
        )
    if norms != "tile":
        raise BackendError(
            f"--backend {backend} cannot fix the statistics of single layers, as predict.norms:"
            f" {norms} asks. Use --backend torch, or norms: tile."
        )
    for name in ("onnx", *BACKENDS[backend].packages):
        _package(name, backend)


def accelerate(network: nn.Module, path: Path, backend: str) -> nn.Module:
    """Let a backend compute a network.

    The export for ``onnx`` and ``openvino`` is kept beside the model file, as ``STEM-KEY.onnx``,
    and used again as long as model and versions are the same; where that folder cannot be written,
    it is made in memory at each start.

    Args:
        network: the network, read from ``path``.
        path: its model file.
        backend: ``torch``, ``onnx`` or ``openvino``.

    Returns:
        A module that is called like the network, on as many threads as torch would use; for
        ``torch`` the network itself.

    Raises:
        BackendError: a package is missing, the network is not of this package, or the export
            computes something else than the network.
    """
    if backend == "torch":
        return network
    check(backend, "cpu")
    if not isinstance(network, HeadedNet):
        raise BackendError(
            f"--backend {backend} takes networks of this package, not {type(network).__name__}. Use"
            " --backend torch."
        )
    kept, channels = cache(path), load_header(path).channels[0]
    if kept.is_file():
        try:
            return proved(kept.read_bytes(), network, channels, backend)
        except Exception as error:  # each runtime has errors of its own for a damaged file
            logger.warning(f"{kept} cannot be used and is made again: {str(error).splitlines()[0]}")
    content = export(network, channels)
    ready = proved(content, network, channels, backend)
    _keep(kept, content)
    return ready


def cache(path: Path) -> Path:
    """Path at which the export of a model file is kept.

    Args:
        path: the model file.

    Returns:
        A path beside it; its name is a hash of the file's bytes and of the versions that make the
        export.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "monai")]
    facts = [
        files.sha256(path),
        f"pipeline {pipeline.__version__}",
        *versions,
        f"opset {OPSET}",
        *EXPORTED_HEADS,
    ]
    return path.with_name(
        f"{path.stem}-{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:16]}.onnx"
    )


def _keep(kept: Path, content: bytes) -> None:
    """Write an export and remove outdated ones; where the folder is read-only, warn."""
    stem = kept.stem.rpartition("-")[0]
    try:
        files.write_bytes(kept, content)
        for old in kept.parent.glob(f"*-{'[0-9a-f]' * 16}.onnx"):
            if old != kept and re.fullmatch(re.escape(stem) + "-[0-9a-f]{16}", old.stem):
                old.unlink(missing_ok=True)
    except OSError as error:
        logger.warning(
            f"{kept} was not kept, so the next start exports again: {error.strerror or error}"
        )


def export(network: HeadedNet, channels: int) -> bytes:
    """Export a network to ONNX.

    Args:
        network: the network; it is exported in evaluation mode, and its mode is restored.
        channels: its input channels.

    Returns:
        Bytes of an ONNX model of :meth:`HeadedNet.run`: ``image`` to those of its heads that are in
        ``EXPORTED_HEADS``, batch and space axes of any size.

    Raises:
        BackendError: the package ``onnx`` is missing.
    """
    _package("onnx", "onnx")
    axes = {0: "batch", **{2 + n: f"axis{n}" for n in range(len(network.divisor))}}
    heads = _exported_heads(network)
    example = _noise(1, channels, [2 * d for d in network.divisor])
    buffer, training = io.BytesIO(), network.training
    network.eval()
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            # The tracer warns of branches on the size, which proved() checks.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Traced(network).eval(),
                (example,),
                buffer,  # type: ignore[arg-type]  # accepted by the tracing exporter
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(heads),
                dynamic_axes=dict.fromkeys(("image", *heads), axes),
            )
    finally:
        network.train(training)
    return buffer.getvalue()


def proved(content: bytes, network: HeadedNet, channels: int, backend: str) -> Exported:
    """Open an export and compare it with its network.

    The comparison uses noise of another size and batch than the export was traced with.

    Args:
        content: bytes of the ONNX model.
        network: the network that was exported.
        channels: its input channels.
        backend: ``onnx`` or ``openvino``.

    Returns:
        The export, called like the network.

    Raises:
        BackendError: the two differ by more than ``TOLERANCE``, or the backend's package is
            missing.
    """
    exported = Exported(BACKENDS[backend].open(content, torch.get_num_threads()), network).eval()
    x = _noise(
        2,
        channels,
        [2 * d + 1 if n == 0 else 2 * d if n == 1 else d for n, d in enumerate(network.divisor)],
    )
    with torch.inference_mode():
        wanted, found = network.eval()(x), exported(x)
    for head, right in ((head, wanted[head].float()) for head in exported.heads):
        error = (
            float((right - found[head]).abs().max())
            if right.shape == found[head].shape
            else float("inf")
        )
        limit = TOLERANCE * max(1.0, float(right.abs().max()))
        if not error <= limit:
            raise BackendError(
                f"the export for --backend {backend} differs from its network by {error:.2g} in"
                f" {head!r}, more than {limit:.2g}. Use --backend torch."
            )
    return exported


def _noise(batch: int, channels: int, size: Sequence[int]) -> Tensor:
    return torch.randn((batch, channels, *size), generator=torch.Generator().manual_seed(0))


def _package(name: str, backend: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(
            f"--backend {backend} needs the package {name} ({error}). In a clone: pip install"
            ' -e ".[cpu]"; or use --backend torch.'
        ) from None


def _onnx(content: bytes, threads: int) -> Session:
    runtime = _package("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors; it warns of machines that it finds no GPU on
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"image": x})


def _openvino(content: bytes, threads: int) -> Session:
    core = _package("openvino", "openvino").Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    own = threading.local()  # a request serves one thread at a time

    def run(x: np.ndarray) -> list[np.ndarray]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found = own.request.infer({"image": x})
        return [np.array(found[head]) for head in compiled.outputs]

    return run


@dataclass(frozen=True, slots=True)
class Backend:
    """A runtime beside torch.

    Args:
        packages: the packages that it needs beside ``onnx``.
        open: a session from the bytes of an ONNX model and a number of threads.
    """

    packages: tuple[str, ...]
    open: Callable[[bytes, int], Session]


BACKENDS: Mapping[str, Backend] = {
    "onnx": Backend(("onnxruntime",), _onnx),
    "openvino": Backend(("openvino",), _openvino),
}
"""Backends beside torch by their names in ``--backend``."""
