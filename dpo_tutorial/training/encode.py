"""From preference pairs to token ids and batches, in the layout that TRL uses."""

import torch


def text_ids(tokenizer, prompt, completion=None) -> list[int]:
    """Ids of a text, or of a list of messages through the chat template, alone or with its completion."""
    if isinstance(prompt, str):
        return tokenizer(prompt + (completion or ""))["input_ids"]
    messages = prompt + (completion or [])
    return tokenizer.apply_chat_template(messages, add_generation_prompt=completion is None, return_dict=True)[
        "input_ids"
    ]


def common_prefix_length(a: list[int], b: list[int]) -> int:
    """Number of leading tokens that ``a`` and ``b`` share.

    >>> common_prefix_length([1, 2, 3], [1, 2, 4])
    2
    """
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def encode_pair(tokenizer, prompt, chosen, rejected, *, append_eos: bool = True) -> dict[str, list[int]]:
    """Token ids of one pair: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``.

    Prompt and completion are tokenised together; the completion starts where that departs from the
    prompt alone (a token can span the border). Texts get the EOS token appended unless they end with
    it, conversations never do (their template closes them), as TRL 1.16 has it.
    """
    if isinstance(prompt, str) and append_eos:
        eos = tokenizer.eos_token
        chosen, rejected = (text if text.endswith(eos) else text + eos for text in (chosen, rejected))
    alone = text_ids(tokenizer, prompt)
    full_chosen, full_rejected = (text_ids(tokenizer, prompt, response) for response in (chosen, rejected))
    start = min(common_prefix_length(alone, full_chosen), common_prefix_length(alone, full_rejected))
    return {"prompt_ids": alone[:start], "chosen_ids": full_chosen[start:], "rejected_ids": full_rejected[start:]}


def encode_pairs(tokenizer, frame, *, append_eos: bool = True) -> list[dict[str, list[int]]]:
    """:func:`encode_pair` for every row of a frame with ``prompt``, ``chosen`` and ``rejected``."""
    columns = zip(frame["prompt"], frame["chosen"], frame["rejected"], strict=True)
    return [encode_pair(tokenizer, *row, append_eos=append_eos) for row in columns]


def collate(examples: list[dict], *, pad_token_id: int, max_length: int | None = None) -> dict[str, torch.Tensor]:
    """A batch of B pairs as 2B rows, the chosen first, padded on the right.

    Args:
        examples: dictionaries as :func:`encode_pair` returns them.
        max_length: longer rows lose their end, so a pair whose responses differ only there becomes equal.

    Returns:
        ``input_ids``, ``attention_mask`` and ``completion_mask``, each (2B, T) int64; the mask is 1 on the
        completion's tokens, its EOS included. Nothing is shifted here: that happens in ``training.logps``.

    >>> batch = collate([{"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}], pad_token_id=0)
    >>> batch["input_ids"].tolist(), batch["completion_mask"].tolist()
    ([[1, 2, 3, 4], [1, 2, 5, 0]], [[0, 0, 1, 1], [0, 0, 1, 0]])
    """
    rows, masks = [], []
    for key in ("chosen_ids", "rejected_ids"):
        for example in examples:
            rows.append((example["prompt_ids"] + example[key])[:max_length])
            masks.append(([0] * len(example["prompt_ids"]) + [1] * len(example[key]))[:max_length])
    longest = max(map(len, rows))
    pad = torch.nn.functional.pad
    return {
        "input_ids": torch.stack([pad(torch.tensor(r), (0, longest - len(r)), value=pad_token_id) for r in rows]),
        "attention_mask": torch.stack([pad(torch.ones(len(r), dtype=int), (0, longest - len(r))) for r in rows]),
        "completion_mask": torch.stack([pad(torch.tensor(m), (0, longest - len(m))) for m in masks]),
    }


def collate_completions(
    prompt_ids: list[list[int]], completion_ids: list[list[int]], *, pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Single completions as (B, T) batches in the same layout, for scoring samples."""
    empty = [
        {"prompt_ids": p, "chosen_ids": c, "rejected_ids": []}
        for p, c in zip(prompt_ids, completion_ids, strict=True)
    ]
    batch = collate(empty, pad_token_id=pad_token_id)
    return {key: value[: len(empty)] for key, value in batch.items()}
