"""Check every name and option of a config, by itself and with the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from pipeline import limits, losses, postprocess
from pipeline.config import Config, Data, Problem, nearest
from pipeline.data.properties import CaseProperties
from pipeline.geometry import Tiling
from pipeline.inference import norms, sliding_window
from pipeline.metrics import METRICS, better, bound, names_of
from pipeline.networks import HeadedNet, receptive
from pipeline.networks import build as build_network
from pipeline.records import NamedOptions, UserError
from pipeline.scoring import patches, worlds
from pipeline.scoring.cached import case_metrics
from pipeline.tasks import TASKS
from pipeline.workflows.checks import trials

GUESS = {2: 3, 3: 1}
"""Assumed channels of an image before any was read, by number of space axes."""


def problems(config: Config, channels: int | None) -> Iterator[Problem]:
    """Check every name and option.

    Args:
        config: the resolved config.
        channels: those of the images; None: not known yet. Then networks that only some images fit
            are checked later.

    Yields:
        Errors and warnings.
    """
    listed = config.data.normalise
    guess = GUESS[config.data.dims] if isinstance(listed, NamedOptions) else len(listed)
    known = channels or guess
    yield from trials.normalisation(config, channels)
    yield from trials.augmentations(config, known)
    yield from _network_and_losses(config, known, channels is None)
    yield from trials.optimizer(config)
    yield from _metrics(config)
    if TASKS[config.rules].decides:
        yield from _postprocess(config, known)


def _postprocess(config: Config, channels: int) -> Iterator[Problem]:
    """Post-processing with extreme numbers, and steps that do not fit the predictions."""
    extreme = [
        problem
        for n, step in enumerate(config.postprocess)
        for problem in trials.proportions(f"postprocess.{n}", step, limits.REACHING, math.inf)
    ]
    yield from extreme
    if not extreme:
        for text in postprocess.faults(
            config.postprocess, TASKS[config.rules].channels(config, channels), config.data.dims
        ):
            yield Problem(text, (text.partition(":")[0],))


def readable(config: Config) -> Config:
    """Replace a normalisation that cannot be used, so that the rest of the data can be checked.

    Args:
        config: the resolved config.

    Returns:
        The config, with the default normalisation where its own cannot be used.
    """
    if not list(trials.normalisation(config, None)):
        return config
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, normalise=Data().normalise)
    )


def is_guessed(config: Config, channels: int) -> bool:
    """Whether :func:`problems` without channels has covered these channels already.

    Args:
        config: the resolved config.
        channels: those of the images.

    Returns:
        True where checking again would find nothing new.
    """
    several = not isinstance(config.data.normalise, NamedOptions)  # one for each channel
    guessed = channels == GUESS[config.data.dims] and config.train.init_from is None
    return guessed and not several


def _network_and_losses(config: Config, channels: int, guessed: bool) -> Iterator[Problem]:
    """The network, the losses on its heads, tile sizes and initial weights."""
    ends = channels, TASKS[config.rules].channels(config, channels)
    network, found = trials.network(config, ends)
    # With guessed channels the fault may be the guess: try the other common number.
    if found and guessed and network is None:
        ends = (
            (1 if channels == 3 else 3),
            TASKS[config.rules].channels(config, 1 if channels == 3 else 3),
        )
        other, _ = trials.network(config, ends)
        network, found = (other, []) if other is not None else (network, found)
    yield from found
    heads: Mapping[str, tuple[int, Sequence[float]]] = {}
    yield from (
        Problem(text, (_key(text),))
        for text in losses.faults(
            config.losses, () if network is None else network.heads, config.kinds
        )
    )
    if all(term.weight == 0 for term in config.losses):
        yield Problem(
            "losses: every weight is 0, so nothing would be learned. Give one term a weight"
            " above 0.",
            ("losses",),
        )
    if network is None:  # the other faults show at the main head, which every network has
        yield from trials.loss_terms(
            config, {"main": (ends[1], (1.0,) * config.data.dims)}, ends[0]
        )
        return
    try:
        heads = trials.head_shapes(config, network, ends)
    except trials.EXPECTED as error:
        text = (
            f"network: {config.network.name!r} with {dict(config.network.options)} cannot take a"
            f" patch: {error}"
        )
        yield Problem(f"{text}. Correct its options or data.patch.size.", ("network",))
    yield from trials.loss_terms(config, heads, ends[0], network.deep)
    yield from _tiles(config)
    yield from trials.parts(config, network)
    if config.train.init_from is not None:
        yield from trials.initial_weights(config.train.init_from, config, None if guessed else ends)


def _key(text: str) -> str:
    """The config key that a message begins with."""
    return text.partition(":")[0].split(" ")[0]


def _tiles(config: Config) -> Iterator[Problem]:
    """A tile that has nothing left between its halos."""
    if config.predict.patch == "whole":
        return
    size = config.predict.patch or config.data.patch.size
    if any(n <= 2 * config.predict.halo for n in size):
        yield Problem(
            f"predict.halo is {config.predict.halo}: tiles of {list(size)} have nothing left"
            " between two halos. Lower it, or set predict.patch.",
            ("predict.halo",),
        )


def _metrics(config: Config) -> Iterator[Problem]:
    """Metrics of cases and of validation, and the monitored value."""
    lists = {
        "metrics": case_metrics(config),
        "train.validate.metrics": patches.validation_metrics(config),
    }
    for key, parts in lists.items():
        for n, part in enumerate(parts):
            where = f"{key}.{n}"
            yield from _metric(config, part, where)
    first = lists["metrics"][0]
    if first.name in METRICS:
        # It chooses between the kept and the averaged weights.
        yield from _caught("metrics.0", lambda: better(first.name))
    names = ["val_loss", *(f"val_{p.name}" for p in lists["train.validate.metrics"])]
    monitor = config.train.stop.monitor
    if monitor not in names:
        text = (
            f"train.stop.monitor: {monitor!r} is not computed. {nearest(monitor, names)} Add it to"
            " train.validate.metrics."
        )
        yield Problem(text, ("train.stop.monitor",))
    elif monitor != "val_loss" and monitor.removeprefix("val_") in METRICS:
        yield from _caught("train.stop.monitor", lambda: better(monitor))


def _metric(config: Config, part: NamedOptions, where: str) -> list[Problem]:
    """What is wrong with one metric; it is computed only where its options and task fit."""
    found = [*_caught(where, lambda: bound(part, where)), *_of_other_task(config, part, where)]
    return found or list(trials.metric(config, part, where, (3, (32,) * config.data.dims)))


def _caught(where: str, work: Callable[[], object]) -> Iterator[Problem]:
    """The UserError of ``work``, if it raises one, as a problem that names ``where``."""
    try:
        work()
    except UserError as error:
        yield Problem(str(error) if where in str(error) else f"{where}: {error}", (where,))


def _of_other_task(config: Config, part: NamedOptions, where: str) -> Iterator[Problem]:
    """Metrics without meaning for this task."""
    if part.name not in METRICS:
        return
    entry = METRICS[part.name]
    if entry.task != config.task:
        own = names_of(config.task)
        holds = "images" if entry.task == "image" else "labels"
        yield Problem(
            f"{where}: {part.name!r} is a metric of {holds}, but task is {config.task!r}. Take one"
            f" of: {', '.join(own)}.",
            (where,),
        )
    elif "change" in entry.needs and (
        where.startswith("train.") or (config.data.change is None and "mask" not in config.targets)
    ):
        yield Problem(
            f"{where}: {part.name!r} is a metric of whole cases with a mask of change. Set"
            " data.change: {}, or remove it.",
            (where,),
        )
    elif "probabilities" in entry.needs and TASKS[config.rules].channels(config, 1) != 1:
        yield Problem(
            f"{where}: {part.name!r} is for task labels with data.classes: 2, or one region. Remove"
            " it.",
            (where,),
        )


# --- with the images known ------------------------------------------------------------------------


def for_cases(config: Config, properties: Sequence[CaseProperties]) -> Iterator[Problem]:
    """Check what depends on the cases.

    These are metrics of small images, options in millimetres that files do not carry, and norms
    that tiles cannot have.

    Args:
        config: the resolved config.
        properties: of all training cases.

    Yields:
        Errors and warnings.
    """
    shapes = [f.shapes["image"] for f in properties if "image" in f.shapes]
    seen = [(f.shapes["image"][0], *f.model_size) for f in properties if "image" in f.shapes]
    yield from _for_sizes(config, shapes, seen)
    yield from _channel_names(config, {s[0] for s in shapes})
    parts = (*case_metrics(config), *patches.validation_metrics(config))
    label = next(iter(config.targets))
    without_unit = [
        f.id for f in properties if label in f.grids and not f.grids[label].get("spacing")
    ]
    yield from _caught("metrics", lambda: worlds.require_millimetres(parts, without_unit))
    if TASKS[config.rules].decides:
        yield from _without_unit(config, properties)


def _channel_names(config: Config, found: Collection[int]) -> Iterator[Problem]:
    """Names of channels that are not as many as the images have."""
    names = config.data.channel_names
    if names is not None and len(found) == 1 and len(names) not in found:
        yield Problem(
            f"data.channel_names names {len(names)} channels ({', '.join(names)}), the images have"
            f" {next(iter(found))}. Name each, or set null.",
            ("data.channel_names",),
        )


def _without_unit(config: Config, properties: Sequence[CaseProperties]) -> Iterator[Problem]:
    """Sizes of post-processing in mm³ where images carry no unit of length."""
    bare = [f.id for f in properties if "image" in f.grids and not f.grids["image"].get("spacing")]
    problem = postprocess.problem_of(config.postprocess, None)
    if bare and problem is not None:
        yield Problem(
            f"postprocess: each of the images of {len(bare)} cases ({', '.join(bare[:10])})"
            f" {problem[0]}. {problem[1]}.",
            ("postprocess",),
        )


def _for_sizes(
    config: Config, shapes: Sequence[tuple[int, ...]], seen: Sequence[tuple[int, ...]]
) -> Iterator[Problem]:
    """Metrics for the sizes of images; halos and norms for those in model space, ``seen``."""
    sides = [tuple(s[1:]) for s in shapes]
    smallest = tuple(min((32, *axis)) for axis in zip(*sides, strict=True))
    if min(smallest, default=32) < 32:
        for n, part in enumerate(case_metrics(config)):
            if not _metric(config, part, f"metrics.{n}"):
                yield from trials.metric(config, part, f"metrics.{n}", (shapes[0][0], smallest))
    if config.predict.patch != "whole" and not list(_tiles(config)):
        try:
            uncovered = list(_halos(config, seen)) if config.predict.halo else []
            yield from uncovered
            yield from (
                _norms(config, seen) if config.predict.norms != "tile" and not uncovered else ()
            )
        except trials.EXPECTED:
            return  # the network cannot be built, which is reported elsewhere


def _halos(config: Config, shapes: Sequence[tuple[int, ...]]) -> Iterator[Problem]:
    """A halo that leaves no multiple of the network's stride between two halos of a tile."""
    channels = shapes[0][0]
    network = trials.outline(config, (channels, TASKS[config.rules].channels(config, channels)))
    patch = (
        config.predict.patch if isinstance(config.predict.patch, tuple) else config.data.patch.size
    )
    for size in sorted({s[1:] for s in shapes}):
        try:
            Tiling(
                size=size,
                tile=patch,
                halo=config.predict.halo,
                multiple=receptive.stride(network, config.data.dims),
            )
        except ValueError as error:
            yield Problem(
                f"predict.halo is {config.predict.halo}: {error}, or lower predict.halo.",
                ("predict.halo",),
            )
            return


