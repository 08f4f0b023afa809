"""Whether an environment holds exactly what one part of SlideReason asks for, at the lock's versions. Run inside it.

    FOLDER/bin/python deploy/images/verify.py gateway|worker requirements.lock

What only torch brings along (CUDA's libraries) is torch's own to pin, and not in the lock.
"""

import json
import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.markers import Marker  # kombu brings it, so that every part has it

EXTRAS = {"gateway": ("otel",), "worker": ("worker", "otel")}
MODEL = ("torch", "transformers")
OURS = "slidereason"
REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?([^;]*)(?:;(.*))?")


def main(part: str, lock: Path) -> int:
    """Print what is wrong, or what is there; exit code 1 when anything is wrong."""
    locked = read_lock(lock)
    wanted = reach([(OURS, EXTRAS[part])], stop=("torch",))
    brought = reach([("torch", ())]) if "torch" in wanted else set()
    there = {canonical(found.name): found for found in distributions()}
    wrong = [
        f"{name} {there[name].version} is not the lock's {locked.get(name, '(none)')}"
        for name in sorted(wanted - {OURS, "torch"})
        if there[name].version != locked.get(name)
    ]
    wrong += [f"{name} is not asked for" for name in sorted(there.keys() - wanted - brought)]
    if part == "gateway":
        wrong += [f"{name} in a gateway" for name in MODEL if name in there]
    for line in wrong:
        print(f"verify: {line}", file=sys.stderr)
    if wrong:
        return 1
    size = sum(path.lstat().st_size for path in Path(sys.prefix).rglob("*") if path.is_file() and not path.is_symlink())
    print(json.dumps({"part": part, "packages": len(there), "megabytes": round(size / 1e6, 1)}))
    return 0


def read_lock(path: Path) -> dict[str, str]:
    """Name → version, of the lines that are meant for this Python."""
    locked = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        pin, _, marker = line.partition(";")
        if pin.strip() and not line.startswith("#") and applies(marker):
            name, _, version = pin.strip().partition("==")
            locked[canonical(name)] = version.strip()
    return locked


def reach(roots: Iterable[tuple[str, Iterable[str]]], stop: Iterable[str] = ()) -> set[str]:
    """Names of everything that installed distributions ask for, themselves included.

    Args:
        roots: (name, extras) to start from.
        stop: names that are reached but not followed.
    """
    found: set[tuple[str, str]] = set()
    todo = [(canonical(name), extra) for name, extras in roots for extra in ("", *extras)]
    while todo:
        step = todo.pop()
        if step in found:
            continue
        found.add(step)
        name, extra = step
        if name not in stop:
            todo += needs(distribution(name), extra)
    return {name for name, _ in found}


def needs(found: Distribution, extra: str) -> list[tuple[str, str]]:
    """(name, extra) of each requirement of a distribution with this extra ("": with none)."""
    steps = []
    for line in found.requires or ():
        name, extras, _, marker = REQUIREMENT.fullmatch(line).groups()
        if applies(marker or "", extra):
            steps += [(canonical(name), more.strip()) for more in ("", *(extras or "").split(","))]
    return [(name, more) for name, more in steps if name]


def applies(marker: str, extra: str = "") -> bool:
    """Whether an environment marker holds here."""
    return not marker.strip() or Marker(marker.strip()).evaluate({"extra": extra})


def canonical(name: str) -> str:
    """A project's name as PEP 503 compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
