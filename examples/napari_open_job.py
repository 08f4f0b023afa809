"""Open a finished job in napari, by URL: the slide's picture, what was found for each question, and how probable it is.

    pip install "napari[all]" "zarr>=3" aiohttp requests
    python examples/napari_open_job.py http://127.0.0.1:8000 JOB

Pixels are read as they are looked at. Pointing at a region shows its id, area and confidence in the status bar.
Without a screen, `read_job` alone gives the same layers as plain data. Research use only.
"""

import argparse
import importlib
import sys
from typing import Any

import zarr

Layer = tuple[list[Any], dict[str, Any], str]
"""As napari's readers give them: levels, finest first; keywords; `image` or `labels`."""


def read_job(service: str, job: str) -> list[Layer]:
    """The layers of a job's overlay; nothing but metadata is read yet.

    Args:
        service: address, e.g. `http://127.0.0.1:8000`.
        job: its id; it must be successful.

    Returns:
        The picture, then probabilities (hidden) and labels of each question. Axes are y and x in µm; a level's offset
        is that of its finest, which napari derives the others from.
    """
    overlay = zarr.open_group(f"{service.rstrip('/')}/v1/jobs/{job}/overlay", mode="r")
    known = overlay.attrs["slidereason"]["reference_levels"]
    # Of the picture only the coarser levels may be stored: the slide itself has the finer ones.
    levels, told = _levels(overlay, "", {str(level) for level in known})
    layers: list[Layer] = [(levels, {**told, "name": "slide", "channel_axis": 0, **_COLORS}, "image")]
    for query in sorted(overlay["labels"].attrs["ome"]["labels"], key=lambda name: int(name.rpartition("/")[2])):
        levels, told = _levels(overlay, f"probability/{query}")
        keywords = {"visible": False, "colormap": "magma", "contrast_limits": (0, 255), "blending": "additive"}
        layers.append((levels, {**told, **keywords, "name": f"probability: {told['name']}"}, "image"))
        levels, told = _levels(overlay, f"labels/{query}")
        properties = overlay[f"labels/{query}"].attrs["ome"]["image-label"].get("properties", [])
        layers.append((levels, {**told, "opacity": 0.5, "features": _features(properties)}, "labels"))
    return layers


_COLORS = {"colormap": ["red", "green", "blue"], "blending": "additive", "contrast_limits": (0, 255)}


def _levels(overlay: zarr.Group, group: str, stored: set[str] | None = None) -> tuple[list[Any], dict[str, Any]]:
    """The arrays of a group that are stored, finest first, with the keywords that place them."""
    node = overlay[group] if group else overlay
    (multiscale,) = node.attrs["ome"]["multiscales"]
    datasets = [each for each in multiscale["datasets"] if stored is None or each["path"] in stored]
    moves = {move["type"]: move[move["type"]][-2:] for move in datasets[0]["coordinateTransformations"]}
    levels = [node[each["path"]] for each in datasets]
    placed = {"scale": moves["scale"], "translate": moves["translation"], "units": ("um", "um")}
    return levels, {"name": multiscale["name"], "multiscale": len(levels) > 1, **placed}


def _features(properties: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A labels layer's table: a row for each region, `index` being its label."""
    names = dict.fromkeys(name for each in properties for name in each if name != "label-value")
    table: dict[str, list[Any]] = {"index": [each["label-value"] for each in properties]}
    return table | {name: [each.get(name) for each in properties] for name in names}


def main() -> int:
    """Read a job and show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", help="address of the service, e.g. http://127.0.0.1:8000")
    parser.add_argument("job", help="id of a successful job")
    options = parser.parse_args()
    layers = read_job(options.service, options.job)
    try:
        napari = importlib.import_module("napari")
    except ImportError:
        print('napari is not installed; accepted is: pip install "napari[all]"', file=sys.stderr)
        return 2
    viewer = napari.Viewer(title=f"SlideReason job {options.job} (research use only)")
    for levels, keywords, kind in layers:
        data = levels if len(levels) > 1 else levels[0]
        getattr(viewer, f"add_{kind}")(data, **keywords)
    napari.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