def _norms(config: Config, shapes: Sequence[tuple[int, ...]]) -> Iterator[Problem]:
    """``predict.norms`` that the network or the tiles do not allow."""
    largest = max(shapes, key=lambda s: max(s[1:]))
    channels = largest[0], TASKS[config.rules].channels(config, largest[0])
    network = trials.outline(config, channels)
    tiles = sliding_window.tiling(config, largest[1:])
    if tiles.count() == 1 or not receptive.tile_dependent(network):
        return
    mode, keys = config.predict.norms, ("predict.norms",)
    if beyond := receptive.beyond_statistics(network):
        text = (
            f"predict.norms is {mode}, but {', '.join(beyond[:3])} depends on a tile's size, which"
            " no statistics mend."
        )
        yield Problem(f"{text} Set predict.norms: tile, or predict.patch: whole.", keys)
    elif mode == "exact" and tuple(config.predict.scales) != (1,):
        text = f"predict.norms: exact goes with scale 1 only, not {list(config.predict.scales)}."
        yield Problem(f"{text} Set predict.scales: [1], or predict.norms: frozen.", keys)
    elif mode == "exact":
        yield from _exact(config, network, (channels, tiles.tile, tiles.padded))


def _exact(
    config: Config, outline: HeadedNet, sizes: tuple[tuple[int, int], Sequence[int], Sequence[int]]
) -> Iterator[Problem]:
    """``predict.norms: exact`` with tiles that do not allow it."""
    channels, tile, padded = sizes
    multiple = receptive.stride(outline, config.data.dims)
    try:
        network = build_network(config.network, *channels, config.data.dims)
        norms.layouts(
            padded, tile, multiple, receptive.reach(network, channels[0], config.data.dims).norms
        )
    except UserError as error:
        yield Problem(str(error), ("predict.norms",))
