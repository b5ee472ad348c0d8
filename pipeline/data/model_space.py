"""The space in which a model sees images: how arrays go there and predictions back.

Axes are reordered and flipped, the image is cut to a box and resampled to a spacing, in this
order; :mod:`pipeline.data.spaces` says which of it an image needs. Predictions go back in memory
that holds them as the model made them and some rows of the file's grid at a time. Where nothing is
to be done, the array itself is passed through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.data import resampling
from pipeline.data.resampling import AxisResize
from pipeline.files import LazyArray, Rows, npy, slabs
from pipeline.grid import Alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """The box that is left of an image.

    Args:
        start: first voxel along each axis.
        stop: the voxel after the last one.
        size: voxels of the whole image along each axis.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def inner(self) -> tuple[int, ...]:
        """Voxels of the box along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    def moved(self, alignment: Alignment) -> Crop:
        """The same box of the aligned image.

        Args:
            alignment: axis order and flips.

        Returns:
            The box along the new axes.
        """
        pairs = []
        for axis, old in enumerate(alignment.axes):
            low, high, size = self.start[old], self.stop[old], self.size[old]
            pairs.append((size - high, size - low) if axis in alignment.flips else (low, high))
        return Crop(
            start=tuple(a for a, _ in pairs),
            stop=tuple(b for _, b in pairs),
            size=alignment.size(self.size),
        )

    def cut(self, array: LazyArray) -> LazyArray:
        """The box of an array.

        Args:
            array: ``(C, *S)``.

        Returns:
            ``(C, *inner)``: a copy in memory, or read as it is sliced.
        """
        (low, high), *rest = zip(self.start, self.stop, strict=True)
        box = tuple(slice(a, b) for a, b in rest)
        if isinstance(array, np.ndarray):
            return np.ascontiguousarray(array[(slice(None), slice(low, high), *box)])
        shape = (array.shape[0], *self.inner)
        return Rows(
            shape,
            array.dtype,
            lambda first, end: array[(slice(None), slice(low + first, low + end), *box)],
        )

    def padded(self, array: LazyArray, fill: Sequence[float]) -> Rows:
        """The whole image again.

        Args:
            array: ``(K, *inner)``.
            fill: value of each channel outside the box.

        Returns:
            ``(K, *size)``, made as it is sliced.
        """
        low, high = self.start[0], self.stop[0]
        box = tuple(slice(a, b) for a, b in zip(self.start[1:], self.stop[1:], strict=True))
        outside = np.asarray(fill, array.dtype).reshape(-1, *[1] * len(self.size))

        def make(first: int, end: int) -> np.ndarray:
            out = np.empty((len(array), end - first, *self.size[1:]), array.dtype)
            out[:] = outside
            a, b = max(first, low), min(end, high)
            if a < b:
                out[(slice(None), slice(a - first, b - first), *box)] = array[:, a - low : b - low]
            return out

        return Rows((len(array), *self.size), array.dtype, make)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """Sizes and orders of a change of spacing.

    Args:
        old: voxels along each axis before.
        new: voxels along each axis in model space.
        coarse: axis whose slices are resampled apart on the way there; None: none.
        coarse_back: the same on the way back.
        image: spline order of images.
        labels: spline order of labels.
        back: spline order of predictions.
        rule: which class a voxel of a label map gets, ``argmax`` or ``half``.
    """

    old: tuple[int, ...]
    new: tuple[int, ...]
    coarse: int | None = None
    coarse_back: int | None = None
    image: int = 3
    labels: int = 1
    back: int = 1
    rule: str = "argmax"

    def forward(self, array: LazyArray) -> LazyArray:
        """An image in model space.

        Args:
            array: ``(C, *old)``.

        Returns:
            ``(C, *new)``, in memory where the array is.
        """
        axes = resampling.axes_of(self.old, self.new, self.image, self.coarse)
        found = resampling.resized(array, axes, self.coarse)
        return found[:] if isinstance(array, np.ndarray) else found

    def forward_labels(self, labels: np.ndarray) -> np.ndarray:
        """Labels in model space.

        Args:
            labels: integers ``(1, *old)``.

        Returns:
            ``(1, *new)`` of the same type; no value that was not there.
        """
        axes = resampling.axes_of(self.old, self.new, self.labels, self.coarse)
        return resampling.resize_labels(labels, axes, self.rule)

    @property
    def backward(self) -> tuple[AxisResize, ...]:
        """How predictions go back, axis by axis."""
        return resampling.axes_of(self.new, self.old, self.back, self.coarse_back)


SAME = Alignment(axes=(), flips=())
"""No change of axes, for any number of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpace:
    """How the array ``(C, *S)`` of a file goes to the space in which networks see it, and back.

    Args:
        alignment: order and direction of axes.
        crop: the box that is kept, along the axes of model space; None: the whole image.
        resampling: the change of spacing; None: voxels stay as they are.
        spacing: millimetres between voxels in model space; None: not known.
        codes: axis codes of the file and of training, where one is brought to the other.
        notes: warnings for the user.

    Example:
        >>> turn = Alignment(axes=(1, 0), flips=())
        >>> crop = Crop(start=(0, 1), stop=(2, 2), size=(2, 3))
        >>> space = ModelSpace(alignment=turn, crop=crop)
        >>> space.to_model(np.array([[[1, 2], [3, 4], [5, 6]]])).tolist()
        [[[3], [4]]]
        >>> space.to_file(np.array([[[3], [4]]]), fill=[0])[:].tolist()
        [[[0, 0], [3, 4], [0, 0]]]
    """

    alignment: Alignment = SAME
    crop: Crop | None = None
    resampling: Resampling | None = None
    spacing: tuple[float, ...] | None = None
    codes: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> bool:
        """Whether arrays pass through as they are."""
        return self.alignment.identity and not self.changes_grid

    @property
    def changes_grid(self) -> bool:
        """Whether more than the order and direction of axes changes."""
        return self.crop is not None or self.resampling is not None

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """Voxels of model space along each axis, where the space itself knows them."""
        if self.resampling is not None:
            return self.resampling.new
        return self.crop.inner if self.crop is not None else None

    @property
    def needs_scratch(self) -> bool:
        """Whether rows become columns, so that a lazy array needs a scratch file."""
        return self.alignment.axes[:1] not in ((), (0,))

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The file's ``(*S)`` in model space.

        Args:
            size: ``(*S)`` of the file's array.

        Returns:
            ``(*S)`` after all steps.
        """
        if self.sizes is not None:
            return self.sizes
        return tuple(size) if self.alignment == SAME else self.alignment.size(size)

    def to_native(self, array: LazyArray, scratch: Path | None = None) -> LazyArray:
        """The file's array along the axes of model space and in its box, not yet resampled.

        Args:
            array: ``(C, *S)``.
            scratch: as of :meth:`to_model`.

        Returns:
            ``(C, *S)``.
        """
        if not self.alignment.identity:
            array = _reoriented(array, self.alignment, scratch)
        return array if self.crop is None else self.crop.cut(array)

    def to_model(
        self,
        array: LazyArray,
        scratch: Path | None = None,
        prepare: Callable[[LazyArray], LazyArray] | None = None,
    ) -> LazyArray:
        """The file's array in model space: the very array where nothing changes.

        Args:
            array: ``(C, *S)``.
            scratch: ``.npy`` file of this array alone, where a lazy array whose rows become columns
                may lie, used again. None: in memory.
            prepare: changes the values before they are resampled; None: nothing.

        Returns:
            ``(C, *S)`` in model space.
        """
        array = self.to_native(array, scratch)
        array = array if prepare is None else prepare(array)
        return array if self.resampling is None else self.resampling.forward(array)

    def labels_to_model(self, labels: np.ndarray) -> np.ndarray:
        """Labels of the file's grid in model space.

        Args:
            labels: integers ``(1, *S)``.

        Returns:
            ``(1, *S)`` in model space, of the same type; no value that was not there.
        """
        native = np.asarray(self.to_native(labels))
        return native if self.resampling is None else self.resampling.forward_labels(native)

    def to_file(
        self, array: LazyArray, scratch: Path | None = None, fill: Sequence[float] = ()
    ) -> LazyArray:
        """The inverse of :meth:`to_model`, for any number of channels.

        Args:
            array: ``(K, *S)`` in model space.
            scratch: as of :meth:`to_model`.
            fill: value of each channel outside the box; empty: 0.

        Returns:
            ``(K, *S)`` in the order of the file; where the grid changes it is made as it is sliced,
            and the array must stay as it is as long as that is used.
        """
        back = Alignment(axes=(), flips=()) if self.alignment == SAME else self.alignment.inverse
        if not back.identity:
            array = _reoriented(array, back, scratch)
        if self.resampling is not None:
            array = resampling.resized(array, *self._backward(back))
        if self.crop is not None:
            box = self.crop if back == SAME else self.crop.moved(back)
            array = box.padded(array, fill or (0.0,) * len(array))
        return array

    def _backward(self, back: Alignment) -> tuple[tuple[AxisResize, ...], int | None]:
        """Resampling along the axes of the file, and the one whose slices are apart."""
        assert self.resampling is not None
        axes, coarse = self.resampling.backward, self.resampling.coarse_back
        if back == SAME:
            return axes, coarse
        flips = {n: n in back.flips for n in range(len(axes))}
        place = None if coarse is None else back.axes.index(coarse)
        return resampling.permuted(axes, back.axes, flips), place

    def record(self) -> dict[str, Any]:
        """The space as JSON, without its notes.

        Returns:
            A document for :func:`from_record`.
        """
        found = asdict(self)
        return {k: found[k] for k in ("alignment", "crop", "resampling", "spacing")}


def from_record(found: Mapping[str, Any]) -> ModelSpace:
    """The space of a JSON document.

    Args:
        found: of :meth:`ModelSpace.record`.

    Returns:
        The space.

    Raises:
        ValueError: for numbers that no space has, or that do not belong together.
    """
    crop, change = found.get("crop"), found.get("resampling")
    spacing = found.get("spacing")
    space = ModelSpace(
        alignment=Alignment(**_known(Alignment, found["alignment"])),
        crop=crop and Crop(**_known(Crop, crop)),
        resampling=change and Resampling(**_known(Resampling, change)),
        spacing=spacing and tuple(spacing),
    )
    for text in _faults(space):
        raise ValueError(f"space: {text}")
    return space


def _faults(space: ModelSpace) -> Iterator[str]:
    """What no space has, or what does not belong together."""
    turn, crop, change = space.alignment, space.crop, space.resampling
    if sorted(turn.axes) != list(range(len(turn.axes))):
        yield f"axes {list(turn.axes)} are no order of axes"
    if len(set(turn.flips)) < len(turn.flips) or not set(turn.flips) <= set(turn.axes):
        yield f"flips {list(turn.flips)} are not each one of the axes {list(turn.axes)}"
    if crop is not None:
        yield from _crop_faults(crop)
    if change is not None:
        yield from _resampling_faults(change)
    if None not in (crop, change) and crop.inner != change.old:  # type: ignore[union-attr]
        yield f"the box of {crop.inner} voxels is resampled as {change.old}"  # type: ignore[union-attr]
    if space.spacing and not all(0 < s < math.inf for s in space.spacing):
        yield f"spacing {list(space.spacing)} is not positive"
    sizes = (crop.size if crop else (), change.new if change else ())
    if len(counts := sorted({len(p) for p in (turn.axes, space.spacing or (), *sizes)} - {0})) > 1:
        yield f"it has {counts[0]} and {counts[1]} axes"


def _crop_faults(crop: Crop) -> Iterator[str]:
    if not len(crop.start) == len(crop.stop) == len(crop.size) > 0:
        yield "start, stop and size of the box have not one number for each axis"
    elif not all(0 <= a < b <= n for a, b, n in zip(crop.start, crop.stop, crop.size, strict=True)):
        yield f"the box {list(crop.start)} to {list(crop.stop)} does not lie in {list(crop.size)}"


def _resampling_faults(change: Resampling) -> Iterator[str]:
    dims = len(change.old)
    if not dims == len(change.new) > 0 or min((*change.old, *change.new)) < 1:
        yield f"{list(change.old)} voxels are resampled to {list(change.new)}"
    if not {change.coarse, change.coarse_back} <= {None, *range(dims)}:
        yield f"coarse axes {change.coarse} and {change.coarse_back}, where there are {dims}"
    orders = (change.image, change.labels, change.back)
    if not set(orders) <= set(resampling.ORDERS):
        yield f"spline orders {orders} are not of {resampling.ORDERS}"
    if change.rule not in resampling.RULES:
        yield f"rule {change.rule!r} is none of {', '.join(resampling.RULES)}"


def _known(kind: type, found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record in a document, lists as tuples; what else it holds is left."""
    names = {field.name for field in fields(kind)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in names}


