"""The weighted sum of loss terms, each with its head and its target, as training uses it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.config import ConfigError, nearest
from pipeline.data import derived
from pipeline.losses.coarse import downsampled, means, subsampled
from pipeline.losses.deep import NO_HEADS, is_deep
from pipeline.losses.masked import Loss
from pipeline.losses.table import LOSSES, for_target, make, reads
from pipeline.records import DeepHead, LossTerm


class WeightedSum:
    """``sum of weight * loss(outputs[head], batch[target])`` over the terms of a config.

    Voxels of a label target that hold ``ignore_label`` count in no term. A soft mask is reduced to
    the size of a smaller head by the means of blocks. For a head of ``deep`` labels, ignored voxels
    and maps are taken at the middle voxel of each block, images and soft masks are the means of
    blocks. A loss that reads a map made from its target
    (``pipeline.data.derived``) is given ``batch["label:skeleton"]`` or the like, and one that reads
    the mask of change ``batch["mask"]``; the attribute ``maps`` holds these names by term.

    Args:
        terms: the terms.
        kinds: for each target whether it holds ``"labels"``, an ``"image"`` or a ``"soft"`` mask.
        ignore_label: class number of voxels that do not count; None: all count.
        regions: class numbers of each region that a channel of the main and the deep-supervision
            heads stands for: their losses are means over regions, each of one channel and the mask
            of its classes; None: channels stand for classes.
        deep: strides of heads that are coarser than the input, as a network has them.
        main: factor of the terms of head ``main`` in training, see
            :func:`~pipeline.losses.main_factor`.

    Raises:
        ConfigError: for an unknown loss, option or target, a loss of the wrong kind, a mask that is
            not there, or a weight that is negative or not finite.

    Example:
        >>> terms = [LossTerm(name="ce"), LossTerm(name="dice", weight=0.5)]
        >>> loss = WeightedSum(terms, {"label": "labels"})
        >>> outputs = {"main": torch.zeros(1, 1, 2, 2)}
        >>> total, values = loss(outputs, {"label": torch.tensor([[[[0, 1], [1, 0]]]])})
        >>> round(total.item(), 4), {name: round(value.item(), 4) for name, value in values.items()}
        (0.9431, {'ce': 0.6931, 'dice': 0.5})
    """

    def __init__(
        self,
        terms: Sequence[LossTerm],
        kinds: Mapping[str, str],
        ignore_label: int | None = None,
        regions: Sequence[Sequence[int]] | None = None,
        deep: Mapping[str, DeepHead] = NO_HEADS,
        main: float = 1.0,
    ) -> None:
        _refuse(
            [
                fault
                for i, term in enumerate(terms)
                for fault in _faults(f"losses.{i}: {term.name!r}", term, kinds)
            ]
        )
        self.terms = dict(zip(_keys(terms), terms, strict=True))
        self.losses = {
            key: make(term, f"losses.{i}") for i, (key, term) in enumerate(self.terms.items())
        }
        self.maps = {key: found.key for key, term in self.terms.items() for found in reads([term])}
        self.kinds = dict(kinds)
        self.ignore_label = ignore_label
        self.regions = regions
        self.deep = dict(deep)
        self.main = main
        for key, term in self.terms.items():
            if regions is not None and kinds[term.target] == "labels" and _is_main(term.head):
                self.losses[key] = by_region(self.losses[key], regions)

    def __call__(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], training: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the total with its gradient, and the detached value of each term, unweighted.

        With ``training=False``, deep-supervision terms whose head is absent are left out. Any other
        absent head, target or map is an error, because a loss that silently loses a term trains
        another model than the one asked for.

        Args:
            outputs: logits ``(B, K, *S)`` by head.
            batch: targets and maps ``(B, C, *S)`` by name.
            training: whether deep-supervision heads must be there.

        Returns:
            The total, a tensor ``()``, and the values by term: ``{"dice": ..., "dice@mask": ...}``.

        Raises:
            KeyError: for an absent head, target or map, or where no term is left.
        """
        targets: dict[str, tuple[Tensor, Tensor]] = {}
        values: dict[str, Tensor] = {}
        for key, term in self.terms.items():
            if not training and is_deep(term.head) and term.head not in outputs:
                continue
            if term.target not in targets:
                targets[term.target] = self._clean(
                    _pick(batch, term.target, key, "the batch", "target"), term.target
                )
            head = _pick(outputs, term.head, key, "the network's output", "head")
            target, valid = targets[term.target]
            maps = [self._map(batch, key)] if key in self.maps else []
            if term.head in self.deep:
                stride = self.deep[term.head].stride
                target, valid = self._coarser(term.target, target, valid, stride)
                maps = [self._coarser_map(self.maps[key], m, stride) for m in maps]
            elif self.kinds[term.target] == "soft" or _is_coarse(term, head, target):
                target, valid = downsampled(target, valid, head.shape[2:])
            values[key] = self.losses[key](head, target, valid, *maps)
        if not values:
            raise KeyError(
                "no loss term is left: all read deep-supervision heads, and the output has only"
                f" {sorted(outputs)}."
            )
        main = self.main if training else 1.0
        weighted = [
            self.terms[key].weight * (main if self.terms[key].head == "main" else 1.0) * value
            for key, value in values.items()
        ]
        total = torch.stack(weighted).sum()
        return total, {key: value.detach() for key, value in values.items()}

    def _map(self, batch: Mapping[str, Tensor], key: str) -> Tensor:
        """The map of a term; in a mask given as labels, ignored voxels are set to 0."""
        name = self.maps[key]
        found = _pick(batch, name, key, "the batch", "map")
        return self._clean(found, name)[0] if name in self.kinds else found

    def _coarser(
        self, name: str, target: Tensor, valid: Tensor, stride: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """A target at a head of some stride, and where it counts."""
        if self.kinds[name] == "labels":
            return subsampled(target, stride), subsampled(valid, stride)
        return means(target, valid, stride)

    def _coarser_map(self, name: str, found: Tensor, stride: Sequence[int]) -> Tensor:
        """A map at a head of some stride; the soft mask of change is reduced as a target is."""
        if name != derived.MASK or self.kinds.get(name) == "labels":
            return subsampled(found, stride)
        return means(found, torch.ones_like(found[:, :1]), stride)[0]

    def _clean(self, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Target with ignored voxels set to 0, and ``valid`` ``(B, 1, *S)``."""
        if self.kinds[name] != "labels" or self.ignore_label is None:
            return target, torch.ones_like(target[:, :1], dtype=torch.float32)
        # Compared as int64: against uint8 torch takes the label modulo 256, and 256 would mean
        # background.
        ignored = target.long() == self.ignore_label
        return target.masked_fill(ignored, 0), (~ignored).float()


def _keys(terms: Sequence[LossTerm]) -> list[str]:
    """A distinct name for each term: ``dice``, ``dice@mask``, ...

    Repeated names become ``dice:vessel``, then ``dice:2``, ``dice:3`` ...
    """
    keys: list[str] = []
    for term in terms:
        plain = term.name if term.head == "main" else f"{term.name}@{term.head}"
        candidates = itertools.chain(
            [plain, f"{plain}:{term.target}"], (f"{plain}:{i}" for i in itertools.count(2))
        )
        keys.append(next(key for key in candidates if key not in keys))
    return keys


def _is_coarse(term: LossTerm, head: Tensor, target: Tensor) -> bool:
    """Whether a mask drawn as labels meets coarser logits of a further head.

    Such as those of ``abpn``; it is then compared as a soft mask.
    """
    coarser = any(h < t for h, t in zip(head.shape[2:], target.shape[2:], strict=True))
    return (
        term.head != "main"
        and "soft" in LOSSES[term.name].targets
        and head.shape[1] == 1
        and coarser
    )


def by_region(loss: Loss, regions: Sequence[Sequence[int]]) -> Loss:
    """Compute a loss for the channel of each region and the mask of its classes.

    Args:
        loss: of one channel ``(B, 1, *S)``.
        regions: class numbers of each region.

    Returns:
        Their mean, as a loss of logits ``(B, R, *S)``, labels and ``valid`` ``(B, 1, *S)`` and maps
        ``(B, R, *S)``.

    Raises:
        ValueError: when it is called with logits of another number of channels.

    Example:
        >>> mean = by_region(lambda logits, target, valid: target.float().mean(), [(1, 2), (2,)])
        >>> labels = torch.tensor([[[0, 1, 1, 2]]])
        >>> mean(torch.zeros(1, 2, 4), labels, torch.ones(1, 1, 4)).item()
        0.5
    """
    members = [torch.tensor(list(values)) for values in regions]

    def mean(logits: Tensor, target: Tensor, valid: Tensor, *maps: Tensor) -> Tensor:
        if logits.shape[1] != len(members):
            raise ValueError(
                f"logits {tuple(logits.shape)} have {logits.shape[1]} channels, there are"
                f" {len(members)} regions; give one channel for each."
            )
        values = [
            loss(
                logits[:, n : n + 1],
                torch.isin(target, own.to(target.device, target.dtype)).to(target.dtype),
                valid,
                *(m[:, n : n + 1] for m in maps),
            )
            for n, own in enumerate(members)
        ]
        return torch.stack(values).mean()

    return mean


def _is_main(head: str) -> bool:
    return head == "main" or is_deep(head)


def _pick(tensors: Mapping[str, Tensor], name: str, key: str, where: str, role: str) -> Tensor:
    if name not in tensors:
        raise KeyError(
            f"loss term {key!r} reads {role} {name!r}, which {where} lacks; it has:"
            f" {', '.join(sorted(tensors)) or 'nothing'}."
        )
    return tensors[name]


def check(terms: Sequence[LossTerm], heads: Collection[str], targets: Mapping[str, str]) -> None:
    """Refuse terms that read a head or target that does not exist or is of the wrong kind.

    Args:
        terms: terms of a config.
        heads: names of the network's heads; empty: not known.
        targets: kind by name: ``"labels"``, ``"image"`` or ``"soft"``.

    Raises:
        ConfigError: one that lists all that :func:`faults` finds.
    """
    _refuse(faults(terms, heads, targets))


def faults(
    terms: Sequence[LossTerm], heads: Collection[str], targets: Mapping[str, str]
) -> list[str]:
    """List what is wrong with the terms.

    Args:
        terms: terms of a config.
        heads: names of the network's heads; empty: not known.
        targets: kind by name: ``"labels"``, ``"image"`` or ``"soft"``.

    Returns:
        A message for each fault.
    """
    found: list[str] = []
    for i, term in enumerate(terms):
        where = f"losses.{i}: {term.name!r}"
        found += _faults(where, term, targets)
        if heads and term.head not in heads:
            found.append(
                f"{where} reads head {term.head!r}, which the network does not have."
                f" {nearest(term.head, heads)}"
            )
    if all(is_deep(term.head) for term in terms):
        found.append(
            "losses: no term reads a head that validation has (deep-supervision heads exist in"
            " training only). Add one for head main."
        )
    return found


def _faults(where: str, term: LossTerm, targets: Mapping[str, str]) -> Iterator[str]:
    if not 0 <= term.weight < math.inf:
        yield f"{where} has weight {term.weight}, must be a number of at least 0."
    if term.name not in LOSSES:
        yield f"{where} is unknown. {nearest(term.name, LOSSES)}"
    if term.target not in targets:
        yield (
            f"{where} reads target {term.target!r}, which the data does not have."
            f" {nearest(term.target, targets)}"
        )
        return
    kind = targets[term.target]
    if term.name in LOSSES and kind not in LOSSES[term.name].targets:
        holds = {"soft": "a soft mask"}.get(kind, kind)
        yield (
            f"{where} cannot read target {term.target!r}, which holds {holds}. Losses for it:"
            f" {', '.join(sorted(for_target(kind)))}."
        )
    if derived.MASK not in targets and any(found.key == derived.MASK for found in reads([term])):
        yield (
            f"{where} reads the mask, which the data does not have. Set data.change: {{}}"
            " (made from the pairs), or give masks of your own as data.targets."
        )


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError("\n  ".join(faults))
