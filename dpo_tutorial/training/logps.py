"""Log-probabilities of completions. The one shift of the whole project is in :func:`per_token_logps`."""

from collections.abc import Callable

import torch

from dpo_tutorial.training.encode import collate, collate_completions


def per_token_logps(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """log p(token t+1 | tokens up to t), for every position but the first.

    Args:
        logits: (B, T, V), the LM head's outputs; position t predicts the token at t + 1.
        input_ids: (B, T).

    Returns:
        (B, T-1) float32: entry t belongs to the token at t + 1, so a mask over tokens is used as
        ``mask[:, 1:]``. Nothing is masked here.
    """
    logps = logits[:, :-1].float().log_softmax(-1)
    return logps.gather(-1, input_ids[:, 1:, None]).squeeze(-1)


def completion_logps(model, batch: dict[str, torch.Tensor], *, average: bool = False) -> torch.Tensor:
    """log pi(y | x), summed (or averaged) over the completion's tokens: (rows,) float32.

    Args:
        batch: ``input_ids``, ``attention_mask``, ``completion_mask`` as ``training.encode.collate`` makes them.
        average: divide by the number of completion tokens.

    Raises:
        ValueError: a row has no completion token, so its log-probability would silently be 0.
    """
    mask = batch["completion_mask"][:, 1:].to(model.device)
    lengths = mask.sum(1)
    if bool((lengths == 0).any()):
        rows = (lengths == 0).nonzero().flatten().tolist()
        raise ValueError(f"rows {rows} of the batch have no completion token: raise max_length or drop those pairs")
    input_ids = batch["input_ids"].to(model.device)
    logits = model(input_ids=input_ids, attention_mask=batch["attention_mask"].to(model.device)).logits
    summed = (per_token_logps(logits, input_ids) * mask).sum(1)
    return summed / lengths if average else summed


@torch.no_grad()
def pair_logps(
    model, examples: list[dict], *, pad_token_id: int, batch_size: int = 8, max_length: int | None = None,
    logps_of: Callable = completion_logps,
):  # fmt: skip
    """Log-probabilities of many encoded pairs: (chosen_logps, rejected_logps), each (N,) float32 on the CPU.

    ``logps_of(model, batch) -> (rows,)`` scores a batch; another one than the default is how a fault is studied.
    """
    chosen, rejected = [], []
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size], pad_token_id=pad_token_id, max_length=max_length)
        both = logps_of(model, batch).cpu().chunk(2)
        chosen.append(both[0])
        rejected.append(both[1])
    return torch.cat(chosen), torch.cat(rejected)


@torch.no_grad()
def sample_logps(model, prompt_ids, completion_ids, *, pad_token_id: int, batch_size: int = 16) -> torch.Tensor:
    """log pi(y | x) of single completions: (N,) float32 on the CPU; rows are grouped by length to save padding."""
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]) + len(completion_ids[i]))
    out = torch.empty(len(order))
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        batch = collate_completions(
            [prompt_ids[i] for i in picked], [completion_ids[i] for i in picked], pad_token_id=pad_token_id
        )
        out[picked] = completion_logps(model, batch).cpu()
    return out
