"""`slidereason checkpoint import|inspect|verify|average`: public weights into a checkpoint of ours, and what one holds.

torch is imported only when a command runs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.config import PathChatConfig

BAD_INPUT = 2
DTYPES = ("source", "bfloat16", "float16", "float32")
UNKNOWN = "not stated; the licence of every source applies"


def run_checkpoint(argv: Sequence[str]) -> int:
    """`slidereason checkpoint COMMAND …`.

    Returns:
        0; 1 when `verify` finds something wrong; 2 when an input or option is not accepted (said on stderr).
    """
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"slidereason checkpoint: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT


def run_import(options: argparse.Namespace) -> int:
    """Write a checkpoint from public weights; refuses a folder that is not empty."""
    import torch

    from model.importers.compose import Sources, compose, write_composed

    _require_empty(options.out)
    named = ("checkpoint", "language", "vision", "sam", "adapter", "tokenizer")
    sources = Sources(**{name: getattr(options, name) for name in named}, decoder=not options.fresh_decoder)
    if all(getattr(sources, name) is None for name in named[:4]):
        raise ValueError("nothing to import: at least one of --checkpoint, --language, --vision, --sam is needed")
    made = compose(_config(options), sources, options.seed)
    dtype = None if options.dtype == "source" else getattr(torch, options.dtype)
    revision = write_composed(options.out, made, licence=options.licence, dtype=dtype)
    for role, part in made.imported.items():
        print(f"{role}: {part.form}, {len(part.used)} keys used, {len(part.ignored)} ignored{_groups(part.ignored)}")
    print(f"fresh: {len(made.fresh)} of {len(made.tensors)} tensors{_groups(made.fresh)}")
    print(f"checkpoint: {options.out}, revision {revision}")
    return 0


def run_average(options: argparse.Namespace) -> int:
    """Write the mean of several checkpoints; refuses a folder that is not empty."""
    from model.soup import average_checkpoints

    _require_empty(options.out)
    revision = average_checkpoints(options.folders, options.out, options.parts)
    print(f"checkpoint: {options.out}, revision {revision}")
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Print what a file or folder of weights is."""
    from model.importers.recognise import inspect_weights

    told = inspect_weights(options.path).to_json()
    if options.json:
        print(json.dumps(told, indent=1))
        return 0
    size = f"{told['keys']} keys, {told['parameters']:,} parameters, {told['bytes'] / 2**20:,.1f} MiB"
    print(f"format: {told['format']}\nfiles: {', '.join(told['files'])}\nholds: {size}, {_plain(told['dtypes'])}")
    for name in ("revision", "card"):
        if told.get(name):
            print(f"{name}: {told[name] if name == 'revision' else json.dumps(told[name])[:400]}")
    for name, value in told["config"].items():
        print(f"{name}: {_plain(value) if isinstance(value, dict) else value}")
    for row in told["shapes"]:
        print(f"  {row['count']:4} × {row['key']} {row['shape']}")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Print everything that is wrong with a checkpoint of ours."""
    from model.checkpoint import revision_of, verify_checkpoint

    wrong = 0
    for problem in verify_checkpoint(options.folder):
        print(f"{options.folder}: {problem}", file=sys.stderr)
        wrong += 1
    if not wrong:
        print(f"{options.folder}: sound, revision {revision_of(options.folder)}")
    return int(wrong > 0)


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: exists and is not empty; an empty or new folder is accepted")


def _config(options: argparse.Namespace) -> "PathChatConfig | None":
    """The configuration that is asked for; None leaves it to `--checkpoint`."""
    from model.builders import VARIANTS
    from model.checkpoint import read_config

    if options.variant == "custom":
        if options.config is None:
            raise ValueError("--variant custom: --config FILE is needed")
        return read_config(options.config)
    if options.config is not None:
        raise ValueError("--config: only with --variant custom")
    if options.variant is None:
        if options.checkpoint is None:
            raise ValueError(f"--variant is needed: {', '.join(VARIANTS)} or custom")
        return None
    if options.variant not in VARIANTS:
        raise ValueError(f"--variant {options.variant}: accepted are {', '.join(VARIANTS)} and custom")
    return VARIANTS[options.variant]()


def _plain(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def _groups(names: Sequence[str]) -> str:
    """` (part: how many, …)` by the first words of the names."""
    parts: dict[str, int] = {}
    for name in names:
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + 1
    return f" ({', '.join(f'{part} {count}' for part, count in parts.items())})" if parts else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slidereason checkpoint", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="import|inspect|verify|average")
    _import_parser(commands.add_parser("import", help="public weights → a checkpoint"))
    look = commands.add_parser("inspect", help="what a file or folder of weights is")
    look.add_argument("path", type=Path, metavar="PATH", help="file or folder")
    look.add_argument("--json", action="store_true", help="everything, as JSON")
    look.set_defaults(run=run_inspect)
    check = commands.add_parser("verify", help="whether a checkpoint is whole, fits its configuration, and is finite")
    check.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint")
    check.set_defaults(run=run_verify)
    mean = commands.add_parser("average", help="the mean of several trainings of one model")
    mean.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="checkpoints, two or more")
    mean.add_argument("--parts", type=float, nargs="+", metavar="PART", help="of each in the mean (equal)")
    mean.add_argument("--out", type=Path, metavar="DIR", required=True, help="empty or new folder")
    mean.set_defaults(run=run_average)
    return parser


def _import_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", help="tiny, paper-3b, paper-7b, or custom; default: that of --checkpoint")
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.json of the variant custom")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a checkpoint to start from")
    parser.add_argument("--language", type=Path, metavar="DIR", help="Qwen2.5-VL as Hugging Face publishes it")
    parser.add_argument("--vision", type=Path, metavar="PATH", help="ViT of timm, or DINOv2: file or folder")
    parser.add_argument("--sam", type=Path, metavar="FILE", help="SAM or MedSAM (.pth)")
    parser.add_argument(
        "--fresh-decoder", action="store_true", help="do not take the mask decoder of any source; it starts untrained"
    )
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapter of PEFT, merged into the weights")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json where no other source has one")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="empty or new folder")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="source", help="of the weights on disk; source: as they were"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the parts that no source gives (0)")
    parser.add_argument("--licence", default=UNKNOWN, help="of the weights, for the card")
    parser.set_defaults(run=run_import)
