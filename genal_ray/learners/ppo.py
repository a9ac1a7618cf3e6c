"""Proximal policy optimisation: advantages from a critic that learns the value of every state (arXiv 1707.06347)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from genal_ray.learners import Algorithm, Measured, Targets

if TYPE_CHECKING:
    from genal_ray.config import LearnerConfig


class PPO(Algorithm):
    """r_t = -beta * kl_t, the sequence's reward at its last token; GAE; standardised over the batch's tokens."""

    name: str = "ppo"
    has_critic: ClassVar[bool] = True

    def targets(self, measured: Measured, config: LearnerConfig, kl_coefficient: float) -> Targets:
        from genal_ray import ppo

        values, mask = measured.values, measured.mask
        rewards = ppo.shaped_rewards(measured.rewards, measured.kl, mask, kl_coefficient)
        advantages, returns = ppo.generalized_advantages(
            rewards, values, mask, gamma=config.gamma, lam=config.gae_lambda
        )
        return Targets(
            advantages=ppo.standardize(advantages, mask),
            returns=returns,
            metrics={"rl/explained_variance": ppo.explained_variance(values, returns, mask)},
        )
