"""GAE against a brute-force sum; the terms of the policy loss by hand, and their signs."""

import math

import pytest
import torch

from model.training.advantages import gae, group_advantages, k3, policy_loss, value_loss, whiten


def _brute_force(rewards, values, length, gamma, lam):
    """Â_t = Σ_l (γλ)^l δ_{t+l}, as the paper writes it."""
    v = [*values[:length], 0.0]
    deltas = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(length)]
    return [sum((gamma * lam) ** n * deltas[t + n] for n in range(length - t)) for t in range(length)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_the_brute_force_sum(gamma, lam):
    torch.manual_seed(0)
    lengths = [7, 3, 1]
    rewards, values = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    said = torch.arange(7) < torch.tensor(lengths)[:, None]
    advantages, returns = gae(rewards, values, said, gamma, lam)
    for r, n in enumerate(lengths):
        expected = _brute_force(rewards[r].tolist(), values[r].tolist(), n, gamma, lam)
        assert advantages[r, :n].tolist() == pytest.approx(expected)
        assert not advantages[r, n:].any() and not returns[r, n:].any()
        assert torch.allclose(returns[r, :n], advantages[r, :n] + values[r, :n])


def test_with_lambda_one_it_is_the_return_less_the_value():
    rewards, values = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, 0.25, 4.0]])
    advantages, _ = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    assert advantages[0].tolist() == pytest.approx([2.5, 2.75, -2.0])


def test_credit_fades_with_lambda():
    """A reward at the end of 60 tokens is seen at the first with λ^59."""
    rewards = torch.zeros(1, 60)
    rewards[0, -1] = 1
    advantages, _ = gae(rewards, torch.zeros(1, 60), torch.ones(1, 60, dtype=torch.bool), 1.0, 0.95)
    assert float(advantages[0, 0]) == pytest.approx(0.95**59, rel=1e-4)


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0], [5.0, 5.0]])
    told = group_advantages(rewards, torch.ones(4, 2, dtype=torch.bool), 2)
    assert told[:2].tolist() == [[pytest.approx(-1, abs=1e-3)] * 2, [pytest.approx(1, abs=1e-3)] * 2]
    assert not told[2:].any(), "answers of equal worth teach nothing"


def test_whitened_over_what_was_said():
    said = torch.tensor([[True, True], [True, False]])
    white = whiten(torch.tensor([[1.0, 2.0], [3.0, 99.0]]), said)
    assert float(white.sum()) == pytest.approx(0, abs=1e-6)
    assert float(white.square().sum() / 3) == pytest.approx(1, abs=1e-5)
    assert white[1, 1] == 0


def test_policy_loss_by_hand():
    old = torch.zeros(1, 2)
    log_probs = torch.tensor([[math.log(1.5), math.log(0.5)]])
    said = torch.ones(1, 2, dtype=torch.bool)
    # 1.5 is clipped to 1.2 where it is good; 0.5 to 0.8 where it is bad: the pessimistic side counts
    assert float(policy_loss(log_probs, old, torch.tensor([[1.0, -1.0]]), said)) == pytest.approx(-(1.2 - 0.8) / 2)
    assert float(policy_loss(log_probs, old, torch.tensor([[-1.0, 1.0]]), said)) == pytest.approx(-(-1.5 + 0.5) / 2)


def test_a_better_action_becomes_likelier():
    log_probs = torch.zeros(1, 2, requires_grad=True)
    said = torch.ones(1, 2, dtype=torch.bool)
    policy_loss(log_probs, log_probs.detach(), torch.tensor([[1.0, -1.0]]), said).backward()
    assert log_probs.grad[0, 0] < 0 < log_probs.grad[0, 1], "descent raises the first and lowers the second"


def test_raising_the_advantage_lowers_the_loss():
    said, zero = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2)
    low, high = (policy_loss(zero, zero, torch.tensor([[a, 0.0]]), said) for a in (0.1, 0.2))
    assert high < low


def test_k3_by_hand():
    said = torch.tensor([[True, False]])
    told = k3(torch.log(torch.tensor([[0.5, 0.1]])), torch.log(torch.tensor([[0.25, 0.9]])), said)
    assert float(told) == pytest.approx(0.5 - math.log(0.5) - 1)
    assert float(k3(torch.zeros(1, 2), torch.zeros(1, 2), said)) == 0


def test_value_loss_is_the_worse_of_both():
    said, old, returns = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1), torch.ones(1, 1)
    assert float(value_loss(torch.tensor([[1.0]]), old, returns, said)) == pytest.approx(0.5 * (1 - 0.2) ** 2)
    assert float(value_loss(torch.tensor([[-1.0]]), old, returns, said)) == pytest.approx(0.5 * 4)
