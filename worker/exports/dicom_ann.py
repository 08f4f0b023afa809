"""The regions as DICOM Microscopy Bulk Simple Annotations: one group of polygons per query.

Points are (column, row) of the slide's total pixel matrix at level 0, (0, 0) its upper left corner, as in the GeoJSON,
and as exact: doubles. These annotations know no holes, so a polygon is a region's outer ring, while its area is the
region's without its holes; the group's description says so. A region of several parts gives a polygon for each, and
each its part of the area.

Which region is annotation i stands in the group's description, a line each: there is no identifier for one annotation
in the standard, and a private one would be lost on the way. The measurement "Region label" says it once more, in case
a program takes a group apart: it is the overlay's label, from which the region's id follows.

Where the slide is not DICOM the referenced image is one that could exist: the same UID for the same slide, always.

Source: DICOM PS3.3 A.87 and C.37.1.
"""

import itertools
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import SEEK_END
from pathlib import Path
from struct import pack
from typing import Any, BinaryIO

import highdicom
import numpy as np
import shapely
from highdicom.ann import AnnotationGroup, Measurements, MicroscopyBulkSimpleAnnotations
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from worker.colors import query_color
from worker.errors import JobConflict, TooLarge
from worker.exports.dicom_source import (
    CATEGORY,
    KIND,
    USE,
    algorithm_of,
    encoded,
    job_uid,
    line,
    made_by,
    read_source,
    stamp,
)
from worker.exports.job_results import JobResults

SERIES_NUMBER = 9002
POINT_BYTES = 16
MAX_BYTES = 2**32 - 2
GROUPS, POINTS = 0x006A0002, 0x00660022
"""Annotation Group Sequence, and in it Double Point Coordinates Data."""

SEQUENCE, SEQUENCE_END = b"\x6a\x00\x02\x00SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\xdd\xe0\0\0\0\0"
ITEM, ITEM_END = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0"
POINTS_HEAD = b"\x66\x00\x22\x00OD\0\0"
"""As PS3.5 7.1.2 and 7.5 encode them, of undefined length."""

REGION_LABEL = Code("region-label", "99SLIDEREASON", "Region label")


@dataclass
class _Group:
    """The polygons of one query while they are gathered.

    Attributes:
        points: file of (n, 2) little-endian doubles, all polygons one after the other.
        lengths: points of each polygon.
        region_ids, labels, areas_um2, confidences: one of each per polygon.
    """

    points: BinaryIO
    lengths: list[int] = field(default_factory=list)
    region_ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    areas_um2: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)


def write_dicom_ann(results: JobResults, path: Path) -> None:
    """Write the outlines of all regions, with area (µm²) and certainty (%, the mean probability inside).

    Args:
        results: of a finished job; a DICOM slide must still lie where it was.
        path: the file. Queries without regions have no group.

    Raises:
        JobConflict: the job found no region; there must be one to annotate.
        SlideUnreadable: the slide is DICOM, and gone, changed or broken.
        TooLarge: the outlines of a query have more points than one group can hold, some 268 millions.
    """
    source = read_source(results)
    with ExitStack() as files:
        groups, points = [], []
        found = itertools.groupby(results.features(), lambda feature: feature["properties"]["metadata"]["query_index"])
        for query_index, features in found:
            group = _Group(files.enter_context(tempfile.TemporaryFile(dir=path.parent)))
            _gather(group, features, results)
            groups.append(_annotation_group(results, len(groups) + 1, query_index, group))
            points.append(group.points)
        if not groups:
            raise JobConflict(
                f"job {results.job_id} found no region, and DICOM annotations hold at least one; its DICOM "
                "Segmentation and its GeoJSON can be had, and say that nothing was found",
                subject=results.job_id,
            )
        annotations = MicroscopyBulkSimpleAnnotations(
            source_images=[source.image],
            annotation_coordinate_type="2D",
            annotation_groups=groups,
            series_instance_uid=job_uid(results, "ann/series"),
            series_number=SERIES_NUMBER,
            sop_instance_uid=job_uid(results, "ann"),
            series_description=f"{USE}: SlideReason regions",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **made_by(results),
        )
        stamp(annotations, results)
        _write(path, annotations, points)


