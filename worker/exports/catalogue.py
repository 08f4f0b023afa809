"""The foreign forms a finished job's results can be had in. Names only: whoever reads this loads none of their code."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker.exports.job_results import JobResults

FOLDER = "exports"
"""Below a job's artifacts."""


@dataclass(frozen=True)
class Export:
    """One form.

    Attributes:
        name: in the URL, and of its unit of work.
        file_name: under which it is kept and downloaded.
        media_type: of the file.
        title: for people.
        made_by: `module:function` that takes (JobResults, path) and writes the file, the same bytes each time.
    """

    name: str
    file_name: str
    media_type: str
    title: str
    made_by: str

    @property
    def key(self) -> str:
        """Where the file lies among the job's artifacts."""
        return f"{FOLDER}/{self.file_name}"

    def load(self) -> Callable[[JobResults, Path], None]:
        """The function that writes it."""
        module, _, function = self.made_by.partition(":")
        return getattr(importlib.import_module(module), function)


EXPORTS = {
    export.name: export
    for export in (
        Export("csv", "regions.csv", "text/csv; charset=utf-8", "Measurements", "worker.exports.table:write_csv"),
        Export("pdf", "report.pdf", "application/pdf", "Report as PDF", "worker.exports.pdf:write_pdf"),
        Export(
            "markdown", "report.md", "text/markdown; charset=utf-8", "Report as Markdown",
            "worker.exports.markdown:write_markdown",
        ),
        Export("png", "overview.png", "image/png", "Picture with outlines", "worker.exports.picture:write_png"),
        Export(
            "fhir", "report.fhir.json", "application/fhir+json", "FHIR R4 bundle", "worker.exports.fhir:write_fhir"
        ),
        Export(
            "dicom-seg", "segmentation.dcm", "application/dicom", "DICOM Segmentation",
            "worker.exports.dicom_seg:write_dicom_seg",
        ),
        Export(
            "dicom-ann", "annotations.dcm", "application/dicom", "DICOM microscopy annotations",
            "worker.exports.dicom_ann:write_dicom_ann",
        ),
        Export(
            "hl7", "report.hl7", "x-application/hl7-v2+er7; charset=utf-8", "HL7 v2.5.1 ORU^R01",
            "worker.exports.hl7v2:write_hl7",
        ),
    )
}  # fmt: skip
