"""Examples for the OpenAPI document: what each call is sent, and what it answers.

A call whose answer is not JSON has a line of words in the place of bytes. A test holds every example against the schema
beside it, and every operation to having some.
"""

from typing import Any

JOB, SLIDE = "3f0f5c0e6d0c4b439a557f0d8f1b0c11", "5d41402abc4b2a76b9719d911017c592"
REGION, TOKEN = "0b8f3c52-9d1e-5c7a-8f55-2f6f1f7d9a10", "q5bD4wXcYt0u9bq8mVt2uQm1l7cWc0Jx9S2tA3hKf1E"
TIME, LATER = "2026-03-04T10:00:00Z", "2026-03-04T10:00:41Z"
MODEL = "tiny"
QUERY = "Where is the tumour?"
JSON, BYTES = "application/json", "application/octet-stream"
OUTLINE = {"type": "Polygon", "coordinates": [[[900, 700], [1100, 700], [1100, 900], [900, 900], [900, 700]]]}

PARAMETERS: dict[str, Any] = {
    "job_id": JOB, "slide_id": SLIDE, "region_id": REGION, "token": TOKEN, "key": "labels/0/zarr.json", "name": "csv",
    "result": "overlay/zarr.json", "level": 12, "col": 3, "row": 2,
}  # fmt: skip


def link(href: str, rel: str, kind: str, title: str) -> dict[str, str]:
    """A link as documents have them."""
    return {"href": href, "rel": rel, "type": kind, "title": title}


def status(state: str, **more: Any) -> dict[str, Any]:
    """A status document."""
    here = f"/v1/jobs/{JOB}"
    document = {
        "jobID": JOB, "type": "process", "processID": "reasoning-segmentation", "status": state,
        "message": "looking at tiles", "created": TIME, "started": TIME, "finished": None, "updated": LATER,
        "progress": 48, "tiles": {"done": 160, "total": 320, "failed": 0, "skipped": 410}, "coverage": 0.5,
        "eta_s": 40.0, "queue_position": None, "slide": SLIDE, "queries": [QUERY], "model": MODEL, "result": None,
        "error": None,
        "links": [
            link(here, "self", JSON, "Status"),
            link(f"{here}/events", "monitor", "text/event-stream", "Status as it changes"),
        ],
    }  # fmt: skip
    return document | more


ACCEPTED = status(
    "accepted", message="waiting for a worker", started=None, updated=TIME, progress=0, coverage=None, eta_s=None,
    queue_position=0, tiles={"done": 0, "total": 0, "failed": 0, "skipped": 0},
)  # fmt: skip
RUNNING = status("running")
DISMISSED = status("dismissed", message="dismissed", finished=LATER, eta_s=None)
SLIDE_DOCUMENT = {
    "slide_id": SLIDE, "name": "CMU-1-Small-Region.svs", "format": "svs", "size_bytes": 1938955, "origin": "folder",
    "width_px0": 2220, "height_px0": 2967, "level_dimensions": [[2220, 2967]], "level_downsamples": [1.0],
    "mpp_x": 0.499, "mpp_y": 0.499, "mpp_source": "openslide.mpp", "objective_power": 20.0, "vendor": "aperio",
    "bounds_px0": None, "content_hash": None, "fetch": None,
    "links": [link(f"/v1/slides/{SLIDE}", "self", JSON, "Slide")],
}  # fmt: skip
FETCHING = SLIDE_DOCUMENT | {
    "name": None, "format": "svs", "size_bytes": 0, "origin": "reference", "width_px0": None, "height_px0": None,
    "level_dimensions": None, "level_downsamples": None, "mpp_x": None, "mpp_y": None, "mpp_source": None,
    "objective_power": None, "vendor": None,
    "fetch": {"state": "fetching", "bytes_done": 734003200, "bytes_total": 2147483648, "detail": None},
}  # fmt: skip
FEATURE = {
    "type": "Feature", "id": REGION, "geometry": OUTLINE,
    "properties": {"objectType": "annotation", "measurements": {"Area µm^2": 10000.0, "Confidence": 0.91}},
}  # fmt: skip
COLLECTION = {
    "type": "FeatureCollection", "features": [FEATURE], "numberReturned": 1, "next_cursor": None, "links": [],
    "slidereason": {"frame": "level0", "unit": "level-0 pixels", "job": JOB, "queries": [QUERY]},
}  # fmt: skip
REPORT = {
    "job": JOB, "use": "Research use only", "answer": "1 region (10000 µm²) answers the question.",
    "regions": [
        {"region_id": REGION, "query_index": 0, "area_um2": 10000.0, "confidence": 0.91, "chain": "Dense nuclei."}
    ],
}  # fmt: skip
EXPORT = {
    "name": "csv", "title": "Measurements", "type": "text/csv; charset=utf-8", "file_name": "regions.csv",
    "state": "not-asked", "href": f"/v1/jobs/{JOB}/exports/csv",
}  # fmt: skip
DELIVERY = {
    "id": "msg_1f0c5c0e6d0c4b439a557f0d8f1b0c22", "to": "dicomweb", "state": "waiting", "tries": 0, "said": "",
    "status": None, "created": LATER, "next_try": LATER, "gives_up": None,
}  # fmt: skip
WEBHOOK = DELIVERY | {"to": "webhook", "state": "delivered", "tries": 1, "said": "204", "status": 204, "next_try": None}
DZI = (
    '<?xml version="1.0" encoding="UTF-8"?><Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="png" '
    'Overlap="1" TileSize="254"><Size Width="2220" Height="2967"/></Image>'
)
STREAM = (
    "event: progress\nid: 8c7dd922ad47494fc02c388e12c00eac~3.0\n"
    f'data: {{"jobID":"{JOB}","progress":48}}\n\n'
    "event: region.provisional\nid: 8c7dd922ad47494fc02c388e12c00eac~3.1\n"
    'data: {"type":"Feature","id":"…","geometry":{…},"properties":{"query":0,"block":"0_1","provisional":true}}\n\n'
)
PROBLEM = {
    "type": "urn:slidereason:problem:bad-request", "title": "Unprocessable Entity", "status": 422,
    "code": "bad-request", "detail": "mpp: input should be greater than 0.01", "field": "mpp",
}  # fmt: skip

