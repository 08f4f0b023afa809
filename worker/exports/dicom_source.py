"""What the DICOM exports share: the slide as a DICOM image, identities that never change, and who made the object.

Of a DICOM slide an export repeats what ties it to the slide and nothing else:

- the UIDs of study, series and instance, which are the reference, and the frame of reference with orientation, origin
  and pixel spacing, without which the mask would not lie on the slide;
- the UIDs of its specimens.

The identifiers of patient, container and specimen are hashes of ours, since theirs may be a medical record number and
what the barcode says. The price: a viewer that wants equal containers (Slim) does not lay the mask on the slide, and
an archive that keys its studies by patient (Orthanc) files the export in a second study, until who receives it puts
theirs in.
Everything else, from name to label text, is not even read: what must be present is empty, as its type 2 allows. A slide
that is not DICOM gets a made-up image in a frame of reference of its own.
"""

import hashlib
import itertools
import json
import math
import threading
import unicodedata
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import highdicom
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.filewriter import write_dataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage
from pydicom.valuerep import format_number_as_ds

from worker.artifacts import REPORT_JSON
from worker.errors import SlideUnreadable
from worker.exports.job_results import JobResults
from worker.exports.source_slide import slide_of

USE = "Research use only"
MAKER = "SlideReason"
NAMESPACE = uuid.UUID("5a1c9f52-6c55-5f0e-8d5e-1c2f0a7b9d34")
"""Of UIDs that belong to a slide, and of jobs whose id is not itself a UUID."""

IMPLEMENTATION = UID(f"2.25.{uuid.uuid5(NAMESPACE, 'implementation').int}")
CATEGORY, KIND = codes.SCT.SpatialAndRelationalConcept, codes.DCM.SelectedRegion
"""What a region is, whatever was asked: the question stands in the label, and no code can be guessed from its words."""

READ = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImageType",
    "PositionReferenceIndicator",
    "SpecimenDescriptionSequence", "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixOriginSequence",
    "ImageOrientationSlide", "SharedFunctionalGroupsSequence", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)  # fmt: skip
"""What is read of a slide's headers; what lies behind them (PS3.3's per-frame groups, pixels) is not."""

UNKNOWN = (
    "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
    "ReferringPhysicianName",
)  # fmt: skip
"""What must be present and may be empty (type 2)."""

PER_FRAME_GROUPS = 0x52009230
LARGE_BYTES = 2**20
THICKNESS_MM = 0.001
"""What a slide does not say and a segmentation must; nothing is computed from it."""

ORIENTATION = (0.0, -1.0, 0.0, -1.0, 0.0, 0.0)
"""Rows run along -y and columns along -x, as most scanners have it; seen from above, nothing is mirrored."""

_reading = threading.Lock()


