"""Chains are written, corrected and stored so that a run can be killed at any time and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.chains import pipeline
from model.chains.checks import NAMES, truth_of
from model.chains.endpoint import Endpoint, EndpointSettings
from model.chains.pipeline import Outcome, Plan, attempts_path, make_chains
from model.chains.prompt import outlined
from model.chains.rows import RowError, alone, append_line, read_rows, whole_lines
from model.chains.writers import EndpointWriter, TemplateWriter
from model.data.sample import read_samples
from model.dataset_cli import run_dataset
from tests.model.chain_fakes import (
    ABSENT,
    GOOD,
    WRONG,
    FakeEndpoint,
    gland_picture,
    is_chain_step,
    write_set,
    writer_of,
)

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_question(asked: dict) -> str:
    """The right chain for what is asked."""
    return GOOD if "Where is low-grade" in asked["messages"][1]["content"] else ABSENT


def plan_for(server: FakeEndpoint, fallback: bool = True, **options) -> Plan:
    client = Endpoint(EndpointSettings(server.url, "fake", key=KEY), sleep=lambda _: None)
    return Plan(EndpointWriter(client, **options), TemplateWriter() if fallback else None)


def test_the_template_writes_samples_of_the_schema(tmp_path):
    samples = write_set(tmp_path)
    out = tmp_path / "chains.jsonl"
    assert run_dataset(["chains", str(samples), "--out", str(out)]) == 0
    before, after = list(read_samples(samples)), list(read_samples(out))
    assert [sample.id for sample in after] == ["s0", "s1", "s2", "s3"]
    for old, new in zip(before, after, strict=True):
        assert (new.query, new.targets, new.facts, new.masks) == (old.query, old.targets, old.facts, old.masks)
        assert new.provenance.generator == "template" and new.provenance.checks == NAMES
        assert new.provenance.versions == {"slidereason": "0", "template": "1"}
        assert new.provenance.reader == "tests" and new.provenance.review.state == "unreviewed"
    assert not attempts_path(out).exists()


def test_the_same_seed_writes_the_same_and_in_any_order(tmp_path):
    rows = read_rows(write_set(tmp_path, 6))
    chains = []
    for name, order, seed in (("a", rows, 0), ("b", rows[::-1], 0), ("c", rows, 1)):
        make_chains(order, tmp_path / f"{name}.jsonl", Plan(TemplateWriter(seed)))
        chains.append({line["id"]: line["chain"] for line in lines(tmp_path / f"{name}.jsonl")})
    assert chains[0] == chains[1] != chains[2]


def test_a_model_describes_and_then_writes(tmp_path):
    rows = read_rows(write_set(tmp_path))
    with FakeEndpoint(writer_of(by_question)) as server:
        assert make_chains(rows, tmp_path / "c.jsonl", plan_for(server)) == Outcome(0, 4, 0, 0)
    made = list(read_samples(tmp_path / "c.jsonl"))
    assert [sample.chain for sample in made] == [GOOD, ABSENT, GOOD, ABSENT]
    told = made[0].provenance
    assert told.generator == "fake-1" and told.versions["endpoint"] == f"{server.url}/v1/chat/completions"
    assert told.versions["endpoint_model"] == "fake" and told.versions["attempts"] == "1"
    describe, write = server.requests[:2]
    assert not is_chain_step(describe) and is_chain_step(write)
    assert "- location: upper left, 14% of the picture" in describe["messages"][1]["content"]
    assert "A medium gland, much darker than around" in write["messages"][1]["content"]
    assert describe["seed"] == write["seed"] == told.seed
    assert lines(tmp_path / "c.attempts.jsonl")[0]["description"].startswith("A medium gland")


def test_a_wrong_chain_is_corrected_at_the_second_attempt(tmp_path):
    rows = read_rows(write_set(tmp_path, 1))
    with FakeEndpoint(writer_of(lambda asked: WRONG if len(asked["messages"]) == 2 else GOOD)) as server:
        assert make_chains(rows, tmp_path / "c.jsonl", plan_for(server)).written == 1
    assert lines(tmp_path / "c.jsonl")[0]["chain"] == GOOD
    again = server.requests[-1]["messages"]
    assert again[2] == {"role": "assistant", "content": WRONG}
    assert "'in the lower right' is contradicted: measured upper left" in again[3]["content"]
    (log,) = lines(tmp_path / "c.attempts.jsonl")
    assert [len(attempt["problems"]) for attempt in log["attempts"]] == [1, 0] and log["state"] == "written"
    assert log["versions"]["attempts"] == "2"


def test_what_stays_wrong_falls_back_to_the_template(tmp_path):
    rows = read_rows(write_set(tmp_path, 1))
    with FakeEndpoint(writer_of(WRONG)) as server:
        assert make_chains(rows, tmp_path / "c.jsonl", plan_for(server, attempts=2)) == Outcome(0, 0, 1, 0)
        assert len(server.requests) == 3
    (made,) = read_samples(tmp_path / "c.jsonl")
    assert made.provenance.generator == "template" and "upper left" in made.chain
    assert lines(tmp_path / "c.attempts.jsonl")[0]["state"] == "fallen_back"


def test_without_fallback_it_is_marked_failed_and_tried_again_on_demand(tmp_path):
    rows = read_rows(write_set(tmp_path, 1))
    out = tmp_path / "c.jsonl"
    with FakeEndpoint(writer_of(WRONG)) as server:
        plan = plan_for(server, fallback=False, attempts=1)
        assert make_chains(rows, out, plan) == Outcome(0, 0, 0, 1)
        assert lines(out) == [] and lines(attempts_path(out))[0]["state"] == "failed"
        assert make_chains(rows, out, plan) == Outcome(1, 0, 0, 0)
    with FakeEndpoint(writer_of(GOOD)) as server:
        again = Plan(plan_for(server).writer, retry_failed=True)
        assert make_chains(rows, out, again) == Outcome(0, 1, 0, 0)


def test_a_request_that_is_refused_costs_one_sample_only(tmp_path):
    rows = read_rows(write_set(tmp_path, 2))

    def answer(asked: dict):
        if "Where is low-grade" in asked["messages"][1]["content"]:
            return 400, {}, b'{"error": {"message": "content filter"}}'
        return writer_of(ABSENT)(asked)

    with FakeEndpoint(answer) as server:
        assert make_chains(rows, tmp_path / "c.jsonl", plan_for(server)) == Outcome(0, 1, 1, 0)
    assert "content filter" in lines(tmp_path / "c.attempts.jsonl")[0]["attempts"][0]["problems"][0]["message"]


def test_an_endpoint_that_fails_keeps_what_is_done(tmp_path, capsys, monkeypatch):
    samples, out = write_set(tmp_path), tmp_path / "c.jsonl"
    monkeypatch.setenv("MY_KEY", KEY)
    command = ["chains", str(samples), "--out", str(out), "--model", "fake", "--api-key-env", "MY_KEY"]
    options = ["--concurrency", "1", "--retries", "0"]

    def answer(asked: dict):
        return (401, {}, KEY.encode()) if len(server.requests) > 4 else writer_of(by_question)(asked)

    with FakeEndpoint(answer) as server:
        assert run_dataset([*command, "--endpoint", server.url, *options]) == 2
    said = capsys.readouterr()
    assert "401" in said.err.splitlines()[-1] and len(lines(out)) == 2
    with FakeEndpoint(writer_of(by_question)) as server:
        assert run_dataset([*command, "--endpoint", server.url, "--concurrency", "3"]) == 0
    assert sorted(line["id"] for line in lines(out)) == ["s0", "s1", "s2", "s3"]
    assert "2 written, 2 done before" in capsys.readouterr().out
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert all(KEY not in path.read_text(errors="replace") for path in tmp_path.iterdir())
    assert KEY not in said.out + said.err


def test_vision_shows_the_picture_and_where_to_look(tmp_path):
    rows = read_rows(write_set(tmp_path, 2))
    with FakeEndpoint(writer_of(by_question)) as server:
        make_chains(rows, tmp_path / "c.jsonl", plan_for(server, vision=True))
    parts = [[part["type"] for part in asked["messages"][1]["content"]] for asked in server.requests[::2]]
    assert parts == [["text", "image_url", "image_url"], ["text", "image_url"]]
    assert all(isinstance(asked["messages"][1]["content"], str) for asked in server.requests[1::2])
    image, mask = gland_picture()
    drawn = outlined(image, [mask])
    changed = (drawn != image).any(2)
    assert changed[25, 5] and changed[5, 25] and not changed[25, 10] and not changed[60:].any()


# Killed


def test_a_torn_line_is_cut_off_and_written_again(tmp_path):
    rows, out = read_rows(write_set(tmp_path)), tmp_path / "c.jsonl"
    make_chains(rows, out, Plan(TemplateWriter()), limit=3)
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])
    assert make_chains(rows, out, Plan(TemplateWriter())) == Outcome(2, 2, 0, 0)
    assert out.read_bytes()[: len(whole)] == whole and len(lines(out)) == 4
    out.write_text("no json\n" + out.read_text())
    with pytest.raises(RowError, match="c.jsonl line 1"):
        make_chains(rows, out, Plan(TemplateWriter()))


def test_an_interruption_loses_the_sample_under_way_only(tmp_path, monkeypatch):
    rows, out = read_rows(write_set(tmp_path)), tmp_path / "c.jsonl"
    real = pipeline.append_line

    def append(path, data):
        if data["id"] == "s2":
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(pipeline, "append_line", append)
    with pytest.raises(KeyboardInterrupt):
        make_chains(rows, out, Plan(TemplateWriter()))
    assert [line["id"] for line in lines(out)] == ["s0", "s1"]
    monkeypatch.undo()
    assert make_chains(rows, out, Plan(TemplateWriter())) == Outcome(2, 2, 0, 0)


def test_a_run_that_is_killed_goes_on(tmp_path):
    samples, out = write_set(tmp_path, 40), tmp_path / "c.jsonl"
    code = "import sys; from model.dataset_cli import run_dataset; sys.exit(run_dataset(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "chains", str(samples), "--out", str(out)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    for _ in range(600):
        if out.exists() and out.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = whole_lines(out, repair=False)
    assert 3 <= len(before)
    outcome = make_chains(read_rows(samples), out, Plan(TemplateWriter()))
    assert outcome.skipped == len(before) and outcome.written == 40 - len(before)
    assert [line["id"] for line in lines(out)] == [f"s{number}" for number in range(40)]


def test_two_runs_do_not_write_to_one_file(tmp_path):
    rows, out = read_rows(write_set(tmp_path)), tmp_path / "c.jsonl"
    with alone(out), pytest.raises(RowError, match="another process"):
        make_chains(rows, out, Plan(TemplateWriter()))


# Bad input


def refusal(capsys, *options: str) -> str:
    """The one line said on stderr about options that are not accepted."""
    assert run_dataset(["chains", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_not_accepted_is_said_on_one_line(tmp_path, capsys, monkeypatch):
    samples = str(write_set(tmp_path / "set"))
    out = str(tmp_path / "set" / "c.jsonl")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert "no samples at" in refusal(capsys, str(tmp_path / "none.jsonl"), "--out", out)
    assert "samples itself" in refusal(capsys, samples, "--out", samples)
    assert "--endpoint needs --model" in refusal(capsys, samples, "--out", out, "--endpoint", "http://h")
    assert "need --endpoint" in refusal(capsys, samples, "--out", out, "--vision")
    asked = (samples, "--out", out, "--endpoint", "http://h", "--model", "m")
    assert "NO_SUCH_KEY: the variable is not set" in refusal(capsys, *asked, "--api-key-env", "NO_SUCH_KEY")
    assert "--attempts" in refusal(capsys, *asked, "--attempts", "0")
    assert "--limit 0" in refusal(capsys, samples, "--out", out, "--limit", "0")
    elsewhere = tmp_path / "elsewhere"
    assert "does not lie in" in refusal(capsys, samples, "--out", str(elsewhere / "c.jsonl"))
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": ""}, "id is ''"), ({"query": None}, "query is None"), ({"masks": []}, None),
        ({"masks": [1]}, "masks is"),
        ({"image": "../a.png"}, "'../a.png' is no file's name"), ({"image": "/a.png"}, "'/a.png' is no file's name"),
        ({"targets": ["fat"]}, "targets name .'fat'."), ({"concept": 3}, "concept is 3"),
    ],
)  # fmt: skip
def test_lines_that_are_not_accepted(tmp_path, change, said):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"id": "a", "image": "a.png", "query": "?"} | change) + "\n")
    if said is None:
        assert read_rows(path)[0].id == "a"
    else:
        with pytest.raises(RowError, match=f"s.jsonl line 1: .*{said}"):
            read_rows(path)


def test_a_picture_that_is_not_the_samples_is_refused(tmp_path):
    rows = read_rows(write_set(tmp_path))
    rows[0].data["provenance"]["image_sha256"] = "0" * 64
    with pytest.raises(RowError, match="s0: a.png is not the picture"):
        make_chains(rows, tmp_path / "c.jsonl", Plan(TemplateWriter()))


def test_a_row_that_does_not_say_what_is_asked_is_refused(tmp_path):
    row = read_rows(write_set(tmp_path))[1]
    row.data.update(concept=None, query="What is this?")
    with pytest.raises(ValueError, match="s1: neither targets nor concept"):
        truth_of(row)
    row.data["kind"] = "unknown"
    assert truth_of(row).concept is None


def test_without_a_concept_the_question_says_it(tmp_path):
    path = tmp_path / "s.jsonl"
    append_line(path, {"id": "a", "image": "a.png", "query": "Is there a Serrated Adenoma?"})
    append_line(path, {"id": "a", "image": "a.png", "query": "Any tumor?"})
    (row,) = read_rows(path)
    assert row.concept == "tumour"
