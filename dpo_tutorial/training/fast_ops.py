"""The pieces of the fast step that keep less, or compute less, than autograd would: each with its own backward."""

import torch
import torch.nn.functional as F
from torch import Tensor

HEAD_ROWS = 256  # rows of logits that exist at once: 50 MB for 49,152 tokens in float32


class RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight over the last dimension, computed in float32, returned in the type of ``x``.

    Keeps ``x`` (which the residual stream keeps anyway) and one number per row.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        wide = grad.float()
        grad_weight = (wide * normed).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        wide = wide * weight
        slope = (wide * normed).mean(-1, keepdim=True)
        return wide.addcmul_(normed, slope, value=-1).mul_(scale).to(x.dtype), grad_weight, None


class Rotary(torch.autograd.Function):
    """Rotate the halves of (N, heads, d) by the angles of each position: cos and sin are (N, 1, d / 2)."""

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        turned = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        out_first, out_second = turned.chunk(2, dim=-1)
        torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-sign)
        torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=sign)
        return turned

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return Rotary.rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return Rotary.rotate(grad, *ctx.saved_tensors, -1), None, None


class Projection(torch.autograd.Function):
    """Linear layers on the same input: x W^T + bias + scaling (x A^T) B^T each, LoRA's part where A is given.

    Arguments after ``x`` (N, in): the type of the products with W, the type of LoRA's products, then five per
    layer (W, bias, A, B, scaling). A frozen W in another type is converted here and forgotten. The gradient of
    ``x`` is summed over the layers in place.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype, lora_dtype: torch.dtype, *flat):
        layers = [flat[i : i + 5] for i in range(0, len(flat), 5)]
        x = x.to(dtype)
        narrow, outputs, lows = x.to(lora_dtype), [], []
        for weight, bias, down, up, scaling in layers:
            output = F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
            if down is not None:
                low = narrow @ down.to(lora_dtype).T
                output = output.to(lora_dtype).addmm_(low, up.to(lora_dtype).T, alpha=scaling).to(dtype)
                lows.append(low)
            outputs.append(output)
        ctx.save_for_backward(x, *lows, *(part for layer in layers for part in layer[:4]))
        ctx.types, ctx.scalings = (dtype, lora_dtype), [layer[4] for layer in layers]
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (dtype, lora_dtype), scalings, needs = ctx.types, ctx.scalings, ctx.needs_input_grad
        x, *saved = ctx.saved_tensors
        parts = saved[len(saved) - 4 * len(scalings) :]
        lows = iter(saved)
        narrow, grad_x, answers = x.to(lora_dtype), None, []
        for i, (grad, scaling) in enumerate(zip(grads, scalings, strict=True)):
            weight, bias, down, up = parts[4 * i : 4 * i + 4]
            wants = needs[3 + 5 * i : 7 + 5 * i]
            grad = grad.to(dtype)
            grad_weight = (grad.T @ x).to(weight.dtype) if wants[0] else None
            grad_bias = grad.sum(0).to(bias.dtype) if wants[1] else None
            grad_down = grad_up = low_grad = None
            if down is not None:
                wide = grad.to(lora_dtype)
                low_grad = (wide @ up.to(lora_dtype)).mul_(scaling)
                grad_up = (wide.T @ next(lows)).mul_(scaling).to(up.dtype) if wants[3] else None
                grad_down = (low_grad.T @ narrow).to(down.dtype) if wants[2] else None
            if needs[0]:
                weight = weight.to(dtype)
                grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
                if low_grad is not None:
                    grad_x = grad_x.addmm_(low_grad.to(dtype), down.to(dtype))
            answers += [grad_weight, grad_bias, grad_down, grad_up, None]
        return grad_x, None, None, *answers


class FrozenHead(torch.autograd.Function):
    """log softmax(h W^T)[target] of n rows, for a frozen W (V, hidden): logits exist for some rows at a time.

    The gradient of a row's log-probability is W[target] - sum_v p_v W_v, whatever the loss does with it. So it
    is computed here, while the probabilities exist, and the backward pass only multiplies: no second pass over
    the logits, and one (n, hidden) matrix to keep.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, metrics: bool):
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        average = weight.mean(0, dtype=torch.float32) if metrics else None
        columns = []
        for start in range(0, len(hidden), HEAD_ROWS):
            rows, wanted = hidden[start : start + HEAD_ROWS], targets[start : start + HEAD_ROWS]
            log_probs, log_norm, probs, top1 = _log_probs(rows @ weight.T, wanted, metrics)
            mean = probs.to(hidden.dtype) @ weight if slopes is not None or metrics else None
            if slopes is not None:
                torch.sub(weight[wanted], mean, out=slopes[start : start + HEAD_ROWS])
            # entropy = log norm - sum_v p_v logit_v, and that sum is h . (sum_v p_v W_v)
            wide = rows.float() if metrics else None
            columns.append(
                (log_probs, log_norm - (wide * mean).sum(1), wide @ average, top1) if metrics else (log_probs,)
            )
        ctx.save_for_backward(slopes)
        nothing = (hidden.new_zeros(0, dtype=torch.float32),) * (4 if metrics else 1)
        outputs = tuple(torch.cat(column) for column in zip(*(columns or [nothing]), strict=True))
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        (slopes,) = ctx.saved_tensors
        return grad[:, None].to(slopes.dtype) * slopes, None, None, None


