"""Try each entry that a config names once on tiny data, so that it fails here and not later."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable

from pipeline import losses, networks, tasks
from pipeline.config import Config, ConfigError, InitFrom, Problem, numbers
from pipeline.data import augment, derived, normalise, transforms
from pipeline.inference import models
from pipeline.metrics import METRICS, evaluate
from pipeline.metrics.context import MetricContext
from pipeline.metrics.retouch import Retouched
from pipeline.networks import HeadedNet
from pipeline.networks import outline as outlines
from pipeline.networks import parts as network_parts
from pipeline.records import DeepHead, LossTerm, NamedOptions, UserError
from pipeline.training import initial, optim

EXPECTED = (
    UserError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    MemoryError,
)
"""Exceptions of an option that cannot be used, raised here or by the library that gets it."""

EDGE = {2: 32, 3: 16}
"""Longest side of the arrays for networks and augmentations, by number of space axes."""

WIDE = {2: 192, 3: 32}
"""Longest side of the arrays for losses, some of which need larger images."""

HEAVY = 5 * 10**7
"""Number of weights from which on a network is not run here."""

STEPS = 200
"""Epochs for which a schedule is tried."""


def proportions(
    where: str,
    part: NamedOptions | LossTerm,
    most_of: Mapping[str, float],
    largest: float = outlines.LARGEST,
) -> Iterator[Problem]:
    """Check for numbers so large that trying an entry would take much memory or hours.

    Args:
        where: key of the entry in the config.
        part: name and options.
        most_of: limits by option.
        largest: limit of all other numbers.

    Yields:
        An error for each such number.
    """
    for text in outlines.vast(part, most_of, largest):
        yield Problem(f"{where}: {part.name!r}: {text}.", (where,))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tried(where: str, part: NamedOptions | LossTerm, work: Callable[[], Any]) -> Iterator[Problem]:
    """Run ``work``, and report a failure as an entry with wrong options.

    Args:
        where: key of the entry in the config.
        part: name and options.
        work: uses the entry once. A ConfigError of its own names the key.

    Yields:
        At most one error.
    """
    try:
        with _quiet():
            work()
    except EXPECTED as error:
        text = (str(error) or type(error).__name__).removeprefix(
            "train.optimizer or train.schedule: "
        )
        if not text.startswith(where):
            text = f"{where}: {part.name!r} with {dict(part.options)}: {text}"
        yield Problem(text if text.endswith(".") else f"{text}. Correct its options.", (where,))


def _require(good: bool, message: str) -> None:
    if not good:
        raise ConfigError(message)


# --- normalisation and augmentation ---------------------------------------------------------------


def normalisation(config: Config, channels: int | None) -> Iterator[Problem]:
    """Try the normalisation on a small random image.

    Args:
        config: the resolved config.
        channels: those of the images; None: not known, as many as there are entries.

    Yields:
        At most one error for each entry.
    """
    method, key = config.data.normalise, "data.normalise"
    if isinstance(method, NamedOptions):
        yield from _normalisation(config, method, channels or 1)
        return
    found = [
        Problem(f"{key}.{n}{problem.text.removeprefix(key)}", (f"{key}.{n}",))
        for n, entry in enumerate(method)
        for problem in _normalisation(config, entry, 1)
    ]
    if channels not in (None, len(method)):
        text = (
            f"data.normalise has {len(method)} entries, the images have {channels} channels. Give"
            " one for each, or one without a list for all."
        )
        found.append(Problem(text, ("data.normalise",)))
    yield from found


def _normalisation(config: Config, part: NamedOptions, channels: int) -> Iterator[Problem]:
    """Try one entry."""
    where = "data.normalise"
    bound = list(tried(where, part, lambda: normalise.check(part)))
    yield from bound
    if bound:
        return
    if config.task == "image" and (text := normalise.image_problem(part)) is not None:
        yield Problem(f"{where}: {text}", (where,))
        return
    image = np.random.default_rng(0).integers(0, 255, (channels, *(8,) * config.data.dims))
    image = image.astype(np.uint8)
    # Those of the data set are not known yet: any will do.
    whole = numbers.with_numbers(part, [{"low": 5.0, "high": 250.0, "mean": 120.0, "std": 70.0}])

    def work() -> None:
        found = normalise.fit(whole, image).apply(image)
        _require(
            bool(np.isfinite(found).all()),
            f"{where}: {part.name!r} makes values that are not finite.",
        )

    yield from tried(where, part, work)


def augmentations(config: Config, channels: int) -> Iterator[Problem]:
    """Try each entry of ``data.augment``.

    It is built for the patch size of the config, and run on a small patch.

    Args:
        config: the resolved config.
        channels: those of the images.

    Yields:
        Errors.
    """
    try:
        losses.maps(config)
    except ConfigError as error:
        yield Problem(str(error), ("data.change",))
        return
    for n, part in enumerate(config.data.augment):
        where = f"data.augment.{n}"
        found = list(proportions(where, part, {})) or list(
            tried(where, part, lambda n=n: augment.augmentation(config, n))
        )
        yield from found or tried(where, part, lambda n=n: _augment(config, n, channels))


def _augment(config: Config, n: int, channels: int) -> None:
    """Run one augmentation, always applied, on a small random sample."""
    size = tuple(min(m, EDGE[config.data.dims]) for m in config.data.patch.size)
    part = config.data.augment[n]
    chances = ("p_rotation", "p_scaling") if part.name == "spatial" else ("p",)
    always = NamedOptions(name=part.name, options={**part.options, **dict.fromkeys(chances, 1.0)})
    small = dataclasses.replace(
        config.data,
        patch=dataclasses.replace(config.data.patch, size=size),
        augment=(*config.data.augment[:n], always),
    )
    try:
        chain = augment.augmentation(
            dataclasses.replace(config, data=small), n, losses.reads(config.losses)
        )
    except ConfigError:
        return  # fits the config's patch size, not a small one
    sample = _sample(config, channels, size)
    for transform in chain:
        if isinstance(transform, Randomizable):
            transform.set_random_state(0)
        with transforms.plain_tensors():
            sample = transform(sample)
    _require(
        bool(np.isfinite(np.asarray(sample["image"])).all()),
        f"data.augment.{n}: {part.name!r} makes values that are not finite.",
    )


def _sample(config: Config, channels: int, size: Sequence[int]) -> dict[Any, Any]:
    """A normalised patch with everything that a sample holds."""
    rng = np.random.default_rng(0)
    out: dict[Any, Any] = {"image": rng.random((channels, *size)).astype(np.float32)}
    for name, kind in config.targets.items():
        labels = rng.integers(0, config.data.classes, (1, *size)).astype(np.uint8)
        out[name] = rng.random((channels, *size)).astype(np.float32) if kind == "image" else labels
    for name in losses.maps(config):
        out[name] = rng.random((_map_channels(config, name), *size)).astype(np.float32)
    return out


def _map_channels(config: Config, name: str) -> int:
    """Channels of a derived map."""
    if name == derived.MASK:
        return 1
    unions = config.data.unions
    return config.data.classes - 1 if unions is None else len(unions)


# --- network --------------------------------------------------------------------------------------


def outline(config: Config, channels: tuple[int, int]) -> HeadedNet:
    """The network without memory (on torch's meta device).

    Args:
        config: the resolved config.
        channels: input and output channels.

    Returns:
        Its heads, and the names and shapes of its weights.
    """
    return outlines.outline(config.network, *channels, config.data.dims)


def network(config: Config, channels: tuple[int, int]) -> tuple[HeadedNet | None, list[Problem]]:
    """Build the outline of the network.

    Args:
        config: the resolved config.
        channels: input and output channels.

    Returns:
        The outline, None where it cannot be built, and what is wrong with it.
    """
    made: list[HeadedNet] = []
    found = list(proportions("network", config.network, outlines.repeats(config.network)))
    found = found or list(
        tried("network", config.network, lambda: made.append(outline(config, channels)))
    )
    if made and (count := networks.parameters(made[0])) > outlines.WEIGHTS:
        found.append(
            Problem(
                f"network: {config.network.name!r} has {count:,} weights, must be at most"
                f" {outlines.WEIGHTS:,}.",
                ("network",),
            )
        )
    return (made[0] if made and not found else None), found


def head_shapes(
    config: Config, made: HeadedNet, channels: tuple[int, int]
) -> dict[str, tuple[int, Sequence[float]]]:
    """Channels of every head and its size as a share of the input's, from a run on a small patch.

    Networks with more than ``HEAVY`` weights are not run: all heads without a stride of their own
    then get the shape of the main one.

    Args:
        config: the resolved config.
        made: outline of the network.
        channels: input and output channels.

    Returns:
        Pairs (K, share along each space axis) by head.

    Raises:
        ConfigError: or what torch raises, where the network cannot be run.
    """
    dims = config.data.dims
    # The size of a head with a stride is known: an input of EDGE may be smaller than the stride.
    known = {name: [1 / s for s in head.stride] for name, head in made.deep.items()}
    if networks.parameters(made) > HEAVY:
        return {name: (channels[1], known.get(name, [1.0] * dims)) for name in made.heads}
    network_copy = made.to_empty(device="cpu").train()
    size = [min(n, EDGE[dims]) for n in config.data.patch.size]
    with torch.no_grad():
        for tensor in (*network_copy.parameters(), *network_copy.buffers()):
            tensor.fill_(1 if tensor.dtype.is_floating_point else 0)
        heads = network_copy(torch.zeros(2, channels[0], *size))
    return {
        name: (
            y.shape[1],
            known.get(name, [a / b for a, b in zip(y.shape[2:], size, strict=True)]),
        )
        for name, y in heads.items()
    }


def initial_weights(
    wanted: InitFrom, config: Config, channels: tuple[int, int] | None
) -> Iterator[Problem]:
    """Check the model file of ``train.init_from`` against the network.

    Args:
        wanted: the file, and which differences are accepted.
        config: the resolved config.
        channels: input and output channels; None: those of the file's own images.

    Yields:
        At most one error, or a warning of frozen weights that the file lacks.
    """
    key = "train.init_from"
    try:
        model = models.load_model(Path(wanted.path), own=False)
        ends = channels or (
            model.channels[0],
            tasks.TASKS[config.rules].channels(config, model.channels[0]),
        )
        network = outline(config, ends)
        initial.compare(model, network, wanted)
        names = initial.fresh_names(model, network, wanted)
        random = [name for name in names if network_parts.is_within(name, config.train.freeze)]
        if random:
            text = f"{len(random)} frozen weights are not loaded and stay random: {random[0]}"
            yield Problem(
                f"train.freeze: {text}{', ...' * (len(random) > 1)}. Do not freeze them.",
                ("train.freeze",),
                "warning",
            )
    except UserError as error:
        text = str(error)
        yield Problem(text if key in text else f"{key}: {text}", (key,))
    except EXPECTED:
        return  # the network itself cannot be built, which is reported elsewhere


def parts(config: Config, made: HeadedNet) -> Iterator[Problem]:
    """Check ``train.freeze`` and ``train.layer_decay`` against the parts of the network.

    Args:
        config: the resolved config.
        made: outline of the network.

    Yields:
        Errors, and a warning where random weights are frozen.
    """
    if config.train.freeze and config.train.init_from is None:
        text = "train.freeze without train.init_from: random weights stay random."
        yield Problem(f"{text} Name a model file, or freeze nothing.", ("train.freeze",), "warning")
    try:
        network_parts.frozen_by(made, config.train.freeze)
    except ConfigError as error:
        yield Problem(str(error), ("train.freeze",))
    if config.train.layer_decay is None:
        return
    if not made.levels:
        known = ", ".join(outlines.declaring("levels", config.data.dims))
        yield Problem(
            f"train.layer_decay: the network {config.network.name!r} declares no levels. Set null,"
            f" or take one of: {known}.",
            ("train.layer_decay",),
        )
        return
    try:
        network_parts.by_level(made)
    except ConfigError as error:
        yield Problem(str(error), ("train.layer_decay",))


# --- losses ---------------------------------------------------------------------------------------


def loss_terms(
    config: Config,
    heads: Mapping[str, tuple[int, Sequence[float]]],
    channels: int,
    deep: Mapping[str, DeepHead] = losses.NO_HEADS,
) -> Iterator[Problem]:
    """Compute each loss term once for random logits, also at coarse heads where it counts again.

    Args:
        config: the resolved config.
        heads: as :func:`head_shapes` returns them.
        channels: those of the images.
        deep: weights and strides of the network's heads.

    Yields:
        Errors and warnings.
    """
    for i, term in enumerate(config.losses):
        where = f"losses.{i}"
        if list(losses.faults([term], list(heads), config.kinds))[:1] or term.head not in heads:
            continue  # reported already
        entry = losses.LOSSES[term.name]
        found = list(proportions(where, term, entry.repeats))
        found = found or list(
            tried(where, term, lambda term=term, where=where: losses.make(_cheap(term), where))
        )
        found = found or list(
            tried(
                where,
                term,
                lambda term=term: _compute(config, term, heads[term.head], channels, deep),
            )
        )
        yield from found or _again(config, i, heads, channels, deep)
        if (text := entry.warning(term.options)) is not None:
            yield Problem(f"{where}: {text}", severity="warning")


def _again(
    config: Config,
    i: int,
    heads: Mapping[str, tuple[int, Sequence[float]]],
    channels: int,
    deep: Mapping[str, DeepHead],
) -> Iterator[Problem]:
    """Compute a term of head main at the coarse heads at which it counts again, finest first."""
    written = len(config.losses)
    added = losses.with_deep(config.losses, heads, deep)[written:]
    mine = dataclasses.replace(config.losses[i], head="", weight=0.0)
    for term in added:
        if term.head not in deep or dataclasses.replace(term, head="", weight=0.0) != mine:
            continue
        try:
            with _quiet():
                _compute(config, term, heads[term.head], channels, deep)
        except EXPECTED as error:
            strides = " x ".join(str(s) for s in deep[term.head].stride)
            text = (
                f"losses.{i}: {term.name!r} counts again at head {term.head} of deep supervision,"
                f" whose voxels are blocks of {strides}, and cannot be computed there:"
                f" {str(error).removesuffix('.')}. Name the heads that count in losses, e.g."
                f" {{name: {term.name}, head: deep1, weight: 0.5}}, or set the network's"
                " deep_supervision: false."
            )
            yield Problem(text, (f"losses.{i}",))
            return


def _cheap(term: LossTerm) -> LossTerm:
    """The term as it is tried: without many repetitions, or files read or fetched at first use."""
    return dataclasses.replace(term, options=losses.LOSSES[term.name].trial(term.options))


def _compute(
    config: Config,
    term: LossTerm,
    head: tuple[int, Sequence[float]],
    channels: int,
    deep: Mapping[str, DeepHead],
) -> None:
    """Compute a term on a small patch.

    A term that needs a larger patch is run at the config's patch size, without memory
    (meta device).
    """
    size = tuple(min(n, WIDE[config.data.dims]) for n in config.data.patch.size)
    try:
        _value(config, term, (head, channels, deep), size, "cpu")
    except EXPECTED:
        if size == config.data.patch.size:
            raise
        try:
            _value(config, term, (head, channels, deep), config.data.patch.size, "meta")
        except ConfigError:
            raise
        except EXPECTED:
            return  # meta tensors have no values, so that nothing is known


def _value(
    config: Config,
    term: LossTerm,
    shape: tuple[tuple[int, Sequence[float]], int, Mapping[str, DeepHead]],
    size: Sequence[int],
    device: str,
) -> None:
    """Compute a term for one random sample; raise ConfigError for a value that is not finite."""
    (many, share), channels, deep = shape
    where = [max(1, math.ceil(round(n * s, 6))) for n, s in zip(size, share, strict=True)]
    logits = torch.full((1, many, *where), 0.25, device=device)
    if device == "cpu":
        logits = torch.rand((1, many, *where), generator=torch.Generator().manual_seed(0))
    batch: dict[str, torch.Tensor] = {}
    for name, kind in config.kinds.items():
        count = channels if kind == "image" else 1
        half = torch.full((1, count, *size), 0.5, device=device)
        batch[name] = half if kind != "labels" else _labels(size, config, term).to(device)
    for name in losses.maps(config):
        batch[name] = torch.zeros((1, _map_channels(config, name), *size), device=device)
    total, _ = losses.WeightedSum(
        [_cheap(term)], config.kinds, config.data.ignore_label, config.data.unions, deep
    )({term.head: logits}, batch)
    _require(
        device != "cpu" or bool(torch.isfinite(total)),
        f"loss {term.name!r} is {float(total):g} for an ordinary patch.",
    )


def _labels(size: Sequence[int], config: Config, term: LossTerm) -> torch.Tensor:
    """Labels of every class in stripes.

    All are ignored where the loss is slow: then only its options are checked.
    """
    stripes = torch.arange(size[0]) * min(config.data.classes, 8) // size[0]
    labels = stripes.reshape(-1, *[1] * (len(size) - 1)).expand(*size)[None, None].to(torch.int64)
    ignored = config.data.ignore_label
    if losses.LOSSES[term.name].slow:
        return torch.zeros_like(labels) if ignored is None else torch.full_like(labels, ignored)
    return labels


# --- optimiser and schedule -----------------------------------------------------------------------


def optimizer(config: Config) -> Iterator[Problem]:
    """Try optimiser and schedule on one weight, for at most ``STEPS`` epochs.

    Args:
        config: the resolved config.

    Yields:
        Errors.
    """
    module, train = torch.nn.Linear(1, 1), dataclasses.replace(config.train, layer_decay=None)
    alone = dataclasses.replace(train, schedule=NamedOptions(name="constant"))
    found = list(proportions("train.optimizer", train.optimizer, {}))
    found = found or list(
        tried("train.optimizer", train.optimizer, lambda: _run(alone, module, "train.optimizer"))
    )
    yield from found
    both = dataclasses.replace(train, optimizer=NamedOptions(name="adam")) if found else train
    yield from tried("train.schedule", train.schedule, lambda: _run(both, module, "train.schedule"))


def _run(train: Any, module: torch.nn.Module, key: str) -> None:
    """Take one step per epoch; raise ConfigError for negative or non-finite learning rates."""
    made, schedule = optim.make_optimizer(train, module)
    rates = []
    for _ in range(min(train.epochs, STEPS)):
        module.zero_grad()
        sum(p.sum() for p in module.parameters()).backward()  # type: ignore[union-attr]
        rates.append(made.param_groups[0]["lr"])
        made.step()
        optim.step_schedule(schedule, 1.0)
    _require(
        all(0 <= r < math.inf for r in rates),
        f"{key}: the learning rate becomes {next((r for r in rates if not r >= 0), 0)}.",
    )


# --- metrics --------------------------------------------------------------------------------------


def metric(
    config: Config, part: NamedOptions, where: str, sides: tuple[int, Sequence[int]]
) -> Iterator[Problem]:
    """Compute a metric once on arrays of the right kind.

    Args:
        config: the resolved config.
        part: name and options.
        where: key of the entry in the config.
        sides: channels and size of the smallest image that it will see.

    Yields:
        At most one error.
    """
    rng, entry = np.random.default_rng(0), METRICS[part.name]
    channels, size = sides

    def work() -> None:
        if entry.task == "image":
            image, target = rng.random((2, channels, *size))
            mask = np.zeros(tuple(size), bool)
            mask[tuple(slice(0, max(1, n // 2)) for n in size)] = True
            change = (
                Retouched(source=image, mask=mask, predicted=None)
                if "change" in entry.needs
                else None
            )
            evaluate([part], image, target, None, None, change)
            return
        answer = np.zeros(tuple(size), np.uint8)
        answer[tuple(slice(n // 4, max(1, n // 2)) for n in size)] = 1
        soft = answer * 0.5 + 0.25 if "probabilities" in entry.needs else None
        evaluate(
            [part],
            answer,
            np.roll(answer, 1, 0),
            None,
            soft,
            context=MetricContext(spacing=(1.0,) * len(size)),
        )

    yield from tried(where, part, work)
