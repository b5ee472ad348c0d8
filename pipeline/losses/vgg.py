"""The convolutions of VGG16: features of named layers, and their pretrained weights.

Layers and weights are those of Simonyan & Zisserman (ICLR 2015) as torchvision publishes them,
under its names ``features.N.weight`` and ``features.N.bias``; torchvision itself is not needed. Of
its 138 million weights only those up to the deepest layer in use are kept: 1.7 million up to
``relu3_3``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline import files
from pipeline.records import UserError

NAME, HASH = "vgg16-397923af.pth", "397923af"
"""The published file and the beginning of its SHA-256.

Other VGG16 weights of the same shape expect other inputs.
"""
URL = f"https://download.pytorch.org/models/{NAME}"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue in 0..1, as in training."""
USUAL = "relu3_3"
"""Deepest layer of a slim file unless a deeper one is asked for."""
PICKLED = (".pth", ".pt")
"""Suffixes of files that torch saves."""


class WeightsError(UserError):
    """VGG16 weights that cannot be found or used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One convolution of kernel 3 with the ReLU after it."""

    layer: str
    """Name of its output, ``relu1_1`` ..."""
    block: int
    """Number of its block from 1; a max pooling follows each block."""
    key: str
    """Name of its weights without ``.weight`` and ``.bias``."""
    inside: int
    """Channels in."""
    outside: int
    """Channels out."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """List the shapes of its weights.

        Returns:
            Shape by name.
        """
        return {
            f"{self.key}.weight": (self.outside, self.inside, 3, 3),
            f"{self.key}.bias": (self.outside,),
        }


def _convolutions() -> Iterator[Convolution]:
    index, inside = 0, 3
    for block, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        for n in range(1, count + 1):
            yield Convolution(
                layer=f"relu{block}_{n}",
                block=block,
                key=f"features.{index}",
                inside=inside,
                outside=width,
            )
            # A ReLU has a number of its own, and so has a pooling.
            index, inside = index + 2, width
        index += 1


CONVOLUTIONS = tuple(_convolutions())
LAYERS = tuple(c.layer for c in CONVOLUTIONS)
"""``relu1_1`` ... ``relu5_3``, from fine to deep."""


def deepest(layers: Collection[str]) -> str:
    """Find the deepest of some layers.

    Args:
        layers: names of layers.

    Returns:
        Name of the deepest one.

    Example:
        >>> deepest(["relu3_1", "relu1_2"])
        'relu3_1'
    """
    return max(layers, key=LAYERS.index)


def blocks(last: str) -> list[list[Convolution]]:
    """List the convolutions up to a layer, by block.

    Args:
        last: name of the last layer.

    Returns:
        Convolutions of each block.
    """
    used = CONVOLUTIONS[: LAYERS.index(last) + 1]
    return [[c for c in used if c.block == block] for block in range(1, used[-1].block + 1)]


def shapes(last: str) -> dict[str, tuple[int, ...]]:
    """List the shapes of all weights up to a layer.

    Args:
        last: name of the last layer.

    Returns:
        Shape by name of the weight.
    """
    return {
        name: shape for block in blocks(last) for c in block for name, shape in c.shapes().items()
    }


def features(
    x: Tensor, weights: Mapping[str, Tensor], layers: Collection[str], save_memory: bool = False
) -> dict[str, Tensor]:
    """Compute the outputs of some layers.

    Block b halves both sides b - 1 times; sides must be at least 2^(b - 1).

    Args:
        x: images ``(B, 3, Y, X)``, already normalised by ``MEAN`` and ``STD``.
        weights: all weights up to the deepest layer.
        layers: names of layers.
        save_memory: keep only what enters each block for the backward pass, which computes the rest
            again.

    Returns:
        Features ``(B, C, Y / 2^(b - 1), X / 2^(b - 1))`` by layer, sides rounded down.
    """
    found: dict[str, Tensor] = {}
    parts = blocks(deepest(layers))
    for n, part in enumerate(parts):
        step = functools.partial(
            _block, part=part, weights=weights, layers=layers, pool=n < len(parts) - 1
        )
        x, maps = (
            checkpoint(step, x, use_reentrant=False, preserve_rng_state=False)
            if save_memory
            else step(x)
        )
        found |= maps
    return found


def _block(
    x: Tensor,
    part: Sequence[Convolution],
    weights: Mapping[str, Tensor],
    layers: Collection[str],
    pool: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    maps: dict[str, Tensor] = {}
    for c in part:
        x = functional.relu(
            functional.conv2d(x, weights[f"{c.key}.weight"], weights[f"{c.key}.bias"], padding=1),
            inplace=True,
        )
        if c.layer in layers:
            maps[c.layer] = x
    return (functional.max_pool2d(x, 2) if pool else x), maps


def random_weights(last: str) -> dict[str, Tensor]:
    """Draw He-normal weights without bias, the same at every call.

    Torch's global generator is not used.

    Args:
        last: name of the last layer.

    Returns:
        Weights by name, float32.
    """
    make = torch.Generator().manual_seed(0)
    fresh = {}
    for name, shape in shapes(last).items():
        fan = 9 * shape[1] if name.endswith("weight") else 1
        fresh[name] = (
            torch.randn(shape, generator=make) * (2 / fan) ** 0.5
            if name.endswith("weight")
            else torch.zeros(shape)
        )
    return fresh


def cache() -> Path:
    """Find torch's folder of downloaded weights, which ``TORCH_HOME`` and ``XDG_CACHE_HOME`` move.

    Returns:
        The folder, which need not exist.
    """
    return Path(torch.hub.get_dir()) / "checkpoints"


def slim_path(last: str) -> Path:
    """Find where the slim file is read and written when no path is given.

    Args:
        last: name of the last layer.

    Returns:
        The path, which need not exist.
    """
    return cache() / f"vgg16-{HASH}-{deepest([last, USUAL])}.safetensors"


def check(path: Path, last: str) -> None:
    """Check that a file can hold the weights up to a layer.

    The weights of a safetensors file must be there and finite; a pickled file is not read.

    Args:
        path: file of weights.
        last: name of the last layer.

    Raises:
        WeightsError: for a missing file, an unknown suffix, or weights that are missing or not
            finite.
    """
    if not path.is_file():
        raise WeightsError(f"VGG16 weights {path}: no such file. {_instructions(last)}")
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            have = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
        _compare(path, have, last)
        _finite(path, read_slim(path, last))
    elif path.suffix not in PICKLED:
        raise WeightsError(
            f"VGG16 weights {path}: must be a .safetensors file made by data_prep/slim_vgg.py, or"
            f" {NAME}. {_instructions(last)}"
        )


def load(path: Path | None, last: str) -> dict[str, Tensor]:
    """Load the weights up to a layer from a file, or else from the cache.

    Where the cache has none, they are downloaded into it. A pickled file must be the published one.
    Weights are never made up.

    Args:
        path: file of weights; None: cache or download.
        last: name of the last layer.

    Returns:
        Weights by name, float32.

    Raises:
        WeightsError: for weights that cannot be found or used.
    """
    if path is not None:
        check(path, last)
        return (
            read_slim(path, last) if path.suffix == ".safetensors" else read_pickled(path, last)[0]
        )
    slim = slim_path(last)
    if slim.is_file():
        check(slim, last)
        _require_published(slim)
        return read_slim(slim, last)
    full = cache() / NAME
    if not full.is_file():
        _download(full, last)
    weights, digest = read_pickled(full, deepest([last, USUAL]))
    # A cache that cannot be written costs time at the next start, nothing else.
    with contextlib.suppress(OSError):
        write_slim(slim, weights, digest)
    return {name: weights[name] for name in shapes(last)}


def _download(full: Path, last: str) -> None:
    try:
        full.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(full), hash_prefix=HASH)
    # URLError is an OSError; torch raises RuntimeError for a wrong hash.
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"VGG16 weights: not in {cache()}, and {URL} could not be fetched ({error})."
            f" {_instructions(last)}"
        ) from None


def _instructions(last: str) -> str:
    return (
        "Three ways to the weights: option weights: FILE with FILE from 'python"
        f" data_prep/slim_vgg.py {NAME} FILE'; the same command without FILE, which fills the cache"
        f" {slim_path(last)}; or one start with access to {URL} (528 MB)."
    )


def read_slim(path: Path, last: str) -> dict[str, Tensor]:
    """Read the weights up to a layer from a checked safetensors file.

    Args:
        path: the file.
        last: name of the last layer.

    Returns:
        Weights by name, float32.

    Raises:
        WeightsError: for a file that cannot be read.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name).float() for name in shapes(last)}


