"""A sheet of paper to draw pictures, text and curves on, written as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline import colours, files
from pipeline.colours import Colour

PAPER, INK, SOFT, LINE = (255, 255, 255), (29, 33, 38), (96, 103, 111), (222, 220, 214)
"""Colours of paper, text, titles of axes, and grid lines."""

FINE = 3
"""Text and lines are drawn so many times larger, and reduced: smooth edges."""

HEAVY = 300_000
"""Bytes above which a picture is written with 256 colours."""


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


class Canvas:
    """A white sheet; positions and sizes are pixels of the written picture.

    Args:
        width: of the sheet.
        height: of the sheet.
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._sheet = Image.new("RGB", (width * FINE, height * FINE), PAPER)
        self._draw = ImageDraw.Draw(self._sheet)
        self._pictures: list[tuple[Image.Image, tuple[int, int]]] = []

    def text(
        self, at: tuple[float, float], words: str, size: int, ink: Colour = INK, anchor: str = "ls"
    ) -> float:
        """Write one line.

        Args:
            at: position of the anchor.
            words: the text.
            size: of the font.
            ink: colour.
            anchor: as Pillow names it: ``ls`` is the left end of the base line.

        Returns:
            Width of the text.
        """
        x, y = (v * FINE for v in at)
        self._draw.text((x, y), words, fill=ink, font=_font(size * FINE), anchor=anchor)
        return text_width(words, size)

    def line(self, points: Sequence[tuple[float, float]], ink: Colour, width: float = 1) -> None:
        """Draw a line through points.

        Args:
            points: at least two.
            ink: colour.
            width: of the line.
        """
        scaled = [(x * FINE, y * FINE) for x, y in points]
        self._draw.line(scaled, fill=ink, width=max(1, round(width * FINE)), joint="curve")

    def dot(self, at: tuple[float, float], ink: Colour, radius: float) -> None:
        """Draw a filled circle.

        Args:
            at: its centre.
            ink: colour.
            radius: of the circle.
        """
        (x, y), r = (v * FINE for v in at), radius * FINE
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)

    def square(self, at: tuple[float, float], side: float, ink: Colour) -> None:
        """Draw a filled square with round corners.

        Args:
            at: its upper left corner.
            side: of the square.
            ink: colour.
        """
        x, y = (v * FINE for v in at)
        box = (x, y, x + side * FINE, y + side * FINE)
        self._draw.rounded_rectangle(box, radius=3 * FINE, fill=ink)

    def picture(self, at: tuple[float, float], array: np.ndarray, size: tuple[int, int]) -> None:
        """Paste a picture: enlarged by repeating pixels, reduced by averaging.

        Args:
            at: upper left corner.
            array: ``(Y, X, 3)`` in 0 ... 1.
            size: width and height that it gets.
        """
        image = Image.fromarray(colours.to_bytes(array))
        larger = size[0] >= image.width
        way = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
        self._pictures.append((image.resize(size, way), (round(at[0]), round(at[1]))))

    def save(self, out: Path) -> Path:
        """Write the sheet.

        Args:
            out: a PNG file.

        Returns:
            Its path.

        Raises:
            UserError: where it cannot be written.
        """
        sheet = self._sheet.resize(self.size, Image.Resampling.LANCZOS)
        for image, at in self._pictures:
            sheet.paste(image, at)
        data = _png(sheet)
        if len(data) > HEAVY:
            data = _png(sheet.quantize(256, dither=Image.Dither.NONE))
        files.write_bytes(out, data)
        return out


def text_width(words: str, size: int) -> float:
    """Width of a line of text.

    Args:
        words: the text.
        size: of the font.

    Returns:
        Pixels.
    """
    return _font(size * FINE).getlength(words) / FINE


def shortened(words: str, size: int, room: float) -> str:
    """A text that fits, its middle left out where it is too long.

    Args:
        words: the text.
        size: of the font.
        room: pixels.

    Returns:
        The text, or its ends.
    """
    if text_width(words, size) <= room:
        return words
    keep = len(words) - 4
    while keep > 2 and text_width(words[: keep // 2] + "..." + words[-keep // 2 :], size) > room:
        keep -= 1
    return words[: keep // 2] + "..." + words[-(keep // 2) :]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()
