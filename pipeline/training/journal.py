"""What a fold tells while it trains: a line an epoch, log.jsonl, TensorBoard, and a picture of a
fixed held-out patch.
"""

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
"""Pixels that a preview is at least about high."""

GAP = 4
"""Pixels of white between two panels of a preview."""

RECENT = 10
"""Epochs by which the time left is judged: enough to hold some with and some without validation."""


def time_left(seconds: Sequence[float], epochs: int) -> float:
    """Seconds that the rest of ``epochs`` takes after those that took ``seconds`` each, if it is
    like the last ones.

    >>> time_left([9.0] + [2.0] * 10, 14)
    6.0
    """
    recent = seconds[-RECENT:]
    return sum(recent) / len(recent) * (epochs - len(seconds)) if recent else math.nan


class Journal:
    """Writer of one fold's records.

    ``history`` is what a resumed run already knows: the files are laid anew from it.

    ``names`` of classes stand in lines that people read; ``log.jsonl`` and TensorBoard keep the
    keys.
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
        """Append one epoch everywhere; returns its line."""
        line = self.line(record)
        self._append(self.fold.log_file, _json_line(record))
        self.note(line)
        with files.named(self.fold.tensorboard):
            for key, value in record.items():
                if (
                    key not in ("epoch",)
                    and isinstance(value, int | float)
                    and math.isfinite(value)
                ):
                    self.board.add_scalar(key, value, record["epoch"])
            self.board.flush()
        return line

    def _append(self, path: Path, text: str) -> None:
        with files.named(path, len(text)), path.open("a", encoding="utf-8") as log:
            log.write(text)

    def note(self, line: str) -> None:
        """One line in training_log.txt."""
        self._append(self.fold.text_log, line + "\n")

    def line(self, record: Mapping[str, Any]) -> str:
        """``Epoch 3/300: Train Loss: 0.1204, Val Loss: 0.0987, Val Dice: 0.4523, ..., about 1:02:11
        left``; called once an epoch, in order.
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
        """Panels ``(Y, X, 3)`` in [0, 1] side by side, enlarged until they are legible, to
        ``previews/`` and TensorBoard.
        """
        times = max(1, LEGIBLE // panels[0].shape[0])
        parts = [colours.to_bytes(p).repeat(times, 0).repeat(times, 1) for p in panels]
        gap = np.full((len(parts[0]), GAP, 3), 255, np.uint8)
        picture = np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)
        files.write(self.fold.previews / f"epoch_{epoch + 1:04d}.png", np.moveaxis(picture, -1, 0))
        with files.named(self.fold.tensorboard):
            self.board.add_image("held-out patch", picture, epoch, dataformats="HWC")

    def close(self) -> None:
        with self.open, files.named(self.fold.tensorboard):
            self.board.close()


def titled(key: str, names: Mapping[int, str]) -> str:
    """
    >>> titled("val_surface_dice", {}), titled("val_dice_1", {1: "CA1 head"})
    ('Val Surface Dice', 'Val Dice CA1 head')
    """
    shown = display(key, names)
    metric, name = (shown, "") if shown == key else shown.split(" ", 1)
    return f"{metric.replace('_', ' ').title()} {name}".rstrip()


def _json_line(record: Mapping[str, Any]) -> str:
    plain = {
        k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in record.items()
    }
    return json.dumps(plain) + "\n"
