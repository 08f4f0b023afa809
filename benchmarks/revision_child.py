"""The other side of `revision.RevisionSegmenter`: runs with an earlier revision's `model` and nothing of today's.

Messages are pickles on stdin and stdout: first the card, then for every batch its answers.
"""

import os
import pickle
import sys
from dataclasses import asdict, fields

TOLD = ("text", "masks", "phrases", "confidence", "p_seg", "forced", "raw_confidence")


def main() -> None:
    """Load the model that the command line names, and answer until stdin ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the revision prints goes to stderr

    def send(kind: str, value: object) -> None:
        pickle.dump((kind, value), out, protocol=pickle.HIGHEST_PROTOCOL)
        out.flush()

    try:
        from model.predictor import load_segmenter
        from model.segmenter import TileBatch

        segmenter = load_segmenter(sys.argv[1])
        send("card", asdict(segmenter.card))
        while True:
            try:
                told = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            answers = segmenter.predict(TileBatch(**told))
            send("answers", [{k: getattr(a, k) for k in TOLD if k in {f.name for f in fields(a)}} for a in answers])
    except Exception as error:  # told to whoever asked
        send("error", f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