@dataclass(frozen=True)
class DicomSource:
    """The job's slide as a DICOM whole slide image of level 0, without pixels.

    Attributes:
        image: headers as highdicom wants them of a source image; see the module for what they hold of a DICOM slide.
        exists: whether there is such an instance; False for a slide of another format.
        spacing_mm: (x, y) mm per level-0 pixel.
    """

    image: Dataset
    exists: bool
    spacing_mm: tuple[float, float]

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Where the total pixel matrix begins on the slide."""
        item = self.image.TotalPixelMatrixOriginSequence[0]
        return tuple(float(item.get(f"{axis}OffsetInSlideCoordinateSystem", 0)) for axis in "XYZ")


def read_source(results: JobResults) -> DicomSource:
    """Read the headers of the job's slide, or make them up where it is not DICOM.

    Args:
        results: of a finished job; a DICOM slide must still lie where it was.

    Returns:
        The slide's level 0.

    Raises:
        SlideUnreadable: the slide is DICOM, and gone, changed or broken: what is named must be what was looked at.
    """
    image, spacing = _made_up(results)
    if results.slide.vendor != "dicom":
        return DicomSource(image, False, spacing)
    with slide_of(results) as (slide, why):
        if slide is None:
            raise SlideUnreadable(
                f"exports to DICOM name the instance of a DICOM slide that the job has seen. {why}",
                field="slide",
                subject=results.job_id,
            )
    headers = _level_zero(results)
    try:
        with _reading, config.disable_value_validation():
            spacing = _repeat(headers, image, spacing)
    except Exception as error:  # whatever hostile headers lead pydicom into
        raise SlideUnreadable(
            f"the DICOM headers of the slide are broken ({type(error).__name__})", field="slide", subject=results.job_id
        ) from error
    return DicomSource(image, True, spacing)


def job_uid(results: JobResults, name: str) -> UID:
    """A UID of the job: the same for the same job and name."""
    try:
        namespace = uuid.UUID(results.job_id)
    except ValueError:
        namespace = uuid.uuid5(NAMESPACE, results.job_id)
    return UID(f"2.25.{uuid.uuid5(namespace, name).int}")


def made_by(results: JobResults) -> dict[str, Any]:
    """What SOP classes of highdicom are told of their maker, their series and their content."""
    model = _model(results)
    return {
        "manufacturer": MAKER,
        "manufacturer_model_name": line(model["name"]),
        "software_versions": _version(),
        "device_serial_number": line(model["revision"]) or "unknown",
        "instance_number": 1,
        "content_label": "RESEARCH_USE",
        "content_description": f"{USE}. Job {line(results.job_id)[:40]}",
        "specific_character_set": "ISO_IR 192",
    }


def algorithm_of(results: JobResults) -> highdicom.AlgorithmIdentificationSequence:
    """Which program and which model answered, with what settings."""
    model = _model(results)
    return highdicom.AlgorithmIdentificationSequence(
        name=MAKER,
        family=codes.DCM.ArtificialIntelligence,
        version=line(f"{_version()}, {model['name']} {model['revision']}"),
        source=MAKER,
        parameters={
            "model": str(model["name"]),
            "revision": str(model["revision"]),
            "mpp": f"{results.plan.mpp:g}",
            "threshold": f"{results.spec.threshold:g}",
            "min_region_um2": f"{results.spec.min_region_um2:g}",
        },
    )


def stamp(dataset: Dataset, results: JobResults) -> None:
    """Replace what highdicom takes from the clock and from chance, so that the same results give the same bytes."""
    finished = results.finished.astimezone(UTC)
    for name in ("InstanceCreation", "Series", "Content"):
        setattr(dataset, f"{name}Date", f"{finished:%Y%m%d}")
        setattr(dataset, f"{name}Time", f"{finished:%H%M%S.%f}")
    for equipment in dataset.ContributingEquipmentSequence:
        equipment.ContributionDateTime = f"{finished:%Y%m%d%H%M%S.%f}"
    dataset.TimezoneOffsetFromUTC = "+0000"
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION
    dataset.file_meta.ImplementationVersionName = MAKER.upper()


def line(text: Any, limit: int = 64) -> str:
    """A text as short DICOM text has it: one line, no backslash, at most `limit` characters."""
    plain = "".join(" " if unicodedata.category(char) in ("Cc", "Cs") or char == "\\" else char for char in str(text))
    plain = " ".join(plain.split())
    return plain if len(plain) <= limit else plain[: limit - 1].rstrip() + "…"


def encoded(dataset: Dataset) -> bytes:
    """A part of an object as the file has it: little endian, explicit VR, text as UTF-8."""
    with DicomBytesIO() as buffer:
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_dataset(buffer, dataset, ["utf8"])
        return buffer.getvalue()


def millimetres(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return format_number_as_ds(float(value) + 0.0)


def _model(results: JobResults) -> dict[str, Any]:
    """The report's model. It stands on lines of its own, so a report of a hundred thousand regions is not parsed."""
    with (results.folder / REPORT_JSON).open(encoding="utf-8") as lines:
        for text in lines:
            if text.startswith(' "model": {'):
                own = itertools.takewhile(lambda part: not part.startswith(" }"), lines)
                return json.loads("".join(["{", *own, "}"]))
    return results.report["model"]


@cache
def _version() -> str:
    try:
        return version("slidereason")
    except PackageNotFoundError:
        return "unknown"


def _made_up(results: JobResults) -> tuple[Dataset, tuple[float, float]]:
    """An image for a slide that has none, and its mm per level-0 pixel, (x, y)."""
    slide, plan = results.slide, results.plan
    identity = f"{results.spec.slide_id}/{slide.content_hash}"
    name = f"SR-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"
    spacing = (plan.mpp / plan.scale_x / 1000, plan.mpp / plan.scale_y / 1000)
    image = Dataset()
    image.SOPClassUID, image.Modality = VLWholeSlideMicroscopyImageStorage, "SM"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        setattr(image, keyword, _slide_uid(identity, keyword))
    image.PatientID = name
    for keyword in UNKNOWN:
        setattr(image, keyword, "")
    image.PositionReferenceIndicator = "SLIDE_CORNER"
    image.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = slide.width_px0, slide.height_px0
    image.NumberOfFrames, image.Rows, image.Columns = 1, 1, 1
    image.LossyImageCompression = "00"
    # the far corner is the slide's, so that all of it has positive coordinates
    origin = (slide.height_px0 * spacing[1], slide.width_px0 * spacing[0], 0.0)
    _place(image, ORIENTATION, origin, spacing, THICKNESS_MM)
    _contain(image, name, [(name, _slide_uid(identity, "specimen"))])
    return image, spacing


def _slide_uid(identity: str, name: str) -> UID:
    return UID(f"2.25.{uuid.uuid5(NAMESPACE, f'{identity}/{name}').int}")


def _place(image: Dataset, orientation, origin, spacing: tuple[float, float], thickness: float) -> None:
    """Write where the image lies on the slide; lengths in mm, spacing as (x, y)."""
    image.ImageOrientationSlide = [millimetres(value) for value in orientation]
    item = Dataset()
    for axis, value in zip("XYZ", origin, strict=True):
        setattr(item, f"{axis}OffsetInSlideCoordinateSystem", millimetres(value))
    image.TotalPixelMatrixOriginSequence = [item]
    measures = Dataset()
    measures.PixelSpacing = [millimetres(spacing[1]), millimetres(spacing[0])]
    measures.SliceThickness = millimetres(thickness)
    groups = Dataset()
    groups.PixelMeasuresSequence = [measures]
    image.SharedFunctionalGroupsSequence = [groups]


def _contain(image: Dataset, container: str, specimens: list[tuple[str, UID]]) -> None:
    """Write whose glass it is: identifiers alone."""
    image.ContainerIdentifier = container
    image.IssuerOfTheContainerIdentifierSequence = []
    kind = Dataset()
    kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = "433466003", "SCT", "Microscope slide"
    image.ContainerTypeCodeSequence = [kind]
    items = []
    for identifier, specimen_uid in specimens:
        item = Dataset()
        item.SpecimenIdentifier, item.SpecimenUID = identifier, specimen_uid
        item.IssuerOfTheSpecimenIdentifierSequence = []
        item.SpecimenPreparationSequence = []
        items.append(item)
    image.SpecimenDescriptionSequence = items


def _repeat(headers: Dataset, image: Dataset, spacing: tuple[float, float]) -> tuple[float, float]:
    """Replace the made-up by what the slide's headers say; returns mm per level-0 pixel, (x, y)."""
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        value = UID(str(headers[keyword].value))
        if not value.is_valid:
            raise ValueError(keyword)
        setattr(image, keyword, value)
    frame = UID(str(headers.get("FrameOfReferenceUID", "")))
    # one that is no UID cannot be repeated in a valid object: then the export has a frame of its own
    image.FrameOfReferenceUID = frame if frame.is_valid else _slide_uid(image.SOPInstanceUID, str(frame))
    image.PositionReferenceIndicator = line(headers.get("PositionReferenceIndicator") or "")
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if headers.get(keyword):
            setattr(image, keyword, headers[keyword].value)
    made = image.SpecimenDescriptionSequence[0]
    found = [UID(str(item.get("SpecimenUID", ""))) for item in headers.get("SpecimenDescriptionSequence") or ()]
    uids = [uid if uid.is_valid else made.SpecimenUID for uid in found] or [made.SpecimenUID]
    _contain(image, image.ContainerIdentifier, [(made.SpecimenIdentifier, uid) for uid in uids])
    return _repeat_place(headers, image, spacing)