# --- axes -----------------------------------------------------------------------------------------


def _reoriented(array: LazyArray, alignment: Alignment, scratch: Path | None) -> LazyArray:
    """The reoriented array: a copy in memory, or read as it is sliced.

    A lazy array whose rows remain rows is read as it is sliced; another is mapped from the file
    ``scratch``, which is written slab by slab.
    """
    if isinstance(array, np.ndarray) or scratch is None:
        return np.ascontiguousarray(alignment.apply(array[:]))
    shape, dtype = (array.shape[0], *alignment.size(array.shape[1:])), np.dtype(array.dtype)
    if alignment.axes[0] != 0:
        return _reoriented_on_disk(array, alignment, shape, scratch)
    flipped, rows = 0 in alignment.flips, array.shape[1]

    def make(first: int, end: int) -> np.ndarray:
        return alignment.apply(
            array[:, rows - end : rows - first] if flipped else array[:, first:end]
        )

    return Rows(shape, dtype, make)


def _reoriented_on_disk(
    array: LazyArray, alignment: Alignment, shape: tuple[int, ...], scratch: Path
) -> Rows:
    """The reoriented array from a file: rows of one become columns of the other."""
    dtype, axis = np.dtype(array.dtype), alignment.axes.index(0) + 1
    if scratch.is_file():  # of this very array: the caller names one file per array
        return npy.rows(scratch)
    with files.whole(scratch, int(np.prod(shape)) * dtype.itemsize) as temp:
        out = npy.room(temp, shape, dtype)
        for first, end in slabs(array):
            low, high = (
                (shape[axis] - end, shape[axis] - first)
                if axis - 1 in alignment.flips
                else (first, end)
            )
            out[(slice(None),) * axis + (slice(low, high),)] = alignment.apply(array[:, first:end])
        out.flush()
        del out
    return npy.rows(scratch)
