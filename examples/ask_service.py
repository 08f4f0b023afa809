"""Ask a running SlideReason service about a slide and fetch everything it answers.

    slidereason serve --slides /path/to/slides &
    python examples/ask_service.py http://127.0.0.1:8000 my-slide.svs "Where is the tumour?" --out answer
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from service.client import Client, Job, JobEndedError, ProblemError


def main() -> int:
    """Ask, wait for it as the service asks to, download the results."""
    options = parse_options()
    asked = {"mpp": options.mpp, "mpp_override": options.mpp_override}
    fields = {name: value for name, value in asked.items() if value is not None}
    try:
        client = Client(options.service)
        job = client.ask(options.slide, options.query, idempotency_key=options.key, **fields).wait(tell)
        print(job.answer)
        download(job, options.out)
    except (ProblemError, JobEndedError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def tell(status: dict[str, Any]) -> None:
    """One line of progress."""
    print(f"{status['status']}: {status['progress']} % of {status['tiles']['total']} tiles", file=sys.stderr)


def download(job: Job, folder: Path) -> None:
    """Overlay, regions, reports and every export into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    print(job.save_overlay(folder / "overlay.zip"))
    print(job.save_regions(folder / "regions.geojson"))
    print(job.save_report(folder / "report.json", "json"))
    print(job.save_report(folder / "report.html"))
    for export in job.exports():
        print(job.save_export(export["name"], folder / export["file_name"]))
    print(f"{job.overlay_url}   (open this in zarr, vizarr or napari)")


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
