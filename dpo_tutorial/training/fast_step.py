"""The forward pass of one DPO step for the Llama family, without what the loss does not need.

Three savings against scoring the 2B padded rows one by one:

- a token that chosen and rejected have in common from the start (the prompt) is computed once;
- nothing is padded: every linear layer sees one (N, hidden) matrix of real tokens;
- the head sees only the positions that predict a completion token, and so does the last layer after its attention.

The numbers are those of the model's own forward pass up to rounding. Frozen weights get no gradient.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpo_tutorial.training.fast_ops import Projection, RMSNorm, Rotary, head

FAST_ROPES = ("default", "linear", "llama3", "yarn")  # angles that depend on the position only


class Unsupported(Exception):
    """The fast step cannot compute this model or batch; the message says why."""


@dataclass
class Layout:
    """Where the tokens of B pairs lie in the packed matrix of N tokens: per pair shared, chosen, rejected.

    ``pieces`` holds for each pair the numbers of shared, chosen and rejected tokens; ``rows`` the packed
    positions that predict a label and ``targets`` those labels (n,); ``label_mask`` (2B, T-1) where they belong.
    """

    input_ids: Tensor
    position_ids: Tensor
    pieces: list[tuple[int, int, int]]
    rows: Tensor
    targets: Tensor
    label_mask: Tensor
    biases: dict = field(default_factory=dict)

    def bias(self, shared: int, rejected: int, like: Tensor) -> Tensor:
        """What keeps a rejected token from seeing later ones: 0 or -inf (rejected, shared + rejected), made once."""
        key = shared, rejected, like.dtype
        if key not in self.biases:
            later = torch.ones(rejected, shared + rejected, dtype=torch.bool, device=like.device).triu(shared + 1)
            self.biases[key] = torch.zeros(later.shape, dtype=like.dtype, device=like.device).masked_fill_(
                later, -torch.inf
            )
        return self.biases[key]


def pack(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Layout:
    """The layout of a batch (2B, T), right-padded, whose row B + i is the rejected one of row i.

    What is shared is read from the tokens themselves, so any two rows may be paired. The last token of a row
    predicts nothing and is left out. Labels are the token ids, -100 where no loss is wanted.

    >>> ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0]])
    >>> pack(ids, (ids > 0).long(), ids.masked_fill(ids < 7, -100)).pieces
    [(2, 1, 0)]

    Raises:
        Unsupported: an odd number of rows, or padding on the left or within a row.
    """
    if len(input_ids) % 2:
        raise Unsupported(f"a batch of {len(input_ids)} rows is not pairs")
    lengths = attention_mask.sum(1)
    if not torch.equal(
        torch.arange(input_ids.size(1), device=input_ids.device) < lengths[:, None], attention_mask > 0
    ):
        raise Unsupported("the padding is not on the right")
    chosen_ids, rejected_ids = input_ids.chunk(2)
    runs = (lengths - 1).clamp(min=0)  # positions that can predict something
    common = (chosen_ids == rejected_ids).long().cumprod(1).sum(1)
    shared = torch.minimum(common, torch.minimum(*runs.chunk(2)))
    pieces, positions, where, start = [], [], torch.zeros_like(input_ids), 0
    columns = torch.arange(input_ids.size(1), device=input_ids.device)
    pairs = len(chosen_ids)
    for i, (s, c, r) in enumerate(torch.stack([shared, *runs.chunk(2)]).T.tolist()):
        pieces.append((s, c - s, r - s))
        positions += [columns[:c] + i * len(columns), columns[s:r] + (pairs + i) * len(columns)]
        where[i] = columns + start
        where[pairs + i] = torch.where(columns < s, columns + start, columns + start + c - s)
        start += c + r - s
    flat = torch.cat(positions)
    label_mask = labels[:, 1:] != -100
    return Layout(
        input_ids=input_ids.reshape(-1)[flat],
        position_ids=flat % len(columns),
        pieces=pieces,
        rows=where[:, :-1][label_mask],
        targets=labels[:, 1:][label_mask],
        label_mask=label_mask,
    )


def attend_pieces(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention of packed (N, heads, d) tokens pair by pair: no padding and no blocks that are masked anyway.

    Shared and chosen tokens are one causal sequence; rejected tokens see the shared ones and themselves.
    """
    sizes = [size for s, c, r in layout.pieces for size in (s + c, r)]
    parts = [[piece.transpose(0, 1)[None] for piece in tensor.split(sizes)] for tensor in (query, key, value)]
    outputs = []
    for i, (s, c, r) in enumerate(layout.pieces):
        (q, q_rejected), (k, k_rejected), (v, v_rejected) = ((part[2 * i], part[2 * i + 1]) for part in parts)
        if s + c:
            outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True))
        if r:
            k, v = torch.cat([k[:, :, :s], k_rejected], 2), torch.cat([v[:, :, :s], v_rejected], 2)
            bias = layout.bias(s, r, q)
            outputs.append(F.scaled_dot_product_attention(q_rejected, k, v, bias, scale=scale, enable_gqa=True))
    return torch.cat([output[0].transpose(0, 1) for output in outputs]).flatten(1)


