"""Other programs' words for what a PPO stage sets: TRL's, while it had PPO (to 1.12), and of RLOO; OpenRLHF's, others'.

`docs/ppo.md` shows both tables as one; a test keeps them equal.
"""

from __future__ import annotations

# Another name for the same thing -> the key of the stage's block, or elsewhere in the recipe.
PPO_KEYS = {
    # TRL
    "init_kl_coef": "kl_coef",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "cliprange": "clip_range",
    "cliprange_value": "value_clip",
    "lam": "gae_lambda",
    "num_ppo_epochs": "epochs",
    "ppo_epochs": "epochs",
    "num_mini_batches": "minibatches",
    "batch_size": "rollout_batch_size",
    "per_device_train_batch_size": "per_device_batch_size",
    "local_rollout_forward_batch_size": "generation_batch_size",
    "forward_batch_size": "generation_batch_size",
    "response_length": "max_new_tokens",
    "total_episodes": "episodes",
    "steps": "episodes",
    "num_generations": "samples_per_prompt",
    "rloo_k": "samples_per_prompt",
    "use_score_scaling": "normalise_scores",
    "use_score_norm": "normalise_scores",
    "query_dataset": "data.prompts.from",
    "is_peft_model": "model.adapter",
    "exp_name": "name",
    "task_name": "name",
    "log_with": "tracking",
    "tracker_kwargs": "tracking",
    "tracker_project_name": "tracking.wandb.project",
    "eval_steps": "eval_every",
    "eval_strategy": "eval_every",
    "load_best_model_at_end": "select",
    "use_vllm": "rollout_engine",
    "vllm_mode": "rollout_engine",
    "vllm_server_base_url": "vllm.url",
    "vllm_gpu_memory_utilization": "vllm.gpu_memory_utilization",
    "vllm_importance_sampling_cap": "vllm.importance_cap",
    # OpenRLHF
    "actor_learning_rate": "learning_rate",
    "critic_learning_rate": "value_learning_rate",
    "eps_clip": "clip_range",
    "lambd": "gae_lambda",
    "max_epochs": "epochs",
    "micro_train_batch_size": "per_device_batch_size",
    "train_max_tokens_per_gpu": "tokens_per_device",
    "micro_rollout_batch_size": "generation_batch_size",
    "generate_max_len": "max_new_tokens",
    "prompt_max_len": "data.prompts.max_prompt_length",
    "max_norm": "max_grad_norm",
    "l2": "weight_decay",
    "normalize_reward": "normalise_scores",
    "reward_clip_range": "score_clip",
    "entropy_loss_coef": "entropy_coef",
    "overlong_buffer_len": "overlong_buffer",
    "overlong_penalty_factor": "overlong_penalty",
    "vllm_is_truncated_threshold": "vllm.importance_cap",
    # DeepSpeed-Chat, verl
    "max_answer_seq_len": "max_new_tokens",
    "max_prompt_seq_len": "data.prompts.max_prompt_length",
    "unsup_coef": "ptx_coef",
    "clip_ratio": "clip_range",
    "clip_ratio_low": "clip_range",
    "clip_ratio_high": "clip_range_high",
    "clip_ratio_c": "dual_clip",
    "adv_estimator": "advantage_estimator",
    "entropy_coeff": "entropy_coef",
    "loss_agg_mode": "loss_aggregation",
    "critic_warmup": "value_warmup",
    "ppo_max_token_len_per_gpu": "tokens_per_device",
}

_IN_REWARD = "the price is on k1 in the reward, the only estimator there whose optimum is the right one"
_WHOLE = (
    "sampling is from the whole distribution, the one whose log-probabilities are trained (temperature may change it)"
)
_DIVIDED = "write `minibatches`: into how many optimiser steps a rollout is divided"
_ENGINE = "write `deepspeed: zero2` (or zero3, which gathers the policy once per rollout to sample from it)"
_MEASURED = "held-out prompts are answered at the start, every `eval_every` rollouts and at the end"
_SAMPLES = "write `samples_per_prompt`; `rollout_batch_size` counts answers here, not prompts, so multiply it by that"
_FUNCTION = "write it as a function of your own: `rewards: [{from: function}]` and --reward FILE:FUNCTION"

