"""`/docs` from the assets inside the `fastapi-swagger` package: works without a network."""

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

from service.files import NOSNIFF, missing

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}
START = "SwaggerUIBundle({url: '/openapi.json', dom_id: '#docs', deepLinking: true, validatorUrl: null})"
POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SlideReason API</title>
<link rel="icon" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<noscript>This page needs JavaScript; the same in JSON is at <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Swagger UI over `/openapi.json`."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, **NOSNIFF})


@router.get("/docs/start.js")
async def start() -> Response:
    """In a file of its own, so that the page needs no inline script."""
    return Response(START, media_type="text/javascript", headers=NOSNIFF)


@router.get("/docs/{name}")
def asset(name: str) -> Response:
    """Swagger UI's own files (Apache-2.0)."""
    if name not in ASSETS:
        raise missing()
    content = (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
    return Response(content, media_type=ASSETS[name], headers={"Cache-Control": "max-age=86400", **NOSNIFF})