def write_slim(path: Path, weights: Mapping[str, Tensor], digest: str) -> None:
    """Write a slim file whose header holds the SHA-256 of the file that the weights come from.

    Args:
        path: the file to write.
        weights: weights by name.
        digest: SHA-256 of their source, in hexadecimal.
    """
    plain = {name: weight.contiguous() for name, weight in weights.items()}
    files.write_bytes(
        path,
        save(
            plain,
            metadata={
                "format": "pt",
                "source": NAME if digest.startswith(HASH) else "other",
                "sha256": digest,
            },
        ),
    )


def _require_published(path: Path) -> None:
    """Refuse a cached file that was not made from the published weights.

    Nobody named the cached file, so nobody chose other weights.
    """
    with _opened(path) as file:
        digest = (file.metadata() or {}).get("sha256", "")
    if not digest.startswith(HASH):
        raise WeightsError(
            f"{path}: made from another file than {NAME}. Delete it, or name it in the option"
            " weights if it is meant."
        )


def read_pickled(
    path: Path, last: str, accept_other: bool = False
) -> tuple[dict[str, Tensor], str]:
    """Read the weights up to a layer from a file as torch saves them.

    Args:
        path: the file.
        last: name of the last layer.
        accept_other: accept other files than the published one.

    Returns:
        Weights by name, float32, and the file's SHA-256 in hexadecimal.

    Raises:
        WeightsError: for a damaged file, weights that are missing or not finite, and unless
            ``accept_other`` for any file but the published one.
    """
    digest = files.sha256(path)
    if not digest.startswith(HASH) and not accept_other:
        raise WeightsError(
            f"{path}: its SHA-256 begins with {digest[:8]}, that of {NAME} with {HASH}; it is"
            f" damaged, or holds weights that expect other inputs. Fetch {URL}, or make a slim file"
            f" with 'python data_prep/slim_vgg.py --accept-other {path} FILE'."
        )
    try:
        # The one place where a pickle is read: the weights exist in no other form. weights_only
        # lets nothing but tensors through.
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # unpickling fails with errors of many types
        raise WeightsError(
            f"{path}: not readable as weights that torch saved ({error}). Fetch {URL} again."
        ) from None
    _compare(path, {name: tuple(value.shape) for name, value in state.items()}, last)
    return _finite(path, {name: state[name].float() for name in shapes(last)}), digest


def _finite(path: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same weights; raise WeightsError where one is NaN or infinite."""
    bad = {name: count for name, w in weights.items() if (count := int((~torch.isfinite(w)).sum()))}
    if bad:
        shown = ", ".join(f"{name} ({count})" for name, count in list(bad.items())[:3])
        raise WeightsError(
            f"{path}: {sum(bad.values())} weights in {len(bad)} of {len(weights)} tensors are NaN"
            f" or infinite: {shown}. Make it anew with 'python data_prep/slim_vgg.py {NAME} FILE'."
        )
    return weights


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: damaged or not a safetensors file ({error}). Delete it and make it again."
        ) from None


def _compare(path: Path, have: Mapping[str, tuple[int, ...]], last: str) -> None:
    wrong = [f"{name} {shape}" for name, shape in shapes(last).items() if have.get(name) != shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"{path}: lacks VGG16's {', '.join(wrong[:3])}{more}, needed up to layer {last}. Make"
            f" it anew with 'python data_prep/slim_vgg.py --deepest {last} {NAME} FILE', or use"
            " finer layers."
        )
