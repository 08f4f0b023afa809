"""The loop: schedules by hand, a killed run to the same bits, accumulation and devices that take the same step."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from model.training.loop import LoopConfig, Run, train
from model.training.optimiser import Average, learning_rate
from model.training.snapshot import ResumeError
from tests.model.loop_stage import Line, line_model

PLAIN = LoopConfig(steps=60, workers=0, decay_steps=1, tensorboard=False)


def test_linear_rate_warms_up_holds_and_decays():
    rates = [learning_rate(step, 100, 1.0, 10, "linear", decay=50) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert all(before >= after for before, after in zip(rates[50:], rates[51:], strict=False))
    assert rates[-1] == pytest.approx(0.02)


def test_cosine_rate_is_half_in_the_middle():
    assert learning_rate(50, 100, 1.0, 0, "cosine") == pytest.approx(0.5)
    assert learning_rate(100, 100, 1.0, 0, "cosine") == pytest.approx(0.02)


def test_adaptive_rate_meets_robbins_and_monro():
    """α_k = α₀ / (1 + η k): its sum grows without bound, that of its squares does not."""
    assert learning_rate(10_000, 1, 3.0, 0, "adaptive", eta=1e-4) == pytest.approx(1.5)
    rates = [learning_rate(k, 1, 1.0, 0, "adaptive", eta=1.0) for k in range(20_000)]
    assert sum(rates) > sum(rates[:10_000]) + 0.6
    assert sum(r * r for r in rates[10_000:]) < 1e-3


def test_unknown_schedule_says_what_is_accepted():
    with pytest.raises(ValueError, match="schedule='step'.*'adaptive'"):
        LoopConfig(steps=1, schedule="step")


def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path):
    whole, parted, fresh = line_model(), line_model(), line_model()
    average = train(Line(), whole, PLAIN, tmp_path / "whole")
    train(Line(), parted, replace(PLAIN, steps=25), tmp_path / "parted")
    resumed = train(Line(), fresh, PLAIN, tmp_path / "parted")
    # the last step of the short run was taken at its decayed rate, which is the only difference allowed
    assert learning_rate(24, 25, 1.0, 100, "linear", 1) == learning_rate(24, 60, 1.0, 100, "linear", 1)
    assert torch.equal(whole.weight, fresh.weight)
    assert all(torch.equal(average.weights[k], resumed.weights[k]) for k in average.weights)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_moment_it_ends_in_the_same_bits(sign, tmp_path):
    """A real process, killed again and again, against one that was left alone."""
    command = [sys.executable, "-m", "tests.model.loop_stage"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, stdout=subprocess.DEVNULL)
    kept, kills = tmp_path / "killed" / "last.pt", []
    for wait_s in (0.05, 0.21, 0.12, None):
        before = kept.stat().st_mtime_ns if kept.exists() else 0
        process = subprocess.Popen([*command, str(kept.parent)], env=environment, stdout=subprocess.DEVNULL)
        while wait_s and process.poll() is None and (kept.stat().st_mtime_ns if kept.exists() else 0) == before:
            time.sleep(0.01)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.send_signal(sign)
            process.wait()
            kills.append(torch.load(kept, weights_only=True)["step"])
    assert len(kills) == 3 and 0 < kills[0] < kills[1] < kills[2] < 400, "each part must have gone a way"
    whole, killed = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 400
    _assert_equal(whole, killed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "no step is told of twice"


@pytest.mark.slow
def test_a_run_that_fails_ends_and_leaves_no_process(tmp_path):
    """Its workers are told to end by SIGTERM, which they must not survive."""
    program = (
        "from tests.model.loop_stage import *\n"
        "class Failing(Line):\n"
        "    def loss(self, model, batch, step): raise ValueError('no loss')\n"
        f"train(Failing(), line_model(), LoopConfig(steps=9, workers=1, tensorboard=False), Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no loss" in done.stderr


def _assert_equal(a, b, where=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_equal(x, y, f"{where}/{index}")
    else:
        assert a == b, where


def test_other_settings_do_not_resume(tmp_path):
    train(Line(), line_model(), replace(PLAIN, steps=5), tmp_path)
    with pytest.raises(ResumeError, match="other settings"):
        train(Line(), line_model(), replace(PLAIN, lr=0.5), tmp_path)


def test_a_damaged_snapshot_is_said(tmp_path):
    tmp_path.joinpath("last.pt").write_bytes(b"nothing")
    with pytest.raises(ResumeError, match="cannot be read"):
        train(Line(), line_model(), PLAIN, tmp_path)


def test_accumulated_micro_batches_are_one_step(tmp_path):
    """Two micro-batches of 4 move the weights as one of 8 does."""
    one, two = line_model(), line_model()
    config = replace(PLAIN, steps=1, warmup_steps=1, clip=1e9)
    train(Line(rows=8), one, config, tmp_path / "one")
    train(Line(rows=4, parts=2), two, replace(config, accumulation=2), tmp_path / "two")
    assert torch.allclose(one.weight, two.weight, atol=1e-7)
    assert torch.allclose(one.bias, two.bias, atol=1e-7)


@pytest.mark.slow
def test_two_processes_take_the_step_of_two_micro_batches(tmp_path):
    """`torchrun` with two processes against one process that accumulates."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*run, "-m", "tests.model.loop_stage", str(tmp_path / "two"), "30"], check=True, env=environment,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)  # fmt: skip
    alone = line_model()
    train(Line(), alone, replace(PLAIN, steps=30, accumulation=2, warmup_steps=5), tmp_path / "one")
    two = torch.load(tmp_path / "two" / "last.pt", weights_only=True)["model"]
    assert torch.allclose(two["weight"], alone.weight, atol=1e-6)


