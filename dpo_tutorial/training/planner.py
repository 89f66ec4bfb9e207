"""What a DPO step will cost before it is run: memory by part and floating-point operations, by counting.

Nothing here trains or measures. The counts are those of a Llama-like decoder (grouped heads, gated MLP) without
dropout; two ways of computing are known: TRL's (both rows of a pair, padded) and the fast step's (each distinct
token once). ``tests/test_planner.py`` holds the counts against autograd, and the memory against measured peaks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

HEAD_COLUMNS, HEAD_TOKENS = 32768, 4096  # TRL 1.16's tile of logits
TILES = 8.25  # tiles that its backward pass holds at once where there is no Triton
HEAD_ROWS, HEAD_COPIES = 256, 3  # rows of logits in the fast step, and their copies
ADAM_BYTES = 8  # per trained parameter: two moments in float32
LORA_LAYERS = 7  # linear layers per block with an adapter


@dataclass(frozen=True)
class Decoder:
    """The sizes of a Llama-like model.

    >>> Decoder(layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, vocabulary=49152, tied=True).total
    134515008
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config) -> "Decoder":
        """From a transformers configuration."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
        )

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def body(self) -> int:
        """Weights of the linear layers: what every token is multiplied with."""
        return self.layers * (2 * self.hidden * (self.hidden + self.kv) + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.vocabulary * self.hidden

    @property
    def total(self) -> int:
        """All parameters: body, norms, embedding, and the head where it is not the embedding."""
        return self.body + (2 * self.layers + 1) * self.hidden + self.head * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA of this rank on all linear layers but the head."""
        ends = (
            9 * self.hidden + 2 * self.kv + 3 * self.intermediate
        )  # inputs and outputs of q, k, v, o, gate, up, down
        return self.layers * rank * ends


@dataclass(frozen=True)
class Plan:
    """One optimizer step's micro-batch on one device.

    Args:
        model: the decoder's sizes.
        padded, distinct, scored: positions of the padded rows, tokens with the prompt once, completion tokens
            (:func:`count`).
        rank: of LoRA; None trains every weight.
        fast: the fast step instead of TRL's.
        cached_reference: the reference's log-probabilities are there already.
        checkpointing: activations are kept at the layers' inputs only and computed again.
        weight_bytes: per frozen weight and activation number (4 float32, 2 bfloat16, 0.5 for 4-bit weights only).
        trained_bytes: per trained weight, and per number of its gradient.
        activation_bytes: per number that autograd keeps.
        optimizer_bytes: per trained parameter (Adam 8, SGD 0).
    """

    model: Decoder
    padded: float
    distinct: float
    scored: float
    rank: int | None = 16
    fast: bool = False
    cached_reference: bool = True
    checkpointing: bool = False
    weight_bytes: float = 4
    trained_bytes: float = 4
    activation_bytes: float = 4
    optimizer_bytes: float = ADAM_BYTES

    def __post_init__(self):
        if not 0 < self.scored <= self.padded or not self.distinct <= self.padded:
            raise ValueError(
                f"padded {self.padded}, distinct {self.distinct}, scored {self.scored}: positions that are scored or "
                "distinct are among the padded ones; planner.count gives all three"
            )

    @property
    def positions(self) -> float:
        """Positions that pass through the body."""
        return self.distinct if self.fast else self.padded

    @property
    def trained(self) -> int:
        """Trained parameters."""
        return self.model.total if self.rank is None else self.model.adapter(self.rank)


def count(lengths: Sequence[tuple[int, int, int]]) -> dict[str, int]:
    """Positions of one micro-batch of pairs with these lengths of (prompt, chosen, rejected).

    ``padded``: both rows of every pair, padded to the longest; ``tokens``: without the padding; ``distinct``: the
    prompt once and without the last token of each row, which predicts nothing; ``scored``: completion tokens.

    >>> count([(3, 2, 1), (4, 4, 2)])
    {'padded': 32, 'tokens': 23, 'distinct': 12, 'scored': 9}
    """
    return {
        "padded": 2 * len(lengths) * max(p + max(c, r) for p, c, r in lengths),
        "tokens": sum(2 * p + c + r for p, c, r in lengths),
        "distinct": sum(p + c + r - 2 for p, c, r in lengths),
        "scored": sum(c + r for _, c, r in lengths),
    }


