"""The overlay as a DICOM Segmentation: one binary segment per query, tiled, empty tiles left out.

Frames are the chunks of the labels' finest level. highdicom writes the headers for one frame; the functional groups and
pixels of all of them are then written one by one, so that memory does not grow with the slide.

The segmentation begins where the slide's total pixel matrix begins, as the levels of a slide's pyramid do, and its
pixels are as many times as large as the overlay's are; so it lies on the slide in any viewer, also where the job was
given an `mpp_override`. A job that found nothing gives one empty frame: a segmentation has at least one, and "looked,
and found nothing" is an answer.

Source: DICOM PS3.3 A.51 and C.8.20; PS3.5 8.1.1 for the packing of bits.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import pack
from typing import BinaryIO, NamedTuple

import highdicom
import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from worker.colors import query_color
from worker.errors import TooLarge
from worker.exports.dicom_source import (
    CATEGORY,
    KIND,
    USE,
    DicomSource,
    algorithm_of,
    encoded,
    job_uid,
    line,
    made_by,
    millimetres,
    read_source,
    stamp,
)
from worker.exports.job_results import JobResults
from worker.pyramid import CHUNK_PX, has_shard, levels_of, open_level

TILE_BYTES = CHUNK_PX**2 // 8
MAX_BYTES = 2**32 - 2
"""Pixel data that is not compressed states its length in 32 bits."""

SERIES_NUMBER = 9001
SEQUENCE, ITEM, END = b"\x00\x52\x30\x92SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
"""Per-frame functional groups (5200,9230) of undefined length, an item, and where the sequence ends."""


class _Frame(NamedTuple):
    """Which tile of which query a frame holds."""

    query_index: int
    row: int
    col: int


def write_dicom_seg(results: JobResults, path: Path) -> None:
    """Write the regions of all queries as one DICOM Segmentation.

    Args:
        results: of a finished job; a DICOM slide must still lie where it was.
        path: the file. Segment i + 1 is query i; a pixel belongs to it where the overlay's label is not 0.

    Raises:
        SlideUnreadable: the slide is DICOM, and gone, changed or broken.
        TooLarge: the mask has more pixels than one object can hold, some 34 thousand millions.
    """
    source = read_source(results)
    with tempfile.TemporaryFile(dir=path.parent) as pixels:
        frames = _pack_frames(results, pixels)
        if not frames:
            frames = [_Frame(0, 0, 0)]
            pixels.write(bytes(TILE_BYTES))
        head = _head(results, source, len(frames))
        with path.open("wb") as out:
            dcmwrite(out, head, enforce_file_format=True)
            out.write(SEQUENCE)
            for item in _frame_items(head, frames):
                out.write(ITEM + pack("<I", len(item)) + item)
            out.write(END)
            pixels.seek(0)
            out.write(b"\xe0\x7f\x10\x00OB\0\0" + pack("<I", len(frames) * TILE_BYTES))
            shutil.copyfileobj(pixels, out, TILE_BYTES)


def _pack_frames(results: JobResults, pixels: BinaryIO) -> list[_Frame]:
    """Append the bits of every tile that holds a region to a file, by query, row and column; returns which they are."""
    frames = []
    for query_index in range(len(results.spec.queries)):
        for row, col, mask in _tiles(results, query_index):
            if (len(frames) + 1) * TILE_BYTES > MAX_BYTES:
                raise TooLarge(
                    f"the mask fills more than {len(frames)} tiles of {CHUNK_PX} px, the most that a DICOM "
                    "Segmentation holds; ask at a coarser mpp, or within a roi",
                    field="mpp",
                    subject=results.job_id,
                )
            pixels.write(np.packbits(mask, axis=None, bitorder="little").tobytes())
            frames.append(_Frame(query_index, row, col))
    return frames


def _tiles(results: JobResults, query_index: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(row, column, (512, 512) bool mask) of each tile that holds a region; beyond the overlay it is empty."""
    plan, name = results.plan, f"labels/{query_index}"
    labels = open_level(results.overlay, name, 0)
    per_shard = levels_of(plan)[0].shard_px // CHUNK_PX
    for row in range(-(-plan.height_px // CHUNK_PX)):
        for col in range(-(-plan.width_px // CHUNK_PX)):
            if not has_shard(results.overlay, name, 0, row // per_shard, col // per_shard):
                continue
            top, left = row * CHUNK_PX, col * CHUNK_PX
            inside = labels[top : top + CHUNK_PX, left : left + CHUNK_PX] > 0
            if inside.any():
                mask = np.zeros((CHUNK_PX, CHUNK_PX), bool)
                mask[: inside.shape[0], : inside.shape[1]] = inside
                yield row, col, mask


def _head(results: JobResults, source: DicomSource, frames: int) -> Dataset:
    """Everything but the frames: highdicom's object of one full tile, with what belongs to that tile taken out."""
    queries, plan = results.spec.queries, results.plan
    spacing = (source.spacing_mm[1] * plan.scale_y, source.spacing_mm[0] * plan.scale_x)
    measures = source.image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    head = highdicom.seg.Segmentation(
        source_images=[source.image],
        pixel_array=np.ones((1, CHUNK_PX, CHUNK_PX, len(queries)), np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[_segment(results, index) for index in range(len(queries))],
        series_instance_uid=job_uid(results, "seg/series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=job_uid(results, "seg"),
        series_description=f"{USE}: SlideReason regions",
        dimension_organization_type="TILED_SPARSE",
        pixel_measures=highdicom.PixelMeasuresSequence(spacing, float(measures.SliceThickness)),
        plane_positions=[highdicom.PlanePositionSequence("SLIDE", source.origin_mm, (1, 1))],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **made_by(results),
    )
    del head.PixelData, head.PerFrameFunctionalGroupsSequence
    head.NumberOfFrames = frames
    head.TotalPixelMatrixColumns, head.TotalPixelMatrixRows = plan.width_px, plan.height_px
    head.SegmentsOverlap = "NO" if len(queries) == 1 else "UNDEFINED"
    shared = head.SharedFunctionalGroupsSequence[0]
    organization = job_uid(results, "seg/dimensions")
    for item in (*head.DimensionOrganizationSequence, *head.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    head.PatientOrientation = ""  # of a slide nothing is known of it
    _refer(head, shared, source)
    stamp(head, results)
    return head


def _refer(head: Dataset, shared: Dataset, source: DicomSource) -> None:
    """Say once for all frames what they were derived from; a slide that is not DICOM has nothing to refer to."""
    if not source.exists:
        del head.SourceImageSequence, head.ReferencedSeriesSequence
        shared.DerivationImageSequence = []
        return
    image, derivation = Dataset(), Dataset()
    image.ReferencedSOPClassUID = source.image.SOPClassUID
    image.ReferencedSOPInstanceUID = source.image.SOPInstanceUID
    image.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    derivation.SourceImageSequence = [image]
    derivation.DerivationCodeSequence = [_code("113076", "Segmentation")]
    shared.DerivationImageSequence = [derivation]


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _segment(results: JobResults, query_index: int) -> Dataset:
    """One query as a segment."""
    query = results.spec.queries[query_index]
    segment = highdicom.seg.SegmentDescription(
        segment_number=query_index + 1,
        segment_label=line(query) or f"Query {query_index + 1}",
        segmented_property_category=CATEGORY,
        segmented_property_type=KIND,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm_of(results),
        tracking_uid=job_uid(results, f"seg/query/{query_index}"),
        tracking_id=line(f"{results.job_id}/{query_index}"),
        display_color=highdicom.color.CIELabColor.from_rgb(*query_color(query_index)),
    )
    segment.SegmentDescription = line(f"{USE}. {query}", 1024)
    return segment


def _frame_items(head: Dataset, frames: Sequence[_Frame]) -> Iterator[bytes]:
    """The functional groups of each frame, encoded: where it lies, and which segment it is of."""
    row_of = {row: index for index, row in enumerate(sorted({frame.row for frame in frames}), 1)}
    col_of = {col: index for index, col in enumerate(sorted({frame.col for frame in frames}), 1)}
    shared = head.SharedFunctionalGroupsSequence[0]
    place = _placer(head)
    for frame in frames:
        item, content, position = Dataset(), Dataset(), Dataset()
        content.DimensionIndexValues = [frame.query_index + 1, row_of[frame.row], col_of[frame.col]]
        item.FrameContentSequence = [content]
        for axis, value in zip("XYZ", place(frame), strict=True):
            setattr(position, f"{axis}OffsetInSlideCoordinateSystem", millimetres(value))
        position.ColumnPositionInTotalImagePixelMatrix = frame.col * CHUNK_PX + 1
        position.RowPositionInTotalImagePixelMatrix = frame.row * CHUNK_PX + 1
        item.PlanePositionSlideSequence = [position]
        # highdicom says it once for all where there is one segment
        if "SegmentIdentificationSequence" not in shared:
            segment = Dataset()
            segment.ReferencedSegmentNumber = frame.query_index + 1
            item.SegmentIdentificationSequence = [segment]
        yield encoded(item)


def _placer(head: Dataset):
    """A function from a frame to its corner on the slide, (x, y, z) in mm (PS3.3 C.7.6.2.1.1)."""
    start = head.TotalPixelMatrixOriginSequence[0]
    origin = np.array([float(start.get(f"{axis}OffsetInSlideCoordinateSystem", 0)) for axis in "XYZ"])
    directions = np.array([float(value) for value in head.ImageOrientationSlide]).reshape(2, 3)
    spacing = head.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    along_row, along_column = directions[0] * float(spacing[1]), directions[1] * float(spacing[0])
    return lambda frame: origin + frame.col * CHUNK_PX * along_row + frame.row * CHUNK_PX * along_column
