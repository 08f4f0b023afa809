"""What a link to a job's results opens, and how the job's documents look to who came by one."""

import re
from typing import Any

from service.rooms import Shared

OPENED = re.compile(
    r"overlay/.*|overlay\.zip|regions|regions\.geojson\.gz|regions/[^/]+|report|events|exports|exports/[^/]+|"
    r"dicom-seg|dicom-ann|tiles\.dzi|tiles_files/\d+/\d+_\d+\.png"
)
"""What may follow a link's address."""


def is_opened(result: str) -> bool:
    """Whether a link opens this result of its job, named as below `/v1/jobs/{job_id}/`."""
    return OPENED.fullmatch(result) is not None


def shown_by_link(shared: Shared, document: dict[str, Any]) -> dict[str, Any]:
    """A job's document whose links lead where the link does; those that lead elsewhere are left out."""
    here = f"/v1/jobs/{shared.job_id}/"
    links = []
    for link in document["links"]:
        result = link["href"].removeprefix(here)
        if result != link["href"] and is_opened(result):
            links.append({**link, "href": f"{shared.address}/{result}"})
    return {**document, "links": links}
