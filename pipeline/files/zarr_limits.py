"""Limits on what a Zarr may declare.

Only codecs that turn bytes into numbers, chunks of a sane size, and files of its own folder are
accepted. Chunks are decoded to the size that they declare and no further.
"""

from __future__ import annotations

import bz2
import lzma
import math
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
from zarr.storage import LocalStore

from pipeline.files.errors import FileError
from pipeline.files.limits import SLACK, check_memory, check_values

LARGEST = 2**26
"""Most bytes of a metadata file: consolidated ones of large plates have a few MiB."""

FEWEST = 100_000
"""Chunks of any size that an array may have."""

SMALLEST = 512
"""Voxels that a chunk must have in an array of more than FEWEST chunks.

They are 8x8x8: each chunk costs a file and a task.
"""

_V2 = (
    "zlib",
    "gzip",
    "bz2",
    "lzma",
    "blosc",
    "zstd",
    "lz4",
    "delta",
    "fixedscaleoffset",
    "shuffle",
    "packbits",
    "astype",
)
_MORE = (
    "quantize",
    "bitround",
    "crc32",
    "crc32c",
    "base64",
    "adler32",
    "fletcher32",
    "jenkins_lookup3",
    "pcodec",
    "zfpy",
)
CODECS = frozenset((*_V2, *_MORE, "bytes", "endian", "transpose", "sharding_indexed"))
"""Codecs of numbers. Others make Python objects, and one of them (pickle) runs code."""

_NAMES = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


def check_metadata(path: Path, node: str = "") -> None:
    """Check the metadata files of a node.

    Args:
        path: Zarr folder.
        node: path of the node inside it; empty: its root.

    Raises:
        FileError: where one is no regular file, or larger than LARGEST.
    """
    for name in _NAMES:
        file = os.path.join(path, node, name)
        try:
            found = os.stat(file)
        except (FileNotFoundError, NotADirectoryError):
            continue
        size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            raise FileError(
                path,
                f"holds {os.path.join(node, name)}, which is no regular file",
                "Copy it again",
            )
        if size > LARGEST:
            raise FileError(
                path,
                f"has a metadata file {os.path.join(node, name)} of {size} bytes; {LARGEST} are"
                " the most",
            )