# No key of that meaning: what does its work here, or why nothing does.
PPO_DECIDED = {
    # TRL
    "adap_kl_ctrl": "a `kl_target` makes kl_coef adapt, none keeps it fixed",
    "target_kl": "write `stop_kl`, the limit itself (TRL stopped at 1.5 times its target_kl)",
    "early_stopping": "a `stop_kl` ends a rollout's passes early, none does not",
    "vf_coef": "policy and value have parameters, optimisers and clipping of their own, so it would do nothing: "
    "`value_learning_rate` sets the value's pace; where they share layers (`value_trunk: policy`) it is `value_coef`",
    "whiten_rewards": "it adds a constant to every token's reward, which pays for length; see whiten_advantages",
    "kl_estimator": _IN_REWARD,
    "kl_penalty": _IN_REWARD,
    "mini_batch_size": _DIVIDED,
    "local_mini_batch_size": _DIVIDED,
    "backward_batch_size": _DIVIDED,
    "global_backward_batch_size": _DIVIDED,
    "local_batch_size": "write `rollout_batch_size`, which counts over all processes",
    "gradient_accumulation_steps": "it follows from rollout_batch_size, minibatches and per_device_batch_size, exactly",
    "num_total_batches": "it follows from episodes and rollout_batch_size, exactly",
    "num_train_epochs": "write `episodes`: the answers sampled in all (prompts repeat as needed)",
    "num_sample_generations": _MEASURED,
    "compare_steps": "`select` says which policy is handed on: the best on held-out prompts, or the last",
    "ratio_threshold": "write nothing: from a mean ratio above 10 on, nothing more is learnt of a rollout",
    "reward_model_path": "write `rewards: [{from: FOLDER_OR_HUB_ID}]`, or train one in a reward stage before this one",
    "sft_model_path": "write `policy`, the stage to start from; a model made elsewhere is `model.base`",
    "stop_token": "an answer ends where the chat template ends a turn",
    "stop_token_id": "an answer ends where the chat template ends a turn",
    "model_adapter_name": "the pipeline names its adapters",
    "ref_adapter_name": "the reference is a frozen copy of what the policy starts from",
    "ds3_gather_for_generation": _ENGINE,
    "trainer_args": "PPO's loop is the pipeline's own: all it takes are the keys of this block",
    "dataset_num_proc": "prompts are formatted and tokenised before the stage sees them",
    "optimize_device_cache": "memory between phases is the pipeline's to free",
    "optimize_cuda_cache": "memory between phases is the pipeline's to free",
    "is_encoder_decoder": "models that only decode, such as Llama, are trained",
    "world_size": "ranks come from the launcher",
    "accelerator_kwargs": "ranks come from the launcher",
    "project_kwargs": "a run writes to its own folder only",
    "push_to_hub_if_best_kwargs": "a run writes to its own folder only",
    # OpenRLHF, DeepSpeed-Chat, verl
    "n_samples_per_prompt": _SAMPLES,
    "n": _SAMPLES,
    "use_kl_loss": _IN_REWARD,
    "use_kl_estimator_k3": _IN_REWARD,
    "eps_clip_low_high": "write `clip_range` for the bound below 1 and `clip_range_high` for the one above",
    "train_batch_size": _DIVIDED,
    "ppo_mini_batch_size": _DIVIDED,
    "num_episodes": "write `episodes`: answers sampled in all, not passes over the prompts",
    "freezing_actor_steps": "write `value_warmup`, which counts rollouts",
    "critic_pretrain": "write `value_init`: reward or zero",
    "reward_pretrain": "write `rewards: [{from: FOLDER_OR_HUB_ID}]`, or train one in a reward stage before this one",
    "remote_rm_url": _FUNCTION,
    "enable_ema": "weights are not averaged; `select` hands on the policy that was best on held-out prompts",
    "ema_beta": "weights are not averaged; `select` hands on the policy that was best on held-out prompts",
    "zero_stage": _ENGINE,
    "top_k": _WHOLE,
    "top_p": _WHOLE,
    "min_p": _WHOLE,
    "repetition_penalty": _WHOLE,
}
