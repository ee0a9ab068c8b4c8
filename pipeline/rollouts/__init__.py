"""From prompts to scored answers: engines that sample, rewards that score, the record PPO trains on. Layer 3."""
