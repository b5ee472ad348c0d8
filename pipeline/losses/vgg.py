"""The convolutions of VGG16 as a fixed measure of images: features of named layers, and weights
that are found or refused.

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
"""Of ImageNet's red, green and blue in 0..1: what these weights were trained with."""
USUAL = "relu3_3"
"""Deepest layer of a slim file unless a deeper one is asked for."""
PICKLED = (".pth", ".pt")


class WeightsError(UserError):
    """VGG16 weights that cannot be found or used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One convolution of kernel 3 with the ReLU after it; ``block`` counts from 1, and a max
    pooling follows each block.
    """

    layer: str
    block: int
    key: str
    inside: int
    outside: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
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
            index, inside = (
                index + 2,
                width,
            )  # a ReLU takes a number of its own, and so does a pooling
        index += 1


CONVOLUTIONS = tuple(_convolutions())
LAYERS = tuple(c.layer for c in CONVOLUTIONS)
"""``relu1_1`` ... ``relu5_3``, from fine to deep."""


def deepest(layers: Collection[str]) -> str:
    """The one of ``layers`` that lies deepest."""
    return max(layers, key=LAYERS.index)


def blocks(last: str) -> list[list[Convolution]]:
    """The convolutions up to layer ``last``, by block."""
    used = CONVOLUTIONS[: LAYERS.index(last) + 1]
    return [[c for c in used if c.block == block] for block in range(1, used[-1].block + 1)]


def shapes(last: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight up to layer ``last``."""
    return {
        name: shape for block in blocks(last) for c in block for name, shape in c.shapes().items()
    }


def features(
    x: Tensor, weights: Mapping[str, Tensor], layers: Collection[str], save_memory: bool = False
) -> dict[str, Tensor]:
    """Outputs of ``layers`` for images ``(B, 3, Y, X)`` that are already brought to mean 0 and
    deviation 1.

    Block b halves both sides b - 1 times; sides must be at least 2^(b - 1). With ``save_memory``
    only what enters each block is kept for the backward pass, which computes the rest again.
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
    """He-normal weights without bias, the same at every call and without a draw from torch's global
    generator.
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
    """Torch's folder of downloaded weights, which ``TORCH_HOME`` and ``XDG_CACHE_HOME`` move."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def slim_path(last: str) -> Path:
    """Where the slim file up to ``last`` is looked for when no path is given."""
    return cache() / f"vgg16-{HASH}-{deepest([last, USUAL])}.safetensors"


def check(path: Path, last: str) -> None:
    """Raise WeightsError unless ``path`` can hold the weights up to ``last``; of a safetensors
    file, unless they are there and finite.
    """
    if not path.is_file():
        raise WeightsError(f"VGG16 weights {path}: no such file. {_ways(last)}")
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            have = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
        _compare(path, have, last)
        _finite(path, read_slim(path, last))
    elif path.suffix not in PICKLED:
        raise WeightsError(
            f"VGG16 weights {path}: must be a .safetensors file made by data_prep/slim_vgg.py, or"
            f" {NAME}. {_ways(last)}"
        )


def load(path: Path | None, last: str) -> dict[str, Tensor]:
    """Weights up to layer ``last``, from ``path``, or else from the cache, or else from the network
    into the cache.

    A pickled file must be the published one. Raises WeightsError, never makes weights up.
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
    with contextlib.suppress(
        OSError
    ):  # a cache that cannot be written costs time at the next start, nothing else
        write_slim(slim, weights, digest)
    return {name: weights[name] for name in shapes(last)}


def _download(full: Path, last: str) -> None:
    try:
        full.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(full), hash_prefix=HASH)
    except (
        OSError,
        RuntimeError,
    ) as error:  # URLError is an OSError; RuntimeError is torch's word for a wrong hash
        raise WeightsError(
            f"VGG16 weights: not in {cache()}, and {URL} could not be fetched ({error})."
            f" {_ways(last)}"
        ) from None


def _ways(last: str) -> str:
    return (
        "Three ways to the weights: option weights: FILE with FILE from 'python"
        f" data_prep/slim_vgg.py {NAME} FILE'; the same command without FILE, which fills the cache"
        f" {slim_path(last)}; or one start with access to {URL} (528 MB)."
    )


def read_slim(path: Path, last: str) -> dict[str, Tensor]:
    """Weights up to ``last`` from a checked safetensors file, as float32."""
    with _opened(path) as file:
        return {name: file.get_tensor(name).float() for name in shapes(last)}


def write_slim(path: Path, weights: Mapping[str, Tensor], digest: str) -> None:
    """Write a slim file whose header holds the SHA-256 of the file that the weights come from."""
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
    """The cache answers to nobody's name for a file, so what lies there must be the published
    weights.
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
    """Weights up to ``last`` as float32, and the file's SHA-256, from a file as torch saves them.

    Raises WeightsError for a damaged file, and unless ``accept_other`` for any but the published
    one.
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
    except Exception as error:  # unpickling fails in many ways, and there is no telling which
        raise WeightsError(
            f"{path}: not readable as weights that torch saved ({error}). Fetch {URL} again."
        ) from None
    _compare(path, {name: tuple(value.shape) for name, value in state.items()}, last)
    return _finite(path, {name: state[name].float() for name in shapes(last)}), digest


def _finite(path: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights. Raises WeightsError where one is NaN or infinite."""
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
