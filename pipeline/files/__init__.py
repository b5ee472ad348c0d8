"""Read and write image arrays with their geometry.

TIFF, OME-Zarr, NIfTI, MetaImage, NRRD, PNG, JPEG and npy are read and written, DICOM, GIF and BMP
only read. Every file is written whole or not at all. Arrays larger than memory are opened by
:func:`view` and written from :class:`Rows`, slab by slab.
"""

from pipeline.files.boxes import forget, with_box
from pipeline.files.documents import checked, parse, read_document, read_json, shown
from pipeline.files.durable import (
    DiskError,
    checksum,
    free_bytes,
    keeps_every_byte,
    named,
    nearest,
    refused,
    remove_stale_temps,
    require_room,
    require_writable,
    scratch,
    sha256,
    whole,
    write_bytes,
    write_json,
    write_text,
)
from pipeline.files.errors import FileError, absence, guarded, require_text
from pipeline.files.formats import Probe, dims_of, geometry, parts, probe, read, stored, view, write
from pipeline.files.generated import is_unchanged, require_replaceable, with_checksum
from pipeline.files.names import (
    INSTEAD,
    SUFFIXES,
    as_text,
    box_text,
    case_id,
    format_suffix,
    is_dicom_folder,
    is_folder,
    is_image,
    split_selection,
    stem,
    suffix,
)
from pipeline.files.pixels import LazyArray, Rows, row_bytes, slabs
from pipeline.files.tables import read_table

__all__ = [
    "INSTEAD",
    "SUFFIXES",
    "DiskError",
    "FileError",
    "LazyArray",
    "Probe",
    "Rows",
    "absence",
    "as_text",
    "box_text",
    "case_id",
    "checked",
    "checksum",
    "dims_of",
    "forget",
    "format_suffix",
    "free_bytes",
    "geometry",
    "guarded",
    "is_dicom_folder",
    "is_folder",
    "is_image",
    "is_unchanged",
    "keeps_every_byte",
    "named",
    "nearest",
    "parse",
    "parts",
    "probe",
    "read",
    "read_document",
    "read_json",
    "read_table",
    "refused",
    "remove_stale_temps",
    "require_replaceable",
    "require_room",
    "require_text",
    "require_writable",
    "row_bytes",
    "scratch",
    "sha256",
    "shown",
    "slabs",
    "split_selection",
    "stem",
    "stored",
    "suffix",
    "view",
    "whole",
    "with_box",
    "with_checksum",
    "write",
    "write_bytes",
    "write_json",
    "write_text",
]
