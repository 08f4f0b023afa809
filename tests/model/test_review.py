"""Review: every decision is on the disk before it is answered, and what is exported is what was decided."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from model.chains.review import Reviews, review_path, with_chains
from model.chains.review_app import create_app, is_loopback, listen, outline_path
from model.chains.rows import RowError, append_line, read_rows
from model.data.sample import read_samples
from model.dataset_cli import run_dataset
from tests.model.chain_fakes import ABSENT, GOOD, WRONG, gland_picture, write_set

EDITED = GOOD.replace("This fits", "This looks like")


def client_of(samples: Path, which: str = "unreviewed", by: str = "Ada") -> TestClient:
    """The page over a file, as if it had just been started."""
    reviews = Reviews(read_rows(samples), review_path(samples), by)
    app = create_app(reviews, reviews.queue(which), samples.name)
    return TestClient(app, base_url="http://127.0.0.1:8000")


@pytest.fixture()
def samples(tmp_path: Path) -> Path:
    return write_set(tmp_path)


def decide(client: TestClient, index: int, **body: str):
    return client.post(f"/api/samples/{index}/decision", json=body)


def log(samples: Path) -> list[dict]:
    return [json.loads(line) for line in review_path(samples).read_text().splitlines()]


def test_accept_edit_and_reject_are_logged_at_once(samples):
    client = client_of(samples)
    assert decide(client, 0, state="accepted").json()["progress"]["accepted"] == 1
    assert decide(client, 2, state="edited", chain=f"  {EDITED}\n", note="fewer words").status_code == 200
    told = decide(client, 1, state="rejected", note="not a good question").json()
    assert told == {
        "state": "rejected", "progress": {"unreviewed": 1, "accepted": 1, "edited": 1, "rejected": 1, "total": 4},
    }  # fmt: skip
    lines = log(samples)
    assert [(line["id"], line["state"], line["reviewer"], line["note"]) for line in lines] == [
        ("s0", "accepted", "Ada", ""), ("s2", "edited", "Ada", "fewer words"),
        ("s1", "rejected", "Ada", "not a good question"),
    ]  # fmt: skip
    assert lines[1]["chain"] == EDITED and lines[0]["chain"] == GOOD
    shown = client.get("/api/samples/2").json()
    assert (shown["state"], shown["chain"], shown["written"], shown["reviewer"]) == ("edited", EDITED, GOOD, "Ada")
    assert client.get("/api/queue").json()["first"] == 3


def test_a_sample_shows_all_that_is_needed_to_judge_it(samples):
    shown = client_of(samples).get("/api/samples/0").json()
    assert shown["query"] == "Where is low-grade dysplasia?" and shown["targets"] == ["low-grade dysplasia"]
    assert (shown["width"], shown["height"]) == (96, 96) and shown["problems"] == [] and not shown["blocked"]
    assert shown["about"]["organ"] == "colon" and shown["about"]["mpp"] == 0.5
    (structure,) = shown["measured"]
    assert structure["target"] and ["location", "upper left, 14% of the picture"] in structure["rows"]
    (outline,) = shown["outlines"]
    numbers = [float(number) for number in re.findall(r"[\d.]+", outline["path"])]
    assert outline["target"] and 4 <= min(numbers) <= 6 and 44 <= max(numbers) <= 46
    absent = client_of(samples).get("/api/samples/1").json()
    assert absent["targets"] == [] and [outline["target"] for outline in absent["outlines"]] == [False]


def test_the_picture_is_served_as_it_is(samples):
    answer = client_of(samples).get("/api/samples/0/image.png")
    read = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), gland_picture()[0])


def test_an_edit_is_checked_live(samples):
    client = client_of(samples)
    found = client.post("/api/samples/0/check", json={"chain": WRONG}).json()
    assert [problem["code"] for problem in found["problems"]] == ["location"] and not found["blocked"]
    found = client.post("/api/samples/0/check", json={"chain": GOOD.replace(" <SEG>", "")}).json()
    assert found["blocked"] and found["problems"][0]["code"] == "seg-missing"
    assert not review_path(samples).exists()


@pytest.mark.parametrize(
    ("index", "chain", "said"),
    [
        (0, GOOD.replace(" <SEG>", ""), "no <SEG>"), (0, f"{GOOD} and low-grade dysplasia <SEG>.", "1 <SEG> due"),
        (1, ABSENT.replace("here.", "here: it <SEG>."), "absent but there is a <SEG>"), (0, "glands", "grammar"),
        (0, "  ", "needs the text"),
    ],
)  # fmt: skip
def test_an_edit_that_training_could_not_read_is_refused(samples, index, chain, said):
    client = client_of(samples)
    answer = decide(client, index, state="edited", chain=chain)
    assert answer.status_code == 422 and said in answer.json()["detail"]
    assert not review_path(samples).exists()


def test_a_chain_that_training_could_not_read_is_not_accepted_but_may_be_rejected(samples):
    chains = samples.with_name("c.jsonl")
    for row in read_rows(samples):
        append_line(chains, row.data | {"chain": row.chain.replace("<SEG>", "")})
    client = client_of(chains)
    assert client.get("/api/samples/0").json()["blocked"]
    assert "not accepted: " in decide(client, 0, state="accepted").json()["detail"]
    assert decide(client, 0, state="rejected").status_code == 200


def test_undo_takes_back_step_by_step_and_survives_a_restart(samples):
    client = client_of(samples)
    decide(client, 0, state="accepted")
    decide(client, 0, state="rejected")
    decide(client, 1, state="accepted")
    assert client.post("/api/undo", json={}).json() | {"progress": None} == {
        "index": 1, "state": "unreviewed", "progress": None,
    }  # fmt: skip
    client = client_of(samples, "all")
    assert client.post("/api/undo", json={}).json()["state"] == "accepted"
    assert client.post("/api/undo", json={}).json()["state"] == "unreviewed"
    assert client.post("/api/undo", json={}).status_code == 409
    assert len(log(samples)) == 6 and sum(line.get("undo", False) for line in log(samples)) == 3


def test_a_restart_goes_on_where_it_stopped_even_after_a_torn_line(samples):
    client = client_of(samples)
    decide(client, 0, state="accepted")
    decide(client, 1, state="accepted")
    path = review_path(samples)
    path.write_bytes(path.read_bytes()[:-9])
    client = client_of(samples)
    assert [client.get(f"/api/samples/{index}").json()["id"] for index in range(3)] == ["s1", "s2", "s3"]
    decide(client, 0, state="rejected")
    assert [(line["id"], line["state"]) for line in log(samples)] == [("s0", "accepted"), ("s1", "rejected")]


def test_a_decision_about_a_chain_that_was_written_anew_no_longer_counts(samples):
    decide(client_of(samples), 0, state="accepted")
    rows = read_rows(samples)
    rows[0].data["chain"] = EDITED
    reviews = Reviews(rows, review_path(samples), "Ada")
    assert (reviews.decision("s0").state, reviews.decision("s0").stale) == ("unreviewed", True)


def test_accepting_what_was_edited_keeps_it_edited(samples):
    client = client_of(samples)
    decide(client, 0, state="edited", chain=EDITED)
    assert decide(client, 0, state="accepted").json()["state"] == "edited"
    assert log(samples)[-1]["chain"] == EDITED


def test_queues(samples):
    rows = read_rows(samples)
    rows[2].data["chain"] = WRONG
    reviews = Reviews(rows, review_path(samples), "Ada")
    reviews.decide("s0", "accepted")
    assert reviews.queue("unreviewed") == ["s1", "s2", "s3"]
    assert reviews.queue("flagged") == ["s2"] and reviews.queue("all") == ["s0", "s1", "s2", "s3"]
    some = reviews.queue("unreviewed", 2, seed=1)
    assert len(some) == 2 and set(some) < {"s1", "s2", "s3"} and some == reviews.queue("unreviewed", 2, seed=1)
    assert len({tuple(reviews.queue("all", 2, seed)) for seed in range(12)}) > 1


def test_export_holds_what_was_decided(samples, capsys):
    client = client_of(samples)
    decide(client, 0, state="accepted")
    decide(client, 1, state="rejected")
    decide(client, 2, state="edited", chain=WRONG)
    out = samples.with_name("reviewed.jsonl")
    assert run_dataset(["review", str(samples), "--export", str(out)]) == 0
    assert "2 samples; 1 unreviewed, 1 accepted, 1 edited, 1 rejected" in capsys.readouterr().out
    first, second = read_samples(out)
    assert (first.id, first.chain, first.provenance.review.state) == ("s0", GOOD, "accepted")
    assert first.provenance.review.reviewer == "Ada" and "location" in first.provenance.checks
    assert (second.id, second.chain, second.provenance.review.state) == ("s2", WRONG, "edited")
    assert "location" not in second.provenance.checks and "tone" in second.provenance.checks
    assert run_dataset(["review", str(samples), "--export", str(out), "--keep-rejected"]) == 0
    assert [sample.id for sample in read_samples(out)] == ["s0", "s1", "s2"]
    assert list(samples.parent.glob(".*.part")) == []


def test_what_was_exported_counts_as_reviewed(samples):
    decide(client_of(samples), 0, state="accepted")
    out = samples.with_name("reviewed.jsonl")
    run_dataset(["review", str(samples), "--export", str(out)])
    assert Reviews(read_rows(out), review_path(out), "Bo").decision("s0").reviewer == "Ada"


def test_chains_of_another_file_are_reviewed_instead(samples):
    chains = samples.with_name("c.jsonl")
    append_line(chains, read_rows(samples)[0].data | {"chain": EDITED})
    merged = with_chains(read_rows(samples), read_rows(chains))
    assert [row.chain for row in merged] == [EDITED, ABSENT, GOOD, ABSENT]


# Who may call


def test_only_this_machine_and_the_page_itself_may_call(samples):
    client = client_of(samples)
    body = {"state": "accepted"}
    path = "/api/samples/0/decision"
    assert client.post(path, json=body, headers={"Host": "evil.example"}).status_code == 421
    assert client.post(path, json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post(path, content=json.dumps(body), headers={"Content-Type": "text/plain"}).status_code == 415
    assert not review_path(samples).exists()
    assert client.post(path, json=body, headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/samples/9/decision", {"state": "accepted"}, 404),
        ("/api/samples/x/decision", {"state": "accepted"}, 422),
        ("/api/samples/-1/check", {"chain": GOOD}, 404), ("/api/samples/0/decision", {}, 422),
        ("/api/samples/0/decision", {"state": "fine"}, 422), ("/api/samples/0/check", {"chain": "x" * 30_000}, 422),
        ("/api/samples/0/decision", {"state": "rejected", "chain": GOOD}, 422),
    ],
)  # fmt: skip
def test_calls_that_are_not_accepted(samples, path, body, status):
    assert client_of(samples).post(path, json=body).status_code == status
    assert not review_path(samples).exists()


def test_a_missing_picture_is_said(samples):
    client = client_of(samples)
    samples.with_name("a.png").unlink()
    answer = client.get("/api/samples/0")
    assert answer.status_code == 500 and "a.png is not a readable image" in answer.json()["detail"]


def test_the_page_is_ours_alone_and_says_what_it_is_for(samples):
    client = client_of(samples)
    page = client.get("/")
    assert "Research use only" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("/review.css", "/review.js"):
        assert client.get(name).status_code == 200 and f'"{name}"' in page.text
    static = files("model.chains").joinpath("static")
    outside = [
        path.name for path in static.iterdir() if re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text())
    ]
    assert outside == []
    script = static.joinpath("review.js").read_text()
    used = set(re.findall(r'byId\("([\w-]+)"\)', script))
    assert used and used <= set(re.findall(r'id="([\w-]+)"', page.text))
    assert "innerHTML" not in script
    fields = set(re.findall(r'<(?:input|textarea)[^>]* id="(\w+)"', page.text)) | {"outlined"}
    labelled = set(re.findall(r'<label[^>]* for="(\w+)"', page.text)) | {"outlined"}
    assert fields == labelled == {"draft", "note", "outlined"}


def test_loopback_hosts():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "example.org", "::", "")))
    with pytest.raises(ValueError, match="--host 0.0.0.0: loopback only"):
        listen("0.0.0.0", 0)
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0


def test_a_hole_is_outlined_too():
    mask = np.zeros((20, 20), bool)
    mask[2:18, 2:18] = True
    assert outline_path(mask) == "M2.5 2.5 2.5 17.5 17.5 17.5 17.5 2.5Z"
    mask[8:12, 8:12] = False
    assert outline_path(mask).count("M") == 2


# The command


def test_the_command_serves_until_it_is_killed_and_keeps_every_decision(samples):
    code = "import sys; from model.dataset_cli import run_dataset; sys.exit(run_dataset(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "review", str(samples), "--by", "Ada"], cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert "4 to review" in process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline()).group()
        request = urllib.request.Request(
            f"{url}api/samples/0/decision", b'{"state": "accepted"}', {"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=20) as answer:
            assert json.load(answer)["progress"]["accepted"] == 1
        assert run_dataset(["review", str(samples), "--by", "Bo"]) == 2  # one at a time
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert [(line["id"], line["reviewer"]) for line in log(samples)] == [("s0", "Ada")]


def refusal(capsys, *options: str) -> str:
    """The one line said on stderr about options that are not accepted."""
    assert run_dataset(["review", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_not_accepted_is_said_on_one_line(samples, capsys, tmp_path):
    assert "no samples at" in refusal(capsys, str(tmp_path / "none.jsonl"))
    assert "loopback only" in refusal(capsys, str(samples), "--host", "0.0.0.0", "--by", "Ada")
    assert "--sample 0" in refusal(capsys, str(samples), "--sample", "0")
    assert "another name" in refusal(capsys, str(samples), "--export", str(samples))
    other = samples.with_name("other.jsonl")
    append_line(other, {"id": "x", "image": "a.png", "query": "?"})
    assert "none of the samples" in refusal(capsys, str(samples), "--chains", str(other), "--by", "Ada")
    assert "--by must be" in refusal(capsys, str(samples), "--by", " ")


def test_nothing_left_to_review(samples, capsys):
    reviews = Reviews(read_rows(samples), review_path(samples), "Ada")
    for row_id in reviews.rows:
        reviews.decide(row_id, "accepted")
    assert run_dataset(["review", str(samples), "--by", "Ada"]) == 0
    assert "nothing to review: no sample of 4 is unreviewed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", [{"id": "s0"}, {"id": "s0", "state": "accepted", "chain": "", "of": "", "undo": True}]
)
def test_a_log_that_is_none_is_refused(samples, line):
    append_line(review_path(samples), line)
    with pytest.raises(RowError, match="train.review.jsonl"):
        Reviews(read_rows(samples), review_path(samples), "Ada")