def _repeat_place(headers: Dataset, image: Dataset, spacing: tuple[float, float]) -> tuple[float, float]:
    """Where the slide's headers say that it lies; as `_repeat`."""
    groups = headers.get("SharedFunctionalGroupsSequence") or [Dataset()]
    measures = (groups[0].get("PixelMeasuresSequence") or [Dataset()])[0]
    if measures.get("PixelSpacing"):
        spacing = (_number(measures.PixelSpacing[1]), _number(measures.PixelSpacing[0]))
        if min(spacing) <= 0:
            raise ValueError("PixelSpacing")
    thickness = _number(measures.SliceThickness) if measures.get("SliceThickness") else THICKNESS_MM
    orientation = [_number(value) for value in headers.get("ImageOrientationSlide") or ORIENTATION]
    if len(orientation) != 6:
        raise ValueError("ImageOrientationSlide")
    item = (headers.get("TotalPixelMatrixOriginSequence") or [Dataset()])[0]
    origin = [_number(item.get(f"{axis}OffsetInSlideCoordinateSystem") or 0) for axis in "XYZ"]
    _place(image, orientation, origin, spacing, thickness)
    return spacing


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _level_zero(results: JobResults) -> Dataset:
    """Headers of the instance whose pixels are the level 0 that the job has seen."""
    path, series = Path(results.spec.slide_path), None
    for headers in _instances(path):
        series = series or (headers.get("SeriesInstanceUID") if path.is_file() else None)
        size = (headers.get("TotalPixelMatrixColumns"), headers.get("TotalPixelMatrixRows"))
        kind = headers.get("ImageType") or ()
        if (
            size == (results.slide.width_px0, results.slide.height_px0)
            and headers.get("SOPClassUID") == VLWholeSlideMicroscopyImageStorage
            and (len(kind) < 3 or kind[2] == "VOLUME")
            and series in (None, headers.get("SeriesInstanceUID"))
        ):
            return headers
    raise SlideUnreadable(
        f"no DICOM instance of the slide has the {results.slide.width_px0} x {results.slide.height_px0} px that the "
        "job has seen, or its headers are broken",
        field="slide",
        subject=results.job_id,
    )


def _instances(path: Path) -> Iterator[Dataset]:
    """Headers of a DICOM file and those beside it, or of a folder's; what is no DICOM is passed over."""
    files = sorted(path.iterdir()) if path.is_dir() else itertools.chain([path], _beside(path))
    for file in files:
        headers = _headers(file) if file.is_file() else None
        if headers is not None:
            yield headers


def _beside(path: Path) -> Iterator[Path]:
    """The other files of its folder, listed only when they are asked for."""
    yield from (file for file in sorted(path.parent.iterdir()) if file != path)


def _headers(file: Path) -> Dataset | None:
    """`READ` of a file's headers; None when it is not DICOM, or cannot be read."""
    try:
        with file.open("rb") as stream, _reading, config.disable_value_validation():
            if stream.read(132)[128:] != b"DICM":
                return None
            # OpenSlide reads none that are deflated; inflating whatever somebody packed is nobody's gain
            if read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                return None
            stream.seek(0)
            found = read_partial(
                stream,
                stop_when=lambda tag, vr, length: tag >= PER_FRAME_GROUPS,
                defer_size=LARGE_BYTES,
                specific_tags=[Tag(keyword) for keyword in READ],
            )
            # values are turned from bytes when they are first asked for, which is here
            return Dataset({element.tag: element for element in found if element.keyword in READ})
    except Exception:  # whatever hostile bytes lead pydicom into
        return None
