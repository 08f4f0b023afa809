"""The `slidereason` command. What a command needs is imported when it is called, so `serve` never imports torch."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

GROUP = "slidereason.commands"

# what --help says without importing anything
SUMMARIES = {
    "serve": "run the service: REST gateway, one worker, everything embedded",
    "segment": "answer a question about one slide: overlay, regions and report into a folder",
    "worker": "run one worker against a ledger and a broker",
    "jobs": "list, show, retry or dismiss jobs, straight on the ledger",
    "ledger": "the version of the ledger's tables, and moving it",
    "demo": "the whole job on a synthetic slide, or on yours",
    "evaluate": "measure a model on a manifest of images, masks and queries",
    "calibrate": "fit the confidence of masks on some patients, and measure it on others",
    "train": "train a model",
    "dataset": "make or inspect training data",
    "checkpoint": "import, inspect or verify weights",
}
OWN = {"serve": "service.serve:run", "jobs": "service.jobs_cli:run_jobs"}


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: default: the arguments of the process.

    Returns:
        Exit code; 2 when the command is not known.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("-V", "--version"):
        from service.app import our_version

        print(f"slidereason {our_version()}")
        return 0
    known = commands()
    if name not in known:
        print(f"slidereason: no command {name!r}; accepted: {', '.join(known)}", file=sys.stderr)
        return 2
    return int(known[name]()(rest) or 0)


def commands() -> dict[str, Callable[[], Callable[[list[str]], int | None]]]:
    """Name → what loads the command. Installed packages add theirs by the entry-point group."""
    found: dict[str, Callable] = {name: _loader(place) for name, place in OWN.items()}
    for point in sorted(entry_points(group=GROUP), key=_order):
        found.setdefault(point.name, point.load)
    return found


def usage() -> str:
    """Every command with one line."""
    names = list(commands())
    width = max(len(name) for name in names)
    lines = [f"  {name:<{width}}  {SUMMARIES.get(name, '')}".rstrip() for name in names]
    return "\n".join(
        [
            "usage: slidereason COMMAND … | --help | --version",
            "",
            "A clinical question about a whole slide, answered with a mask and the reasoning behind it.",
            "Research use only.",
            "",
            *lines,
            "",
            "slidereason COMMAND --help tells more.",
        ]
    )


def _loader(place: str) -> Callable[[], Callable]:
    module, _, name = place.partition(":")
    return lambda: getattr(import_module(module), name)


def _order(point: EntryPoint) -> tuple[int, str]:
    names = list(SUMMARIES)
    return (names.index(point.name) if point.name in names else len(names), point.name)


if __name__ == "__main__":
    sys.exit(main())
