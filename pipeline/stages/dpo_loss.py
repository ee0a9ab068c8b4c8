"""The recipe's DPO loss in TRL's terms, made right where TRL 1.16 ignores or changes a setting."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.algorithms.dpo import dpo_loss
from pipeline.algorithms.masked import masked_sum
from pipeline.recipe.stage_settings import DpoSettings


def loss_arguments(settings: DpoSettings) -> dict[str, Any]:
    """Arguments of `DPOConfig` that give the recipe's loss.

    TRL's `sigmoid` ignores label smoothing. Conservative DPO is written as a sum of two of its losses, exactly:
    with r the robust loss at flip rate e, -(1-e) log s(d) - e log s(-d) = 2(1-e) sigmoid - (1-2e) r.
    """
    e = settings.label_smoothing
    if settings.loss_type == "rpo":
        return {"loss_type": ["sigmoid"], "label_smoothing": 0.0}
    if settings.loss_type == "sigmoid" and e > 0:
        return {"loss_type": ["sigmoid", "robust"], "loss_weights": [2 * (1 - e), -(1 - 2 * e)], "label_smoothing": e}
    return {"loss_type": [settings.loss_type], "label_smoothing": e}


def rpo_loss(trainer: Any, model: Any, inputs: dict[str, Tensor], alpha: float) -> Tensor:
    """DPO plus alpha times the chosen answer's negative log-likelihood per token (arXiv 2404.19733, eq. 1).

    TRL's own `sft` term averages over all tokens of a micro-batch, which weighs long answers more and makes the loss
    depend on how rows fall into batches; the paper averages per answer.

    Args:
        trainer: TRL's DPOTrainer, for its reference and its metrics.
        model: the policy, possibly wrapped for several processes.
        inputs: ids, attention mask and completion mask (2B, T), chosen rows first.
        alpha: weight of the likelihood term.
    """
    response_mask = inputs["completion_mask"].bool()
    labels = inputs["input_ids"].masked_fill(~response_mask, -100)
    outputs = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=labels,
        use_cache=False,
        fused_lm_head=True,
    )
    mask_BR = response_mask[:, 1:]
    logps = masked_sum(outputs.log_probs[:, -mask_BR.shape[1] :], mask_BR, dim=-1)
    chosen, rejected = logps.chunk(2)
    ref_chosen, ref_rejected = trainer.compute_ref_log_probs(trainer.ref_model or model, inputs)
    found = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, trainer.beta)
    nll = -chosen / mask_BR.chunk(2)[0].sum(-1)
    margins = found.chosen_rewards_B - found.rejected_rewards_B
    mode = "train" if trainer.model.training else "eval"
    for name, values in (
        ("rewards/chosen", found.chosen_rewards_B),
        ("rewards/rejected", found.rejected_rewards_B),
        ("rewards/margins", margins),
        ("rewards/accuracies", (margins > 0).float()),
        ("logps/chosen", chosen.detach()),
        ("logps/rejected", rejected.detach()),
        ("nll/chosen", nll.detach()),
    ):
        trainer._metrics[mode][name].append(trainer.accelerator.gather(values).mean().item())
    return (found.losses_B + alpha * nll).mean()