def attend_rows(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """The same in one call: a padded row per pair under a block mask (the faster way on a GPU)."""
    pairs, width = len(layout.pieces), max(sum(piece) for piece in layout.pieces)
    part = torch.full((pairs, width), -1)  # 0 shared, 1 chosen, 2 rejected, -1 padding
    for i, (s, c, r) in enumerate(layout.pieces):
        part[i, : s + c + r] = torch.tensor([0] * s + [1] * c + [2] * r)
    part = part.to(query.device)
    real = part >= 0
    sees = (part[:, None, :] == part[:, :, None]) | (part[:, None, :] == 0)  # (pairs, from, to)
    sees = (sees & real[:, None, :]).tril() | torch.eye(width, dtype=torch.bool, device=query.device)

    def padded(tensor: Tensor) -> Tensor:
        rows = tensor.new_zeros(pairs, width, *tensor.shape[1:])
        rows[real] = tensor
        return rows.transpose(1, 2)

    output = F.scaled_dot_product_attention(
        padded(query), padded(key), padded(value), sees[:, None], scale=scale, enable_gqa=True
    )
    return output.transpose(1, 2)[real].flatten(1)


def parts_of(linear: nn.Module) -> tuple:
    """(weight, bias, A, B, scaling) of a linear layer with or without its active LoRA adapter (None where absent)."""
    if type(linear) is nn.Linear:
        return linear.weight, linear.bias, None, None, 0.0
    from peft.tuners.lora import Linear as LoraLinear

    if type(linear) is not LoraLinear or type(linear.base_layer) is not nn.Linear:
        raise Unsupported(f"a linear layer is {type(linear).__name__}, neither plain nor LoRA over a plain one")
    base = linear.base_layer
    active = [name for name in linear.active_adapters if name in linear.lora_A]
    if linear.disable_adapters and linear.merged:
        raise Unsupported("a merged LoRA adapter is switched off")
    if linear.disable_adapters or linear.merged or not active:
        return base.weight, base.bias, None, None, 0.0
    name = active[0]
    down, up, dropout = linear.lora_A[name], linear.lora_B[name], linear.lora_dropout[name]
    if len(active) > 1:
        raise Unsupported(f"{len(active)} LoRA adapters are active at once")
    if name in linear.lora_variant or up.bias is not None:
        raise Unsupported("the LoRA variant is not the plain one (DoRA, bias, ...)")
    if linear.training and getattr(dropout, "p", 0.0) > 0:
        raise Unsupported("LoRA dropout is on")
    return base.weight, base.bias, down.weight, up.weight, linear.scaling[name]


def project(linears: list[nn.Module], x: Tensor, dtype: torch.dtype, lora_dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Linear layers that share their input ``x`` (N, in), in one autograd step."""
    flat = [part for linear in linears for part in parts_of(linear)]
    return Projection.apply(x, dtype, lora_dtype, *flat)


def reason_against(model: nn.Module) -> str | None:
    """Why the fast step cannot be used for this base model, or None. Layers' adapters are looked at in each step."""
    from transformers.models.llama import modeling_llama as llama

    if type(model) is not llama.LlamaForCausalLM:
        return f"the architecture is {type(model).__name__}, not LlamaForCausalLM"
    config, layers = model.config, model.model.layers
    expected = [(model.lm_head, nn.Linear), (model.model.embed_tokens, nn.Embedding)]
    expected += [(layer, llama.LlamaDecoderLayer) for layer in layers]
    norms = [
        model.model.norm,
        *(n for layer in layers for n in (layer.input_layernorm, layer.post_attention_layernorm)),
    ]
    for module, kind in expected + [(norm, llama.LlamaRMSNorm) for norm in norms]:
        if type(module) is not kind:
            return f"a module is {type(module).__name__}, not {kind.__name__}"
    if config.attention_dropout:
        return "attention dropout is on"
    if config.hidden_act != "silu":
        return f"the activation is {config.hidden_act}, not silu"
    if config.rope_parameters["rope_type"] not in FAST_ROPES:
        return f"rotary embedding {config.rope_parameters['rope_type']!r} depends on the length of the row"
    if model.lm_head.bias is not None:
        return "the head has a bias"
    if any(linear._forward_hooks for linear in model.modules() if isinstance(linear, nn.Linear)):
        return "a linear layer has a forward hook"
    return None


def run_layer(layer, x: Tensor, rotation: tuple, layout: Layout, dtypes: tuple, rows: Tensor | None) -> Tensor:
    """One decoder layer on packed tokens (N, hidden); after its attention only ``rows`` where given."""
    attention, mlp = layer.self_attn, layer.mlp
    normed = RMSNorm.apply(x, layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
    query, key, value = project([attention.q_proj, attention.k_proj, attention.v_proj], normed, *dtypes)
    query, key, value = (tensor.unflatten(1, (-1, attention.head_dim)) for tensor in (query, key, value))
    attend = attend_pieces if x.device.type == "cpu" else attend_rows
    mixed = attend(Rotary.apply(query, *rotation), Rotary.apply(key, *rotation), value, layout, attention.scaling)
    if rows is not None:
        mixed, x = mixed.index_select(0, rows), x.index_select(0, rows)
    x = x + project([attention.o_proj], mixed, *dtypes)[0]
    normed = RMSNorm.apply(x, layer.post_attention_layernorm.weight, layer.post_attention_layernorm.variance_epsilon)
    gate, up = project([mlp.gate_proj, mlp.up_proj], normed, *dtypes)
    return x + project([mlp.down_proj], F.silu(gate) * up, *dtypes)[0]


def pair_scores(
    model, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, *, compute_dtype=None, metrics: bool = True
) -> dict[str, Tensor]:
    """Log-probabilities of the labels of B pairs, computed once per distinct token.

    Args:
        model: a ``LlamaForCausalLM``, its linear layers plain or with LoRA.
        input_ids, attention_mask: (2B, T), right-padded; row B + i belongs to row i.
        labels: (2B, T), the token ids, -100 where no loss is wanted.
        compute_dtype: type of the matrix products and activations; default autocast's, else the weights'.
        metrics: also entropy, mean logit and whether the label is the most likely token, without gradient.

    Returns:
        ``log_probs`` and the metrics, (2B, T-1), zero where there is no label, and ``label_mask``.

    Raises:
        Unsupported: see :func:`pack` and :func:`parts_of`; :func:`reason_against` is the caller's to ask.
    """
    device, body = input_ids.device, model.model
    autocast = torch.is_autocast_enabled(device.type)
    weight_dtype = model.lm_head.weight.dtype
    dtype = compute_dtype or (torch.get_autocast_dtype(device.type) if autocast else weight_dtype)
    dtypes = (dtype, dtype if autocast else torch.float32)  # autocast rounds LoRA's products too, TRL alone does not
    layout = pack(input_ids, attention_mask, labels)
    checkpointing = body.layers[0].gradient_checkpointing and model.training and torch.is_grad_enabled()
    with torch.autocast(device.type, enabled=False):
        x = body.embed_tokens(layout.input_ids[None])[0]
        x = x.to(compute_dtype) if compute_dtype is not None else x
        cos, sin = (t[0].to(dtype) for t in body.rotary_emb(x[None], layout.position_ids[None]))
        half = cos.size(1) // 2
        rotation = cos[:, None, :half], sin[:, None, :half]
        for number, layer in enumerate(body.layers):
            rows = layout.rows if number == len(body.layers) - 1 else None
            arguments = (layer, x, rotation, layout, dtypes, rows)
            x = checkpoint(run_layer, *arguments, use_reentrant=False) if checkpointing else run_layer(*arguments)
        x = RMSNorm.apply(x, body.norm.weight, body.norm.variance_epsilon)
        scores = head(x.to(dtype), model.lm_head.weight, layout.targets, metrics=metrics)
    return {
        name: score.new_zeros(layout.label_mask.shape).masked_scatter(layout.label_mask, score)
        for name, score in scores.items()
    } | {"label_mask": layout.label_mask}
