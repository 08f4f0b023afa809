"""How much better a token was than expected: GAE, or the return against the group's; and the terms of the policy loss.

Source: Schulman et al. 2016, GAE, Eq. 16; Schulman et al. 2017, PPO, Eq. 7; Shao et al. 2024, GRPO, §4.1; Schulman
2020, Approximating KL divergence (k3); Liu et al. 2026, PathChat-SegR1, §3.4.
"""

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, said: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation.

    Args:
        rewards: (R, T) r_t.
        values: (R, T) V(s_t), of the state before each token; beyond the end of an answer V is 0.
        said: (R, T) bool, True at tokens of the answer, which are the first of each row.
        gamma, lam: γ and λ.

    Returns:
        (R, T) advantages Â_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V(s_{t+1}) − V(s_t), and (R, T) returns
        Â_t + V(s_t); 0 where nothing was said.
    """
    values, rewards = values * said, rewards * said
    advantages = torch.zeros_like(rewards)
    later = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(later)
        delta = rewards[:, t] + gamma * after - values[:, t]
        later = (delta + gamma * lam * later) * said[:, t]
        advantages[:, t] = later
    return advantages, (advantages + values) * said


def group_advantages(rewards: Tensor, said: Tensor, group: int) -> Tensor:
    """GRPO's: the return of a whole answer against the others of its prompt, the same for each of its tokens.

    Args:
        rewards: (R, T), rows of one prompt next to each other.
        said: (R, T) bool.
        group: answers a prompt.
    """
    returns = (rewards * said).sum(1).view(-1, group)
    spread = returns.std(1, keepdim=True, correction=0)
    relative = (returns - returns.mean(1, keepdim=True)) / (spread + 1e-4)
    return relative.view(-1, 1) * said


def whiten(advantages: Tensor, said: Tensor) -> Tensor:
    """Mean 0 and spread 1 over the tokens of the batch."""
    n = said.sum().clamp_min(1)
    mean = (advantages * said).sum() / n
    spread = (((advantages - mean) * said).square().sum() / n).sqrt()
    return (advantages - mean) / (spread + 1e-8) * said


def policy_loss(log_probs: Tensor, old: Tensor, advantages: Tensor, said: Tensor, clip: float = 0.2) -> Tensor:
    """−E[min(ρ Â, clip(ρ, 1 ± ε) Â)] over tokens, with ρ = π(a_t | s_t) / π_old(a_t | s_t); all (R, T)."""
    ratio = (log_probs - old).exp()
    worth = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -(worth * said).sum() / said.sum().clamp_min(1)


def k3(log_probs: Tensor, reference: Tensor, said: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(π ‖ π_ref): E[e^d − d − 1] with d = log π_ref − log π."""
    d = reference - log_probs
    return ((d.exp() - d - 1) * said).sum() / said.sum().clamp_min(1)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, said: Tensor, clip: float = 0.2) -> Tensor:
    """0.5 · E[max((V − G)², (V_clipped − G)²)], V moving at most `clip` from what it was at the drawing."""
    near = old + (values - old).clamp(-clip, clip)
    worst = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * (worst * said).sum() / said.sum().clamp_min(1)
