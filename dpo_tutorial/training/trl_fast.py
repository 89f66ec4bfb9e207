"""``FastDPOTrainer``: TRL 1.16's ``DPOTrainer`` with the step of :mod:`dpo_tutorial.training.fast_step`."""

import functools
import logging
import types
from unittest import mock

import torch
from trl import DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.utils import FusedCausalLMOutput

from dpo_tutorial.training import fast_step
from dpo_tutorial.training.checkpoints import SafeCheckpoints
from dpo_tutorial.training.models import bfloat16_speedup, keep_memory

logger = logging.getLogger(__name__)
add_trl_head = dpo_trainer.add_fused_lm_head
DROPPED = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")
METRICS = ("entropy", "mean_logits", "is_top1")


class FastDPOTrainer(SafeCheckpoints, DPOTrainer):
    """TRL's ``DPOTrainer``, same numbers, less work per step.

    Arguments, data, losses, metrics, checkpoints and callbacks are TRL's own; only the forward pass that TRL's
    loss calls is replaced, for training, evaluation and the caching of the reference. Where it cannot be, TRL's
    runs, :attr:`fast_step_reason` says why and the log has a line.

    Args:
        full_metrics: False leaves out entropy, token accuracy and the mean logits.
        compute_dtype: type of the matrix products; by default the base's (or autocast's), but float32 for a
            bfloat16 base on a CPU that multiplies float32 faster. LoRA is float32 in any case.

    Everything else goes to ``DPOTrainer``.
    """

    def __init__(self, *args, full_metrics: bool = True, compute_dtype: torch.dtype | None = None, **kwargs):
        self.full_metrics, self.compute_dtype, self.fast_step_reason = full_metrics, compute_dtype, None
        keep_memory()
        # TRL adds its own head to policy and reference before it wraps them or caches the reference: the one
        # moment at which a forward pass can be replaced for all of these.
        with mock.patch.object(dpo_trainer, "add_fused_lm_head", self._add_fast_step):
            super().__init__(*args, **kwargs)

    def _reason_against(self, model) -> str | None:
        """Why this trainer or this model cannot take the fast step, or None."""
        args = self.args
        reasons = {
            "DeepSpeed shards the weights": self.is_deepspeed_enabled,
            "FSDP shards the weights": self.is_fsdp_enabled,
            "parallelism within a row is on": self.accelerator.parallelism_config is not None,
            "activations are offloaded": args.activation_offloading,
            "WPO's weights need the whole distribution": self.use_weighting,
            "the data has images": self._is_vision_dataset,
            "NEFTune adds noise to the embeddings": getattr(args, "neftune_noise_alpha", None) is not None,
            "torch.compile is on": args.torch_compile,
            "liger kernels replace the layers": args.use_liger_kernel,
        }
        return next((reason for reason, holds in reasons.items() if holds), None) or fast_step.reason_against(model)

    def _note(self, reason: str) -> None:
        if reason != self.fast_step_reason:
            logger.warning("TRL's own step is used instead of the fast one: %s", reason)
        self.fast_step_reason = reason

    def _add_fast_step(self, model, **options) -> None:
        """TRL's head for ``model``, and before it the fast step, which leaves to TRL what it cannot do."""
        add_trl_head(model, **options)
        reason = self._reason_against(model)
        if reason is not None:
            self._note(reason)
            return
        trl_forward = model.forward
        wants_metrics = self.full_metrics and "entropy" in options.get("outputs", ())
        if self.compute_dtype is None and model.device.type == "cpu" and model.dtype == torch.bfloat16:
            self.compute_dtype = torch.float32 if bfloat16_speedup() < 1 else None

        @functools.wraps(type(model).forward)  # generate() reads the signature
        def forward(itself, *args, fused_lm_head=False, **kwargs):
            if not fused_lm_head:
                return trl_forward(*args, **kwargs)
            try:
                return self._fast_forward(itself, args, kwargs, wants_metrics)
            except fast_step.Unsupported as unsupported:
                self._note(str(unsupported))
                return trl_forward(*args, fused_lm_head=True, **kwargs)

        model.forward = types.MethodType(forward, model)

    def _fast_forward(self, model, args: tuple, kwargs: dict, wants_metrics: bool) -> FusedCausalLMOutput:
        """What TRL's head returns, by the fast step."""
        given = {name for name, value in kwargs.items() if value is not None and value is not False}
        unknown = given - {"input_ids", "attention_mask", "labels"}
        if args or unknown or kwargs.get("input_ids") is None:
            raise fast_step.Unsupported(f"the model was called with {', '.join(sorted(unknown)) or 'no input_ids'}")
        scores = fast_step.pair_scores(
            model,
            kwargs["input_ids"],
            kwargs["attention_mask"],
            kwargs["labels"],
            compute_dtype=self.compute_dtype,
            metrics=wants_metrics,
        )
        for name in METRICS:  # TRL's loss reads them; what it makes of zeros is dropped below
            scores.setdefault(name, torch.zeros_like(scores["label_mask"]))
        return FusedCausalLMOutput(**scores)

    def _precompute_ref_logps(self, dataset, *args):
        if self.args.world_size > 1 and not getattr(dataset, "cache_files", True):
            raise ValueError(
                "several processes share the cached reference through a file beside the data; this data set is in "
                "memory only. Remedy: dataset.save_to_disk(folder) once and datasets.load_from_disk(folder) in each "
                "process, or precompute_ref_log_probs=False"
            )
        return super()._precompute_ref_logps(dataset, *args)

    def _compute_loss(self, model, inputs, return_outputs):
        answer = super()._compute_loss(model, inputs, return_outputs)
        if not self.full_metrics:
            for name in DROPPED:
                self._metrics["train" if self.model.training else "eval"].pop(name, None)
        return answer
