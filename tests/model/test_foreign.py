"""Foreign matter: exact masks, the same again from the same seed, and families for measuring that never train."""

import cv2
import numpy as np

from model.data.foreign import FAMILIES, HELDOUT, MAX_SHARE, MIN_SHARE, add_matter, heldout_pairs, random_matter
from model.data.unnamed import unnamed_part
from model.exemplar import Exemplar


def grey(size=96):
    return np.full((size, size, 3), 128, np.uint8)


def test_only_what_is_masked_is_painted():
    rng = np.random.default_rng(0)
    for _ in range(30):
        image, masks = add_matter(grey(), [random_matter(rng), random_matter(rng)], rng)
        assert not (masks[0] & masks[1]).any()
        near = cv2.dilate(np.logical_or(*masks).astype(np.uint8), np.ones((19, 19), np.uint8)) > 0  # a soft edge
        assert (image[~near] == 128).all()


def test_every_family_paints_something():
    rng = np.random.default_rng(1)
    painted = set()
    for heldout in (False, True):
        for _ in range(120):
            matter = random_matter(rng, heldout)
            image = matter.paint(grey(), np.ones((96, 96), bool), rng)
            assert (image != 128).any(), matter.family
            painted.add(matter.family)
    assert painted == set(FAMILIES)


def test_heldout_families_never_train():
    rng = np.random.default_rng(2)
    assert not {random_matter(rng).family for _ in range(500)} & set(HELDOUT)
    assert {random_matter(rng, heldout=True).family for _ in range(60)} == set(HELDOUT)


def test_an_unnamed_part_has_one_colour_and_a_size_that_can_be_shown():
    image = np.full((64, 64, 3), (230, 200, 220), np.uint8)
    image[10:40, 5:30] = (70, 40, 120)
    parts = [unnamed_part(image, np.random.default_rng(seed)) for seed in range(12)]
    assert any(part is not None for part in parts)
    for part in filter(lambda part: part is not None, parts):
        assert MIN_SHARE <= part.mean() <= MAX_SHARE
        inside = part[14:36, 9:26]
        assert inside.all() or not inside.any(), "one colour is one part"
    assert unnamed_part(np.full((64, 64, 3), 200, np.uint8), np.random.default_rng(0)) is None


def test_pairs_come_again_and_hold_what_they_say():
    pairs, again = (list(heldout_pairs(8, seed=3)) for _ in range(2))
    for one, other in zip(pairs, again, strict=True):
        assert np.array_equal(one.image, other.image)
        assert one.kind in HELDOUT
        Exemplar(one.reference, one.reference_mask)  # large enough to be shown
        assert one.mask is None or one.mask.any()
    assert sum(pair.mask is None for pair in pairs) == 4
    assert any(not np.array_equal(a.image, b.image) for a, b in zip(pairs, heldout_pairs(8, seed=4), strict=True))