def kept_numbers(plan: Plan) -> float:
    """Numbers that autograd keeps per position and layer, without checkpointing.

    The inputs of both norms and their outputs; queries, keys, values, attention's output (TRL's mask makes it repeat
    keys and values for every head, and copy the output); four of the MLP's width; what LoRA's A returns.
    """
    model = plan.model
    attention = 2 * model.hidden + 2 * model.kv if plan.fast else 4 * model.hidden
    normed = 2 * model.hidden if plan.rank is None and not plan.fast else 0  # for the gradients of the norms
    lora = LORA_LAYERS * (plan.rank or 0)
    return 5 * model.hidden + attention + 4 * model.intermediate + normed + lora


def memory(plan: Plan, *, runtime_bytes: float = 0) -> dict[str, float]:
    """Bytes by part at the moment when a step holds most: after the forward pass, while the head's gradient is made.

    ``runtime_bytes`` is what the process has before the model: the interpreter and its libraries. The count is of
    what a step holds. A process has more: on a CPU the C library keeps part of what was freed, in pieces between
    other blocks. On two cores the peaks of SmolLM2's fast step were 7 to 11 % above the count, TRL's 30 to 41 %,
    and TRL's with every block mapped by itself (MALLOC_MMAP_THRESHOLD_=65536) within 15 % of it.
    """
    model = plan.model
    frozen = 0 if plan.rank is None else model.total
    separate = (
        model.total if plan.rank is None and not plan.cached_reference else 0
    )  # else the adapter is switched off
    per_layer = kept_numbers(plan)
    kept = model.layers * (model.hidden if plan.checkpointing else per_layer)
    rows = min(plan.padded, HEAD_TOKENS)
    tile = rows * min(model.vocabulary, HEAD_COLUMNS) * TILES
    head = (HEAD_ROWS * HEAD_COPIES * model.vocabulary if plan.fast else tile) * plan.activation_bytes
    again = plan.positions * per_layer * plan.activation_bytes if plan.checkpointing else 0
    return {
        "runtime": float(runtime_bytes),
        "frozen weights": (frozen + separate) * plan.weight_bytes,
        "trained weights": plan.trained * plan.trained_bytes,
        "gradients": plan.trained * plan.trained_bytes,
        "optimizer": plan.trained * plan.optimizer_bytes,
        "activations": plan.positions * kept * plan.activation_bytes,
        "head, or a layer again": max(head, again),
    }


def operations(plan: Plan) -> dict[str, float]:
    """Floating-point operations of a step by the textbook count: two per weight and position, forward.

    Backward takes as many for the activations and, where weights are trained, as many again for these. TRL's head
    computes its logits twice; the fast step's last layer goes on with scored positions only. Left out: attention
    between positions, LoRA's own products (a few per cent at the lengths of this course).
    """
    model, trains_all = plan.model, plan.rank is None
    last = model.hidden * (model.hidden + 3 * model.intermediate) * (plan.distinct - plan.scored) if plan.fast else 0
    body, head = (
        2 * (model.body * plan.positions - last),
        2 * model.head * (plan.scored if plan.fast else plan.padded),
    )
    again = body if plan.checkpointing else 0
    return {
        "reference": 0.0 if plan.cached_reference else float(body + head),
        "forward": float(body),
        "backward": float(body * (2 if trains_all else 1) + again),
        "head": float(head * ((3 if trains_all else 2) + (0 if plan.fast and not trains_all else 1))),
    }


def hours(operations: float, *, peak_rate: float, utilisation: float) -> float:
    """Hours that so many operations take on a device of ``peak_rate`` operations per second, used to that share."""
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation is {utilisation}; it is a share of the peak rate, above 0 and at most 1")
    return operations / (peak_rate * utilisation) / 3600


def dpo_operations(parameters: float, *, pairs: float, tokens: float, rank: int | None = None) -> float:
    """Operations of one epoch of DPO on ``pairs`` pairs of two rows of ``tokens`` tokens, the reference included."""
    per_token = 2 + (6 if rank is None else 4)
    return per_token * parameters * 2 * tokens * pairs


def rlhf_operations(
    parameters: float, *, samples: float, tokens: float, ppo_epochs: int, pairs: float
) -> dict[str, float]:
    """Operations of RLHF with four models of one size, by stage.

    A reward model trained for one epoch on ``pairs`` pairs; then ``samples`` responses, each generated once, scored
    by the reward model, the reference and the value model, and used for ``ppo_epochs`` passes over policy and value
    model. ``tokens`` is prompt and response together. A count: generation is slow for another reason (one token at
    a time reads all weights), which operations do not show.
    """
    forward = 2 * parameters * tokens
    return {
        "reward model": 3 * forward * 2 * pairs,
        "generation": forward * samples,
        "scores": 3 * forward * samples,
        "updates": 2 * 3 * forward * ppo_epochs * samples,
    }
