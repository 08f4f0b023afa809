"""The benchmark of a gateway under pollers: it runs, its jobs go on, and what goes wrong is counted."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import pollers
from benchmarks.pollers import Memory, measurements
from benchmarks.run import main


@pytest.mark.slow
def test_pollers_and_streams_see_jobs_go_on_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDEREASON_BENCH_SECONDS", "12")
    assert main(["pollers", "--here", "--quick", "--seed", "3", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "pollers.json").read_text())
    found = {measurement["name"]: measurement for measurement in result["measurements"]}
    assert found["errors"]["median"] == 0, found["errors"]["notes"]
    assert found["errors"]["notes"]["units"] > 10
    assert found["events"]["median"] > 0
    assert 0 < found["status latency, p50"]["median"] <= found["status latency, p99"]["median"]
    assert "seed 3" in result["data"] and "12 s" in result["data"]


def test_growth_is_a_slope_and_faults_of_clients_and_workers_are_errors() -> None:
    memory = Memory(os.getpid())
    memory.samples = [(float(second), 100.0 + 0.05 * second) for second in range(60)]
    seen = {
        "latencies_s": [0.01] * 99 + [0.5], "statuses": {"200": 100}, "errors": {"poll: HTTP 503": 2}, "seconds": 10.0,
        "waits_s": [1, 3], "events": 5, "ended_streams": 1, "event_delays_s": [],
    }  # fmt: skip
    found = {made.name: made.values for made in measurements(seen, memory, {"worker_faults": ["OSError: full"]})}
    assert found["gateway memory, growth"] == (pytest.approx(3.0),)
    assert found["errors"] == (3.0,)
    assert found["status latency, max"] == (pytest.approx(500.0),)
    assert found["status requests"] == (10.0,)


def test_a_gateway_that_does_not_start_is_said() -> None:
    class Ended:
        def poll(self) -> int:
            return 3

    with pytest.raises(RuntimeError, match="exit code 3"):
        pollers.wait_until_up(Ended(), "http://127.0.0.1:1")
