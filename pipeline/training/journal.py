"""Records of a fold: a line an epoch, log.jsonl, TensorBoard, pictures of a held-out patch."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from pipeline import colours, files
from pipeline.metrics.names import display
from pipeline.progress import clock
from pipeline.runs import FoldFolder

LEGIBLE = 256
"""Height in pixels to which smaller previews are enlarged, by a whole number of times."""

GAP = 4
"""Pixels of white between two panels of a preview."""

RECENT = 10
"""Epochs that the time left is estimated from: some with and some without validation."""


def time_left(seconds: Sequence[float], epochs: int) -> float:
    """Estimate the time until training ends, from the last epochs.

    Args:
        seconds: of each epoch that is done.
        epochs: all epochs.

    Returns:
        Seconds; NaN where no epoch is done.

    Example:
        >>> time_left([9.0] + [2.0] * 10, 14)
        6.0
    """
    recent = seconds[-RECENT:]
    return sum(recent) / len(recent) * (epochs - len(seconds)) if recent else math.nan


class Journal:
    """Writer of one fold's records.

    Args:
        folder: the fold's folder.
        epochs: all epochs of the training.
        history: records of the epochs that a resumed fold has done; its files are rewritten from
            them.
        names: names of classes, for lines that people read; ``log.jsonl`` and TensorBoard keep
            the keys.
    """

    def __init__(
        self,
        folder: Path,
        epochs: int,
        history: Sequence[Mapping[str, Any]] = (),
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.fold, self.epochs, self.names = FoldFolder(folder), epochs, names or {}
        self.seconds: list[float] = []
        files.write_text(self.fold.log_file, "".join(_json_line(r) for r in history))
        files.write_text(self.fold.text_log, "".join(self.line(r) + "\n" for r in history))
        self.open = contextlib.ExitStack()
        with files.named(self.fold.tensorboard):
            self.fold.tensorboard.mkdir(exist_ok=True)
            name = self.open.enter_context(files.as_text(self.fold.tensorboard))
            self.board = SummaryWriter(name, purge_step=len(history))

    def epoch(self, record: Mapping[str, Any]) -> str:
        """Append the record of an epoch to all files.

        Args:
            record: values by name, with ``epoch`` (from 0), ``lr``, ``seconds`` and
                ``train_loss``.

        Returns:
            Its line of training_log.txt.
        """
        line = self.line(record)
        self._append(self.fold.log_file, _json_line(record))
        self.note(line)
        with files.named(self.fold.tensorboard):
            for key, value in record.items():
                if key != "epoch" and isinstance(value, int | float) and math.isfinite(value):
                    self.board.add_scalar(key, value, record["epoch"])
            self.board.flush()
        return line

    def _append(self, path: Path, text: str) -> None:
        with files.named(path, len(text)), path.open("a", encoding="utf-8") as log:
            log.write(text)

    def note(self, line: str) -> None:
        """Append a line to training_log.txt.

        Args:
            line: without a line break.
        """
        self._append(self.fold.text_log, line + "\n")

    def line(self, record: Mapping[str, Any]) -> str:
        """The line of an epoch; to be called once an epoch, in order.

        Args:
            record: as of :meth:`epoch`.

        Returns:
            The line, such as
            ``Epoch 3/300: Train Loss: 0.1204, Val Loss: 0.0987, ..., about 1:02:11 left``.
        """
        self.seconds.append(record["seconds"])
        parts = [f"Train Loss: {record['train_loss']:.4f}"]
        parts += [
            f"{titled(k, self.names)}: {v:.4f}"
            for k, v in record.items()
            if k.startswith("val_") and isinstance(v, float)
        ]
        if isinstance(record.get("foreground_share"), float) and math.isfinite(
            record["foreground_share"]
        ):
            parts.append(f"Foreground: {record['foreground_share']:.1%}")
        parts.append(f"LR: {record['lr']:.2e}, {record['seconds']:.1f} s")
        left = time_left(self.seconds, self.epochs)
        parts += [f"about {clock(left)} left"] if left >= 0.5 else []
        return f"Epoch {record['epoch'] + 1}/{self.epochs}: " + ", ".join(parts)

    def preview(self, epoch: int, panels: Sequence[np.ndarray]) -> None:
        """Write panels side by side, enlarged until legible, to ``previews/`` and TensorBoard.

        Args:
            epoch: counted from 0.
            panels: pictures ``(Y, X, 3)`` of one size, in [0, 1].
        """
        times = max(1, LEGIBLE // panels[0].shape[0])
        parts = [colours.to_bytes(p).repeat(times, 0).repeat(times, 1) for p in panels]
        gap = np.full((len(parts[0]), GAP, 3), 255, np.uint8)
        picture = np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)
        files.write(self.fold.previews / f"epoch_{epoch + 1:04d}.png", np.moveaxis(picture, -1, 0))
        with files.named(self.fold.tensorboard):
            self.board.add_image("held-out patch", picture, epoch, dataformats="HWC")

    def close(self) -> None:
        """Close TensorBoard's file."""
        with self.open, files.named(self.fold.tensorboard):
            self.board.close()


def titled(key: str, names: Mapping[int, str]) -> str:
    """Write a key of an epoch's record in words.

    Args:
        key: ``val_dice_1``, for instance.
        names: names of classes by number.

    Returns:
        Words with capital first letters; names of classes stay as they are.

    Example:
        >>> titled("val_surface_dice", {}), titled("val_dice_1", {1: "CA1 head"})
        ('Val Surface Dice', 'Val Dice CA1 head')
    """
    shown = display(key, names)
    metric, name = (shown, "") if shown == key else shown.split(" ", 1)
    return f"{metric.replace('_', ' ').title()} {name}".rstrip()


def _json_line(record: Mapping[str, Any]) -> str:
    """One line of log.jsonl; numbers that are not finite become null."""
    plain = {
        k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in record.items()
    }
    return json.dumps(plain) + "\n"