class TrainedHead(torch.autograd.Function):
    """The same for a W that is trained (full fine-tuning): its gradient needs the logits again, in chunks."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, metrics: bool):
        ctx.save_for_backward(hidden, weight, targets)
        with torch.no_grad():
            outputs = FrozenHead.apply(hidden, weight, targets, metrics)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        hidden, weight, targets = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        matrix = weight.to(hidden.dtype)
        for start in range(0, len(hidden), HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            slope = torch.softmax(hidden[part] @ matrix.T, 1, dtype=torch.float32).neg_()
            slope.scatter_add_(1, targets[part, None], torch.ones_like(slope[:, :1]))
            slope = slope.mul_(grad[part, None]).to(hidden.dtype)
            grad_hidden[part] = slope @ matrix
            grad_weight += slope.T @ hidden[part]
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _log_probs(logits: Tensor, targets: Tensor, metrics: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of logits (n, V): the targets' log-probabilities, log normalisers, probabilities, is the target the first top.

    One pass for the probabilities; the normaliser follows from the target's. Where that is so small that float32
    rounds it, the largest one, at least 1 / V, gives it.
    """
    probs = torch.softmax(logits, 1, dtype=torch.float32)
    wanted, score = probs.gather(1, targets[:, None])[:, 0], logits.gather(1, targets[:, None])[:, 0].float()
    log_norm = score - wanted.log()
    small = (wanted < 1e-30).nonzero()[:, 0]
    if len(small):
        log_norm[small] = logits[small].amax(1).float() - probs[small].amax(1).log()
    top1 = None
    if metrics:  # in float32 no two logits are equal; in bfloat16 many are, and the first one counts
        top1 = wanted >= probs.amax(1) if logits.dtype == torch.float32 else logits.argmax(1) == targets
    return score - log_norm, log_norm, probs, top1


def head(hidden: Tensor, weight: Tensor, targets: Tensor, *, metrics: bool) -> dict[str, Tensor]:
    """Log-probabilities (n,) of ``targets`` under softmax(hidden W^T); three more numbers each with ``metrics``."""
    hidden = hidden.contiguous()  # a strided slice would cost as much again
    if weight.requires_grad and torch.is_grad_enabled():
        outputs = TrainedHead.apply(hidden, weight, targets, metrics)
    else:
        outputs = FrozenHead.apply(hidden, weight.to(hidden.dtype), targets, metrics)
    return dict(zip(("log_probs", "entropy", "mean_logits", "is_top1"), outputs, strict=False))