def test_what_only_training_needs_trains_and_resumes(tmp_path):
    stage = Line(extra=True)
    before = stage.modules().weight.detach().clone()
    train(stage, line_model(), replace(PLAIN, steps=3, warmup_steps=1), tmp_path)
    assert not torch.equal(before, stage.modules().weight)
    again = Line(extra=True)
    run = Run(again, line_model(), replace(PLAIN, steps=3, warmup_steps=1), tmp_path)
    run.go()
    assert torch.equal(stage.modules().weight, again.modules().weight)
    assert "extras.weight" not in run.average.weights, "it is never shipped"


def test_frozen_weights_stay_and_are_not_saved(tmp_path):
    model = line_model()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    train(Line(), model, replace(PLAIN, steps=3), tmp_path)
    assert torch.equal(model.bias, before)
    assert set(torch.load(tmp_path / "last.pt", weights_only=True)["model"]) == {"weight"}


def test_a_step_without_finite_gradient_is_left_out_and_counted(tmp_path):
    model = line_model()
    before = model.weight.detach().clone()
    train(Line(bad=True), model, replace(PLAIN, steps=2, log_every=1), tmp_path)
    assert torch.equal(model.weight, before)
    assert [row["skipped"] for row in _rows(tmp_path)] == [1.0, 1.0]


def test_metrics_are_means_and_evaluation_sees_the_average(tmp_path):
    model, seen = line_model(), []

    def evaluate(averaged, step):
        seen.append((step, float(averaged.weight.detach())))
        return {"weight": seen[-1][1]}

    train(Line(), model, replace(PLAIN, steps=40, log_every=20), tmp_path, evaluate, 20)
    rows = _rows(tmp_path)
    assert [step for step, _ in seen] == [20, 40]
    assert [row["step"] for row in rows if "loss" in row] == [20, 40]
    assert seen[-1][1] != pytest.approx(float(model.weight.detach()), abs=1e-9)
    single = tmp_path / "single"
    train(Line(), line_model(), replace(PLAIN, steps=40, log_every=1), single)
    mean = sum(row["loss"] for row in _rows(single)[:20]) / 20
    assert rows[0]["loss"] == pytest.approx(mean, rel=1e-4)


def test_curves_are_there_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(Line(), line_model(), replace(PLAIN, steps=20, log_every=10, tensorboard=True), tmp_path)
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("line/loss")] == [10, 20]


def test_parts_may_learn_faster(tmp_path):
    """A step of Adam is the rate, whatever the gradient, so that paces can be read off the weights."""
    model = line_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    config = replace(PLAIN, steps=1, warmup_steps=1, weight_decay=0, faster={"weight": 5})
    train(Line(), model, config, tmp_path)
    moved = {name: float((weight.detach() - before[name]).abs().max()) for name, weight in model.named_parameters()}
    assert moved["weight"] == pytest.approx(5 * moved["bias"], rel=1e-3)


def test_average_follows_and_is_put_back():
    model = line_model()
    average = Average(model.named_parameters(), 0.5)
    before = float(average.weights["weight"])
    with torch.no_grad():
        model.weight += 1.0
    average.update(model.named_parameters(), step=1000)
    assert float(average.weights["weight"]) == pytest.approx(before + 0.5)
    average.apply(model)
    assert float(model.weight) == pytest.approx(before + 0.5)


def test_half_precision_computes_in_it(tmp_path):
    seen = []

    class Watching(Line):
        def loss(self, model, batch, step):
            seen.append(model(batch[0]).dtype)
            return super().loss(model, batch, step)

    train(Watching(), line_model(), replace(PLAIN, steps=1, precision="bf16"), tmp_path)
    assert seen == [torch.bfloat16]


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_modules_of_no_stage_are_none():
    assert Run(Line(), nn.Linear(1, 1), PLAIN, Path("unused")).extras is None
