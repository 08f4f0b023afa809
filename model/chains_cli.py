"""`slidereason dataset chains` and `slidereason dataset review`: reasoning chains written, checked and reviewed."""

import argparse
import getpass
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.chains.pipeline import Plan

BAD_INPUT = 2


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Add both commands to those of `slidereason dataset`."""
    _add_chains(commands)
    _add_review(commands)


def _add_chains(commands: argparse._SubParsersAction) -> None:
    text = "Write reasoning chains from what is measured, by template or by a model behind an endpoint, and check them."
    parser = commands.add_parser("chains", help=text[0].lower() + text[1:-1], description=text)
    parser.add_argument("samples", type=Path, help="one sample a line, e.g. DIR/train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="samples with their new chains; a stopped run goes on")
    parser.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, e.g. http://127.0.0.1:8000/v1")
    parser.add_argument("--model", metavar="NAME", help="as the endpoint knows it")
    parser.add_argument("--api-key-env", metavar="VAR", help="environment variable that holds the key")
    parser.add_argument("--vision", action="store_true", help="show the model the picture; it leaves this machine")
    parser.add_argument("--concurrency", type=int, default=4, help="samples under way at once (default: 4)")
    parser.add_argument("--attempts", type=int, default=3, help="chains to ask for, until one passes (default: 3)")
    parser.add_argument("--retries", type=int, default=4, help="of a request that fails in passing (default: 4)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one request (default: 120)")
    parser.add_argument("--temperature", type=float, default=0.3, help="of the model's sampling (default: 0.3)")
    parser.add_argument("--max-tokens", type=int, default=4096, help="longest answer of the model (default: 4096)")
    parser.add_argument("--seed", type=int, default=0, help="of the model or the template (default: 0)")
    parser.add_argument("--limit", type=int, help="samples to write in this run (default: all)")
    parser.add_argument("--no-fallback", action="store_true", help="leave out what the model fails at: no template")
    parser.add_argument("--retry-failed", action="store_true", help="try again what failed in an earlier run")
    parser.set_defaults(run=run_chains)


def run_chains(options: argparse.Namespace) -> int:
    """Write chains.

    Returns:
        0, or 2 when an input, an option or the endpoint is not accepted (said on stderr).
    """
    from model.chains.endpoint import EndpointError
    from model.chains.pipeline import attempts_path, make_chains
    from model.chains.rows import read_rows

    try:
        if options.out.resolve() == options.samples.resolve():
            raise ValueError("--out is the file of samples itself; another name is accepted")
        if options.limit is not None and options.limit < 1:
            raise ValueError(f"--limit {options.limit}: 1 or more is accepted")
        done = make_chains(read_rows(options.samples), options.out, _plan(options), options.limit, _progress("chains"))
    except (ValueError, OSError, EndpointError) as error:
        return _refuse("chains", error)
    told = f"{options.out}: {done.written} written, {done.skipped} done before"
    if options.endpoint:
        told += f", {done.fallen_back} by the template instead, {done.failed} failed; all: {attempts_path(options.out)}"
    elif done.failed:
        told += f", {done.failed} failed; see {attempts_path(options.out)}"
    print(told)
    return 0


def _plan(options: argparse.Namespace) -> "Plan":
    """Who writes, by the options.

    Raises:
        ValueError: options that do not go together.
    """
    from model.chains.endpoint import Endpoint, EndpointSettings, key_from
    from model.chains.pipeline import Plan
    from model.chains.writers import EndpointWriter, TemplateWriter

    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: 0 or more is accepted")
    template = TemplateWriter(options.seed)
    if options.endpoint is None:
        if options.model or options.api_key_env or options.vision:
            raise ValueError("--model, --api-key-env and --vision need --endpoint; without it the template writes")
        return Plan(template, retry_failed=options.retry_failed)
    if not options.model:
        raise ValueError("--endpoint needs --model, the name that the endpoint knows its model by")
    if options.attempts < 1 or options.retries < 0 or options.concurrency < 1:
        raise ValueError("--attempts and --concurrency from 1, --retries from 0 are accepted")
    settings = EndpointSettings(
        url=options.endpoint, model=options.model, key=key_from(options.api_key_env), timeout_s=options.timeout,
        attempts=options.retries + 1, concurrency=options.concurrency, temperature=options.temperature,
        max_tokens=options.max_tokens,
    )  # fmt: skip
    what = "pictures, questions and measurements" if options.vision else "questions and measurements"
    print(f"{what} are sent to {settings.told}", file=sys.stderr)
    writer = EndpointWriter(Endpoint(settings), options.attempts, options.vision, options.seed)
    fallback = None if options.no_fallback else template
    return Plan(writer, fallback, options.concurrency, options.retry_failed)


def _add_review(commands: argparse._SubParsersAction) -> None:
    text = "Review chains on a page of this machine, accept, edit or reject each, and export what was decided."
    parser = commands.add_parser("review", help=text[0].lower() + text[1:-1], description=text)
    parser.add_argument("samples", type=Path, help="one sample a line, e.g. DIR/train.jsonl")
    parser.add_argument("--chains", type=Path, metavar="FILE", help="chains to review instead of the samples' own")
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to serve on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="port to serve on (default: 0, a free one)")
    parser.add_argument("--by", metavar="NAME", help="who reviews (default: the user's name)")
    parser.add_argument("--filter", choices=("unreviewed", "flagged", "all"), default="unreviewed", help="what to show")
    parser.add_argument("--sample", type=int, metavar="N", help="so many of these, by chance (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of that chance (default: 0)")
    parser.add_argument("--export", type=Path, metavar="OUT", help="write what was reviewed, and serve nothing")
    parser.add_argument("--keep-rejected", action="store_true", help="export rejected chains too")
    parser.set_defaults(run=run_review)


def run_review(options: argparse.Namespace) -> int:
    """Serve the review page until interrupted, or export.

    Returns:
        0, or 2 when an input or option is not accepted (said on stderr).
    """
    from model.chains.review import review_path
    from model.chains.rows import alone

    try:
        if options.sample is not None and options.sample < 1:
            raise ValueError(f"--sample {options.sample}: 1 or more is accepted")
        log = review_path(options.chains or options.samples)
        if options.export is not None:
            return _export(options, log)
        reviewer = (options.by or getpass.getuser()).strip()
        if not reviewer:
            raise ValueError("--by must be a name that is not empty")
        rows = _rows(options)
        with alone(log):
            return _serve(options, rows, log, reviewer)
    except (ValueError, OSError) as error:
        return _refuse("review", error)


def _rows(options: argparse.Namespace) -> list:
    """The samples, with the chains of `--chains`."""
    from model.chains.review import with_chains
    from model.chains.rows import read_rows

    rows = read_rows(options.samples)
    if options.chains is None:
        return rows
    chains = read_rows(options.chains)
    if not {row.id for row in rows} & {row.id for row in chains}:
        raise ValueError(f"{options.chains} holds chains of none of the samples in {options.samples}")
    return with_chains(rows, chains)


def _export(options: argparse.Namespace, log: Path) -> int:
    """Write what was decided."""
    from model.chains.review import Reviews
    from model.chains.rows import write_lines

    taken = {path.resolve() for path in (options.samples, options.chains, log) if path}
    if options.export.resolve() in taken:
        raise ValueError(f"--export {options.export}: another name than that of what is read is accepted")
    reviews = Reviews(_rows(options), log, reviewer="", repair=False)
    count = write_lines(options.export, reviews.exported(options.export.parent, options.keep_rejected))
    states = reviews.progress(list(reviews.rows))
    print(f"{options.export}: {count} samples; " + ", ".join(f"{n} {state}" for state, n in states.items()))
    return 0


def _serve(options: argparse.Namespace, rows: list, log: Path, reviewer: str) -> int:
    """The page, until interrupted."""
    import uvicorn

    from model.chains.review import Reviews
    from model.chains.review_app import create_app, listen

    reviews = Reviews(rows, log, reviewer)
    show = _progress("samples looked at")
    queue = reviews.queue(
        options.filter, options.sample, options.seed, (lambda n: show(n, len(rows))) if show else None
    )
    if not queue:
        print(f"nothing to review: no sample of {len(rows)} is {options.filter}")
        return 0
    with listen(options.host, options.port) as listener:
        app = create_app(reviews, queue, (options.chains or options.samples).name)
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"{len(queue)} to review, decisions go to {log}", flush=True)
        print(f"http://{host}:{listener.getsockname()[1]}/   (stop with Ctrl-C; research use only)", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass
    return 0


def _progress(what: str) -> Callable[[int, int], None] | None:
    """One line on stderr that counts, when that is a terminal."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(
        f"\r{done}/{total} {what}", end="\n" if done == total else "", file=sys.stderr, flush=True
    )


def _refuse(command: str, error: Exception) -> int:
    """Say on one line what is not accepted."""
    print(f"slidereason dataset {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT
