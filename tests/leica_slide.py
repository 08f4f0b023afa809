"""A small slide as Leica's scanners write it: a part of the slide is scanned, and OpenSlide tells its bounds."""

from pathlib import Path

import cv2
import numpy as np
import tifffile

NM_PER_UM = 1000
UM_PER_CM = 10_000
NAMESPACE = "http://www.leica-microsystems.com/scn/2010/10/01"


def write_leica(
    path: Path, picture: np.ndarray, slide_px0: tuple[int, int], corner_px0: tuple[int, int], mpp: float = 0.5
) -> Path:
    """Write a Leica SCN file.

    Args:
        path: of the new file, `.scn`.
        picture: (H, W, 3) uint8 RGB, the scanned area at level 0; edges are even.
        slide_px0: (width, height) of the whole slide, of which the scanned area is a part.
        corner_px0: (x, y) of the scanned area's corner on it.
        mpp: µm per level-0 pixel.
    """
    height, width = picture.shape[:2]
    half = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    levels = [picture, half]
    (x, y), (across, down) = corner_px0, slide_px0
    nm = round(mpp * NM_PER_UM)
    dimensions = "".join(
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{number}" ifd="{number}"/>'
        for number, level in enumerate(levels)
    )
    description = (
        f'<?xml version="1.0"?><scn xmlns="{NAMESPACE}" uuid="urn:uuid:6f1c1b54-7d0a-4c8e-9a53-0d9c6a0c2b11">'
        f'<collection name="made" sizeX="{across * nm}" sizeY="{down * nm}"><image name="image_01">'
        "<creationDate>2026-01-01T00:00:00Z</creationDate>"
        '<device model="Leica SCN400;Leica SCN" version="1.0"/>'
        f'<pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
        f'<view sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{x * nm}" offsetY="{y * nm}" spacingZ="0"/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image></collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, level in enumerate(levels):
            per_cm = UM_PER_CM / (mpp * 2**number)
            writer.write(
                level,
                tile=(256, 256),
                compression="jpeg",
                photometric="rgb",
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                description=description if number == 0 else None,
                metadata=None,
            )
    return path