REQUESTS: dict[str, dict[str, Any]] = {
    "POST /v1/jobs": {JSON: {"slide": "file:CMU-1-Small-Region.svs", "query": QUERY, "mpp": 1.0}},
    "POST /v1/slides": {
        JSON: {"reference": "file:CMU-1-Small-Region.svs"},
        "multipart/form-data": {"file": "(the slide's bytes)"},
    },
    "POST /v1/jobs/{job_id}/links": {JSON: {"expires_s": 3600}},
    "POST /v1/jobs/{job_id}/deliveries": {JSON: {"to": "dicomweb", "annotations": True}},
}
"""Call → media type → body."""

ANSWERS: dict[str, dict[str, Any]] = {
    "GET /v1/models": {
        JSON: {
            "models": [
                {
                    "name": MODEL, "names": [MODEL], "default": True, "revision": "a1b2c3d", "tile_size_px": 256,
                    "default_mpp": 1.0, "targets": ["tumour"], "licence": "Apache-2.0", "parameters": 1200000,
                    "figures": {"dice": 0.9}, "exemplars": True, "workers": 1,
                }
            ],
            "default": MODEL,
        }
    },
    "GET /v1/slides": {JSON: {"slides": [SLIDE_DOCUMENT], "next_cursor": None, "links": []}},
    "POST /v1/slides": {JSON: SLIDE_DOCUMENT},
    "GET /v1/slides/{slide_id}": {JSON: SLIDE_DOCUMENT},
    "POST /v1/jobs": {JSON: ACCEPTED},
    "GET /v1/jobs": {JSON: {"jobs": [RUNNING], "next_cursor": None, "links": []}},
    "GET /v1/jobs/{job_id}": {JSON: RUNNING},
    "DELETE /v1/jobs/{job_id}": {JSON: DISMISSED},
    "GET /v1/jobs/{job_id}/events": {"text/event-stream": STREAM},
    "GET /v1/jobs/{job_id}/overlay/{key}": {
        JSON: {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5"}}},
        BYTES: "(a shard's bytes)",
    },
    "GET /v1/jobs/{job_id}/overlay.zip": {"application/zip": "(a zip's bytes)"},
    "GET /v1/jobs/{job_id}/regions": {"application/geo+json": COLLECTION},
    "GET /v1/jobs/{job_id}/regions.geojson.gz": {"application/gzip": "(gzip's bytes)"},
    "GET /v1/jobs/{job_id}/regions/{region_id}": {
        JSON: {
            "region_id": REGION, "job": JOB, "query_index": 0, "query": QUERY, "area_um2": 10000.0, "confidence": 0.91,
            "chain": "Dense nuclei.", "frame": "level0", "bbox": [900, 700, 1100, 900], "feature": FEATURE, "links": [],
        }
    },
    "GET /v1/jobs/{job_id}/report": {
        JSON: REPORT,
        "text/html": "<!doctype html><title>Report</title>…",
        "text/markdown": "# Report\n\n1 region answers the question.",
        "application/pdf": "(a PDF's bytes)",
        "application/fhir+json": {"resourceType": "Bundle", "type": "collection", "entry": []},
    },
    "GET /v1/jobs/{job_id}/exports": {JSON: {"exports": [EXPORT]}},
    "GET /v1/jobs/{job_id}/exports/{name}": {BYTES: "(the file's bytes, of its own media type)"},
    "GET /v1/jobs/{job_id}/dicom-seg": {"application/dicom": "(a DICOM file's bytes)"},
    "GET /v1/jobs/{job_id}/dicom-ann": {"application/dicom": "(a DICOM file's bytes)"},
    "GET /v1/slides/{slide_id}/dzi.dzi": {"application/xml": DZI.replace("png", "jpeg")},
    "GET /v1/slides/{slide_id}/dzi_files/{level}/{col}_{row}.jpeg": {"image/jpeg": "(a JPEG's bytes)"},
    "GET /v1/slides/{slide_id}/thumbnail.jpeg": {"image/jpeg": "(a JPEG's bytes)"},
    "GET /v1/jobs/{job_id}/tiles.dzi": {"application/xml": DZI},
    "GET /v1/jobs/{job_id}/tiles_files/{level}/{col}_{row}.png": {"image/png": "(a PNG's bytes)"},
    "GET /v1/jobs/{job_id}/coverage": {
        JSON: {
            "job": JOB, "frame": "level0", "size_px0": [2220.0, 2967.0], "tile_px0": [513.0, 513.0],
            "stride_px0": [256.5, 256.5], "offset_px0": [-120.0, -80.0], "rows": 2, "cols": 4, "wanted": "7w==",
            "blocks": [
                {
                    "key": "0_0", "bbox_px0": [0.0, 0.0, 2048.0, 2048.0], "state": "done", "tiles": 7, "tiles_done": 7,
                    "tiles_failed": 0,
                }
            ],
        }
    },
    "POST /v1/jobs/{job_id}/deliveries": {JSON: DELIVERY},
    "GET /v1/jobs/{job_id}/deliveries": {JSON: {"deliveries": [WEBHOOK, DELIVERY]}},
    "POST /v1/jobs/{job_id}/links": {JSON: {"url": f"/v1/shared/{TOKEN}", "expires": LATER}},
    "DELETE /v1/jobs/{job_id}/links": {JSON: {"revoked": 1}},
    "GET /v1/shared/{token}/{result}": {BYTES: "(what /v1/jobs/{job_id}/{result} answers)"},
    "GET /v1/schemas/report.json": {"application/schema+json": {"$schema": "…", "title": "SlideReason report"}},
    "GET /healthz": {JSON: {"status": "ok"}},
    "GET /readyz": {
        JSON: {
            "status": "ready", "checks": {"database": True, "broker": True, "artifacts": True, "worker": True},
            "models": [{"name": MODEL, "revision": "a1b2c3d", "workers": 1}],
        }
    },
    "GET /metrics": {"text/plain": "slidereason_workers{model=\"tiny\",revision=\"a1b2c3d\"} 1.0\n"},
}  # fmt: skip
"""Call → media type → what a good answer looks like."""

LATER_ANSWERS: dict[str, dict[str, Any]] = {"POST /v1/slides": {JSON: FETCHING}}
"""The same of a 202 that differs from the good answer."""


def add_examples(api: dict[str, Any]) -> None:
    """Put the examples into an OpenAPI document, in place.

    A form of a good answer that FastAPI supposes (`application/json` of no schema) and no example knows is taken out.

    Args:
        api: the document.
    """
    for path, item in api["paths"].items():
        for method, operation in item.items():
            call = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] in PARAMETERS:
                    parameter.setdefault("example", PARAMETERS[parameter["name"]])
            for kind, example in REQUESTS.get(call, {}).items():
                operation["requestBody"]["content"][kind]["example"] = example
            for code, answer in operation["responses"].items():
                if code in ("200", "201") or (code == "202" and method == "post"):
                    later = LATER_ANSWERS.get(call) if code == "202" else None
                    _show(answer.setdefault("content", {}), later or ANSWERS.get(call, {}))
                elif "application/problem+json" in answer.get("content", {}):
                    answer["content"]["application/problem+json"].setdefault("example", PROBLEM)


def _show(content: dict[str, Any], examples: dict[str, Any]) -> None:
    for kind in [
        kind for kind, form in content.items() if examples and kind not in examples and not form.get("schema")
    ]:
        del content[kind]
    for kind, example in examples.items():
        form = content.setdefault(kind, {})
        if not form.get("schema") and isinstance(example, str):
            form["schema"] = {"type": "string", "format": "binary"} if example.startswith("(") else {"type": "string"}
        form["example"] = example
