"""Ask a running SlideReason service about a slide and fetch everything it answers.

    slidereason serve --slides /path/to/slides &
    python examples/ask_service.py http://127.0.0.1:8000 my-slide.svs "Where is the tumour?" --out answer

Needs nothing but Python: read it as a description of the API.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

OPEN = ("accepted", "running")


def main() -> int:
    """Post a job, wait for it as the service asks to, download its results."""
    options = parse_options()
    try:
        job_url = post_job(options)
        status = wait(job_url)
        if status["status"] != "successful":
            print(f"the job was {status['status']}: {status['message']}", file=sys.stderr)
            return 1
        print(status["result"]["answer"])
        download(job_url, options.out)
    except HTTPError as error:
        # every error is a problem document: `code` for programs, `detail` for people, `field` for the input at fault
        problem = json.load(error)
        print(f"{problem['code']} ({problem.get('field', '-')}): {problem['detail']}", file=sys.stderr)
        return 1
    return 0


def post_job(options: argparse.Namespace) -> str:
    """Create the job; its address."""
    body = {"slide": options.slide, "query": options.query}
    if options.mpp:
        body["mpp"] = options.mpp
    if options.mpp_override:
        body["mpp_override"] = options.mpp_override
    headers = {"Content-Type": "application/json"}
    if options.key:
        headers["Idempotency-Key"] = options.key  # a retry after a lost answer then finds the same job
    request = Request(urljoin(options.service, "/v1/jobs"), json.dumps(body).encode(), headers)
    with urlopen(request) as answer:
        return urljoin(options.service, answer.headers["Location"])


def wait(job_url: str) -> dict:
    """Poll until the job is closed, never more often than Retry-After says."""
    while True:
        with urlopen(job_url) as answer:
            status = json.load(answer)
            pause_s = float(answer.headers.get("Retry-After", 0))
        print(f"{status['status']}: {status['progress']} % of {status['tiles']['total']} tiles", file=sys.stderr)
        if status["status"] not in OPEN:
            return status
        time.sleep(pause_s)


def download(job_url: str, folder: Path) -> None:
    """Overlay, regions and report into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        "overlay.zip": ("/overlay.zip", "*/*"),
        "regions.geojson": ("/regions", "*/*"),
        "report.json": ("/report", "application/json"),
        "report.html": ("/report", "text/html"),
    }
    for name, (path, kind) in wanted.items():
        with urlopen(Request(job_url + path, headers={"Accept": kind})) as answer, (folder / name).open("wb") as file:
            shutil.copyfileobj(answer, file)
        print(folder / name)
    print(f"{job_url}/overlay/   (open this in zarr, vizarr or napari)")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", help="address of the service, e.g. http://127.0.0.1:8000")
    parser.add_argument("slide", help="slide_id, or file name under one of the service's slide folders")
    parser.add_argument("query", help="the question")
    parser.add_argument("--mpp", type=float, help="µm/px to look at")
    parser.add_argument("--mpp-override", type=float, help="µm/px of the slide, when it does not say")
    parser.add_argument("--key", help="Idempotency-Key")
    parser.add_argument("--out", type=Path, default=Path("answer"), help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