def _write(path: Path, annotations: Dataset, points: Sequence[BinaryIO]) -> None:
    """Write the object, each group's points straight from their file: pydicom would hold a whole sequence in memory."""
    groups = annotations.AnnotationGroupSequence
    behind = Dataset({element.tag: element for element in annotations if element.tag > GROUPS})
    for tag in (GROUPS, *behind.keys()):
        del annotations[tag]
    with path.open("wb") as out:
        dcmwrite(out, annotations, enforce_file_format=True)
        out.write(SEQUENCE)
        for group, file in zip(groups, points, strict=True):
            size = file.seek(0, SEEK_END)
            file.seek(0)
            out.write(ITEM + encoded(Dataset({e.tag: e for e in group if e.tag < POINTS})))
            out.write(POINTS_HEAD + pack("<I", size))
            shutil.copyfileobj(file, out)
            out.write(encoded(Dataset({e.tag: e for e in group if e.tag > POINTS})) + ITEM_END)
        out.write(SEQUENCE_END + encoded(behind))


def _gather(group: _Group, features: Iterable[dict[str, Any]], results: JobResults) -> None:
    """Append the outer rings of a query's regions, one region in memory at a time."""
    size = 0
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        measured = feature["properties"]["measurements"]
        for part in shapely.get_parts(shape):
            # the last point repeats the first, which DICOM's polygons do not
            points = shapely.get_coordinates(part.exterior)[:-1].astype("<f8")
            size += len(points) * POINT_BYTES
            if size > MAX_BYTES:
                raise TooLarge(
                    f"the outlines have more than {MAX_BYTES // POINT_BYTES} points; ask at a coarser mpp",
                    field="mpp",
                    subject=results.job_id,
                )
            group.points.write(points.tobytes())
            group.lengths.append(len(points))
            group.region_ids.append(feature["id"])
            group.labels.append(feature["properties"]["metadata"]["label"])
            group.areas_um2.append(measured["Area µm^2"] * (part.area / shape.area if shape.area else 1.0))
            group.confidences.append(measured["Confidence"] * 100)


def _annotation_group(results: JobResults, number: int, query_index: int, group: _Group) -> AnnotationGroup:
    """One query as a group, with three points in place of its own, which stay in their file."""
    query = results.spec.queries[query_index]
    corner = [np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])]
    annotation = AnnotationGroup(
        number=number,
        uid=job_uid(results, f"ann/query/{query_index}"),
        label=line(query) or f"Query {query_index + 1}",
        description=_description(query, group),
        annotated_property_category=CATEGORY,
        annotated_property_type=KIND,
        graphic_type="POLYGON",
        graphic_data=corner,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm_of(results),
        display_color=highdicom.color.CIELabColor.from_rgb(*query_color(query_index)),
    )
    starts = np.concatenate([[0], np.cumsum(group.lengths)[:-1]]) * 2 + 1
    annotation.NumberOfAnnotations = len(group.lengths)
    annotation.LongPrimitivePointIndexList = starts.astype("<u4").tobytes()
    annotation.MeasurementsSequence = [
        Measurements(codes.SCT.Area, np.array(group.areas_um2), codes.UCUM.SquareMicrometer),
        Measurements(codes.DCM.CertaintyOfFinding, np.array(group.confidences), codes.UCUM.Percent),
        Measurements(REGION_LABEL, np.array(group.labels, float), codes.UCUM.NoUnits),
    ]
    return annotation


def _description(query: str, group: _Group) -> str:
    """What the group holds and does not hold, and which region each annotation is."""
    words = (
        f"{USE}. Question: {line(query, 4096)}",
        "Polygons are the regions' outer rings; holes cannot be represented here, and areas are without them.",
        "Region ids, in the order of the annotations:",
    )
    return "\r\n".join([*words, *group.region_ids])
