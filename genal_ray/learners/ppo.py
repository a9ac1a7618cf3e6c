"""Proximal policy optimisation: advantages from a critic that learns the value of every state (arXiv 1707.06347)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from genal_ray.learners import Algorithm, Measured, Targets

if TYPE_CHECKING:
    from genal_ray.config import LearnerConfig


SMALLEST_DEVIATION = 1e-6
"""Of the sequences' rewards, as a share of the largest; those that differ by less are the same."""


class PPO(Algorithm):
    """r_t = -beta * kl_t, the sequence's reward at its last token; GAE; standardised over the batch's tokens.

    Where all rewards are the same, advantages are 0 and the critic alone learns: standardised, what is left of them
    would be the tokens' positions and the critic's errors, at full strength.
    """

    name: str = "ppo"
    has_critic: ClassVar[bool] = True

    def targets(self, measured: Measured, config: LearnerConfig, kl_coefficient: float) -> Targets:
        import torch

        from genal_ray import ppo

        values, mask = measured.values, measured.mask
        rewards = ppo.shaped_rewards(measured.rewards, measured.kl, mask, kl_coefficient)
        advantages, returns = ppo.generalized_advantages(
            rewards, values, mask, gamma=config.gamma, lam=config.gae_lambda
        )
        deviation = measured.rewards.std(correction=0)
        told_apart = bool(deviation > SMALLEST_DEVIATION * measured.rewards.abs().max())
        return Targets(
            advantages=ppo.standardize(advantages, mask) if told_apart else torch.zeros_like(advantages),
            returns=returns,
            metrics={"rl/explained_variance": ppo.explained_variance(values, returns, mask)},
        )
