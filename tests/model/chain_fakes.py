"""What tests of chains share: a small built set, and a local server that speaks like an OpenAI-compatible endpoint."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.data.sample import Provenance, Sample, pixel_hash, write_samples

PINK, PURPLE, WHITE = (225, 160, 190), (95, 55, 140), (245, 244, 246)
DIAGNOSES = ("normal_gland", "polyp", "low_grade", "high_grade", "malignant_gland", "serrated")


def disc(size: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def gland_picture(x: float = 25, y: float = 25) -> tuple[np.ndarray, np.ndarray]:
    """A purple gland with an open lumen on pink, 96 px, and its mask; upper left unless moved."""
    image = np.full((96, 96, 3), PINK, np.uint8)
    whole = disc(96, x, y, 20)
    image[whole] = PURPLE
    image[disc(96, x, y, 8)] = WHITE
    return image, whole


def write_set(folder: Path, count: int = 4) -> Path:
    """`train.jsonl` as `dataset build` writes it: low-grade dysplasia in the upper left; odd ones ask for cancer."""
    folder.mkdir(parents=True, exist_ok=True)
    image, mask = gland_picture()
    cv2.imwrite(str(folder / "a.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    cv2.imwrite(str(folder / "a_mask.png"), mask.astype(np.uint8) * 255)
    absent = tuple(key for key in DIAGNOSES if key != "low_grade")
    samples = []
    for number in range(count):
        asked = number % 2 == 0
        samples.append(Sample(
            id=f"s{number}", scene="a", image="a.png", masks={"low_grade": "a_mask.png", "gland": "a_mask.png"},
            absent=absent, query="Where is low-grade dysplasia?" if asked else "Is there adenocarcinoma?",
            chain=GOOD if asked else ABSENT, targets=("low_grade",) if asked else (),
            concept="low_grade" if asked else "malignant_gland", kind="named" if asked else "absent", organ="colon",
            mpp=0.5, stain="H&E", source="made", patient=f"p{number}", licence="CC0-1.0", facts={},
            provenance=Provenance("tests", "template", {"slidereason": "0"}, 0, (), pixel_hash(image)),
        ))  # fmt: skip
    write_samples(folder / "train.jsonl", samples)
    return folder / "train.jsonl"


GOOD = (
    "<think> Looking for low-grade dysplasia. A medium gland, much darker than around, lies in the upper left area. "
    "This fits low-grade dysplasia. </think> Found in the upper left area: low-grade dysplasia <SEG>."
)
WRONG = GOOD.replace("upper left", "lower right")
ABSENT = (
    "<think> Looking for adenocarcinoma. A medium gland lies in the upper left area. This fits low-grade dysplasia. "
    "</think> No adenocarcinoma is found here."
)

Reply = tuple[int, dict[str, str], bytes]


def completion(text: str, model: str = "fake-1", tokens: int = 7) -> Reply:
    body = {"model": model, "choices": [{"message": {"content": text}}], "usage": {"total_tokens": tokens}}
    return 200, {}, json.dumps(body).encode()


class FakeEndpoint:
    """Answers `/v1/chat/completions` on a free port of this machine with what `answer(request)` gives.

    Attributes:
        requests: the bodies received, in order.
        headers: their headers.
        paths: where they were sent to.
        busiest: how many were under way at once.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Reply]):
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.busiest = self._under_way = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.requests.append(asked)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    outer._under_way += 1
                    outer.busiest = max(outer.busiest, outer._under_way)
                try:
                    status, headers, body = answer(asked)
                    with outer._lock:
                        outer._under_way -= 1
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the client gave up waiting

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeEndpoint":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


def one_after_another(*replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    """Each reply once, the last one for ever."""
    left = list(replies)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


def slowly(reply: Reply, seconds: float) -> Callable[[dict[str, Any]], Reply]:
    def answer(asked: dict[str, Any]) -> Reply:
        time.sleep(seconds)
        return reply

    return answer


def is_chain_step(asked: dict[str, Any]) -> bool:
    """Whether a request asks for the chain, not for the description."""
    return "<answer>" in asked["messages"][0]["content"]


def writer_of(text: str | Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], Reply]:
    """An endpoint that describes, and then answers with a chain."""

    def answer(asked: dict[str, Any]) -> Reply:
        if not is_chain_step(asked):
            return completion("A medium gland, much darker than around, lies in the upper left area.")
        chain = text(asked) if callable(text) else text
        return completion(f"<think>the model's own thoughts</think>\n<answer>\n{chain}\n</answer>")

    return answer