def check_array(path: Path, array: Any, store: Folder) -> None:
    """Check that an array can be read in bounded time and memory, and bound its decoders.

    Args:
        path: Zarr folder.
        array: the ``zarr.Array``; its decoders are limited to the declared size of a chunk.
        store: store of the array; its ``most`` is set to the largest size of a chunk.

    Raises:
        FileError: for unknown codecs, and for chunks that are too many, too small or too large.
    """
    shape = tuple(int(n) for n in array.shape)
    check_values(path, shape, _dtype(path, array))
    shapes = list(_chunk_shapes(path, array))
    for edges in shapes:
        if len(edges) != len(shape) or min(edges, default=1) < 1:
            raise FileError(path, f"has chunks of shape {edges} for an array of shape {shape}")
    smallest = math.prod(min(n, size) for n, size in zip(shapes[-1], shape, strict=True))
    chunks = math.prod(-(-size // n) for n, size in zip(shapes[-1], shape, strict=True))
    if chunks > FEWEST and smallest < SMALLEST:
        problem = (
            f"consists of {chunks} chunks of {smallest} voxels; more than {FEWEST} must have"
            f" {SMALLEST} each"
        )
        raise FileError(path, problem, "Write it again with larger chunks, such as 64x64x64")
    for edges in shapes:
        check_memory(path, edges, array.dtype, "chunks")
    itemsize = array.dtype.itemsize
    store.most = (
        2 * math.prod(shapes[0]) * itemsize
        + 32 * math.prod(-(-a // b) for a, b in zip(shapes[0], shapes[-1], strict=True))
        + SLACK
    )
    _bound(
        array.async_array.codec_pipeline,
        [2 * math.prod(edges) * itemsize + SLACK for edges in shapes],
    )


def _dtype(path: Path, array: Any) -> Any:
    """Dtype of an array, refusing one that numpy does not have."""
    dtype = array.dtype
    if not hasattr(dtype, "kind"):
        raise FileError(
            path, f"holds {dtype} values"[:100], "Convert it to an integer or real number type"
        )
    return dtype


def _chunk_shapes(path: Path, array: Any) -> Iterator[Sequence[int]]:
    """Shapes of what lies in one file, and of the chunks in shards, the smallest last.

    Raises FileError for codecs that are not known.
    """
    metadata = array.metadata
    if array.metadata.zarr_format == 2:
        for codec in (
            *(metadata.filters or ()),
            *([metadata.compressor] if metadata.compressor else ()),
        ):
            _check_codec(path, str(getattr(codec, "codec_id", "?")))
            types = [
                getattr(codec, name, None)
                for name in ("dtype", "astype", "encode_dtype", "decode_dtype")
            ]
            if any(getattr(t, "itemsize", 1) > 16 for t in types):
                raise FileError(
                    path,
                    f"has a filter {codec.codec_id!r} of values that are no numbers",
                    "Write it again without filters",
                )
        yield tuple(int(n) for n in metadata.chunks)
        return
    yield tuple(int(n) for n in metadata.chunk_grid.chunk_shape)
    codecs: Any = metadata.codecs
    for _ in range(8):  # shards in shards
        inner = None
        for codec in codecs:
            _check_codec(path, str(codec.to_dict().get("name", "?")))
            inner = codec if hasattr(codec, "index_codecs") else inner
        if inner is None:
            return
        yield tuple(int(n) for n in inner.chunk_shape)
        codecs = inner.codecs
    raise FileError(
        path, "has shards in shards, more than 8 deep", "Write it again with one level of shards"
    )


def _check_codec(path: Path, name: str) -> None:
    """Raise FileError for a codec that is not in CODECS."""
    if name.removeprefix("numcodecs.") not in CODECS:
        problem = (
            f"is encoded with {name!r}"[:80] + ", which is no codec of numbers that is known here"
        )
        raise FileError(path, problem, "Write it again, compressed with zstd, blosc or gzip")


def _check_file(path: Path, key: str, most: int, part: Any) -> None:
    """Raise FileError for a file inside the folder that cannot be read safely.

    It must be a regular file of at most ``most`` bytes that holds the range ``part``.
    """
    try:
        found = os.stat(os.path.join(path, key))
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(found.st_mode):
        return
    if not stat.S_ISREG(found.st_mode):
        raise FileError(
            path, f"has a chunk or description {key} that is no regular file", "Copy it again"
        )
    start, end = getattr(part, "start", 0), getattr(part, "end", 0)
    if not 0 <= start <= end <= found.st_size:
        raise FileError(
            path, f"has a shard {key} of {found.st_size} bytes, whose index leads to byte {end}"
        )
    if found.st_size > max(most, LARGEST):
        raise FileError(
            path,
            f"has a chunk {key} of {found.st_size} bytes, where {most} are the most for its size",
        )


class Folder(LocalStore):
    """A store that reads regular files only, and of chunks only as many bytes as they may have."""

    most: int = LARGEST
    """Most bytes of a chunk."""

    def _check(self, key: str, part: Any = None) -> None:
        _check_file(self.root, key, self.most, part)

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Read a value after its file was checked, see ``LocalStore.get``.

        Args:
            key: path of the file inside the folder.
            prototype: kind of buffer to return.
            byte_range: bytes to read; None: all.

        Returns:
            The buffer; None where there is no file.

        Raises:
            FileError: where the file is not regular, too large, or does not hold ``byte_range``.
        """
        self._check(key, byte_range)
        return await super().get(key, prototype, byte_range)

    def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
        """Read a value as :meth:`get` does, outside an event loop.

        Args:
            key: path of the file inside the folder.
            prototype: kind of buffer to return.
            byte_range: bytes to read; None: all.

        Returns:
            The buffer; None where there is no file.

        Raises:
            FileError: as :meth:`get`.
        """
        self._check(key, byte_range)
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        """Read ranges of several values, each checked as by :meth:`get`.

        Args:
            prototype: kind of buffer to return.
            key_ranges: pairs of key and byte range.

        Returns:
            One buffer for each pair; None where there is no file.

        Raises:
            FileError: as :meth:`get`.
        """
        ranges = list(key_ranges)
        for key, part in ranges:
            self._check(key, part)
        return await super().get_partial_values(prototype, ranges)


def _bound(pipeline: Any, most: Sequence[int]) -> None:
    """Limit the bytes that the decoders of a pipeline may make, those of its shards included."""
    codecs = list(pipeline) if hasattr(pipeline, "__iter__") else []
    for codec in codecs:
        if hasattr(codec, "index_codecs") and len(most) > 1:
            _bound(
                codec.codec_pipeline if hasattr(codec, "codec_pipeline") else codec.codecs, most[1:]
            )
        for inner in (
            getattr(codec, name, None)
            for name in ("compressor", "_gzip_codec", "_zstd_codec", "_blosc_codec", "_codec")
        ):
            if inner is not None and hasattr(inner, "codec_id"):
                _bound_codec(inner, most[0])


def _bound_codec(codec: Any, most: int) -> None:
    """Replace ``decode`` of a codec by one that makes at most ``most`` bytes."""
    name, given = str(codec.codec_id), codec.decode
    if name in _STREAMS:
        codec.decode = lambda buf, out=None: _decoded(codec, buf, most)
    elif name in _DECLARED_SIZE:

        def decode(buf: Any, out: Any = None) -> Any:
            data = memoryview(buf).cast("B")
            announced = _DECLARED_SIZE[name](bytes(data[:32]))
            if name == "blosc":
                _check_blosc(data)
            if announced is None:  # a zstd frame of unknown length
                return imagecodecs.zstd_decode(bytes(buf), out=most)
            if announced > most:
                raise ValueError(
                    f"a chunk announces {announced} bytes, where {most} are the most for its size"
                )
            return given(buf, out)

        codec.decode = decode


def _check_blosc(data: memoryview) -> None:
    """Raise ValueError for less data than its header declares.

    The decoder trusts the header and would read memory behind the data.

    Source: c-blosc 1.21, README_CHUNK_FORMAT.rst (16 bytes: versions, flags, typesize, nbytes,
    blocksize, cbytes).
    """
    announced = int.from_bytes(data[12:16], "little") if len(data) >= 16 else 16
    if announced > len(data) or announced < 16:
        raise ValueError(
            f"a chunk has {len(data)} bytes, of which its header announces {announced}"
        )


_STREAMS: Mapping[str, Callable[[Any], Any]] = {
    "zlib": lambda codec: zlib.decompressobj(),
    "gzip": lambda codec: zlib.decompressobj(31),
    "bz2": lambda codec: bz2.BZ2Decompressor(),
    "lzma": lambda codec: lzma.LZMADecompressor(
        codec.format, filters=codec.filters if codec.format == lzma.FORMAT_RAW else None
    ),
}
"""Decoders that read a stream piece by piece, by codec."""

MEMBERS, MEMBER = 10_000, 2**12
"""Concatenated streams of a chunk, and bytes of the chunk that allow one more.

bgzip makes one of each 64 KiB.
"""

PIECE = 2**17
"""Bytes that a decoder is given at a time, because it copies what remains."""


def _decoded(codec: Any, buf: Any, most: int) -> bytes:
    """The bytes of a compressed chunk, at most ``most``."""
    data, parts, total, position = memoryview(buf).cast("B"), [], 0, 0
    for _ in range(MEMBERS + most // MEMBER):
        decoder = _STREAMS[codec.codec_id](codec)
        while not decoder.eof:
            piece = data[position : position + PIECE]
            if not piece:
                raise ValueError("a chunk is cut off")
            parts.append(decoder.decompress(piece, most - total + 1))
            total += len(parts[-1])
            if total > most:
                raise ValueError(
                    f"a chunk holds more than the {most} bytes that are the most for its size"
                )
            position += len(piece) - len(decoder.unused_data)
        position = len(data) if codec.codec_id == "zlib" else _skip_zeros(data, position)
        if position == len(data):
            return parts[0] if len(parts) == 1 else b"".join(parts)
    raise ValueError(
        f"a chunk of at most {most} bytes consists of more than {MEMBERS + most // MEMBER}"
        " compressed streams"
    )


def _skip_zeros(data: memoryview, position: int) -> int:
    """End of the padding that begins at ``position``."""
    while position < len(data):
        piece = bytes(data[position : position + PIECE])
        rest = piece.lstrip(b"\0")
        position += len(piece) - len(rest)
        if rest:
            break
    return position


def _zstd_content_size(head: bytes) -> int | None:
    """Content size of a zstd frame (RFC 8878, section 3.1.1); None: not declared."""
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 20:
        return 0
    kind = head[4]
    position = 5 + (0 if kind & 32 else 1) + (0, 1, 2, 4)[kind & 3]
    length = (1 if kind & 32 else 0, 2, 4, 8)[kind >> 6]
    if not length:
        return None
    return int.from_bytes(head[position : position + length], "little") + (
        256 if length == 2 else 0
    )


_DECLARED_SIZE: Mapping[str, Callable[[bytes], int | None]] = {
    "zstd": _zstd_content_size,
    "blosc": lambda head: int.from_bytes(head[4:8], "little"),
    "lz4": lambda head: int.from_bytes(head[:4], "little"),
}
"""Decoded size by the first bytes of a chunk, by codec; None: not declared."""
