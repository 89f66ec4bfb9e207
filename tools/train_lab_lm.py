"""Train the lab LM: a 4-million-parameter Llama on movie-review snippets, about an hour on two cores.

    python tools/train_lab_lm.py --steps 7000 --stop 3000      the shipped model was made by these two:
    python tools/train_lab_lm.py --steps 5000                  a long schedule, cut short, then a steeper one

The run resumes from its last checkpoint under --work. The result (float16 safetensors, tokenizer,
card.json with the recipe, the loss curve, the validation loss and samples) is written to --out.
"""

import argparse
import json
import os
import platform
import random
import re
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpo_tutorial.data.scoring import reviews

SEED, VOCAB, MAX_TOKENS, ROWS = 0, 4096, 64, 64
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 2e-3, 300, 0.05
EOS, PAD = "<|endoftext|>", "<|pad|>"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def train_tokenizer(texts) -> PreTrainedTokenizerFast:
    """A byte-level BPE of VOCAB tokens; no token is put in front of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def sentence_ids(texts, tokenizer) -> list[list[tuple[list[int], list[int]]]]:
    """Per review, per sentence: its token ids without and with a leading space; overlong ones are dropped."""
    rows = []
    for text in texts:
        sentences = SENTENCE_END.split(text)
        first = tokenizer(sentences)["input_ids"]
        later = tokenizer([" " + sentence for sentence in sentences])["input_ids"]
        rows.append([pair for pair in zip(first, later, strict=True) if 3 <= max(map(len, pair)) < MAX_TOKENS])
    return rows


def snippets(rows, eos: int, rng: random.Random) -> list[list[int]]:
    """Cut each review into snippets of one to three whole sentences that fit, each closed by EOS."""
    out = []
    for sentences in rows:
        current, wanted = [], rng.choice((1, 2, 2, 3))
        for first, later in sentences:
            if current and (wanted == 0 or len(current) + len(later) >= MAX_TOKENS):
                out.append([*current, eos])
                current, wanted = [], rng.choice((1, 2, 2, 3))
            current, wanted = current + (later if current else first), wanted - 1
        if current:
            out.append([*current, eos])
    return out


def batches(rows, rng: random.Random, pad: int):
    """Shuffled batches of ROWS snippets of similar length: input_ids and labels (B, T), padding labelled -100."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]) + rng.random())
    groups = [order[i : i + ROWS] for i in range(0, len(order) - ROWS + 1, ROWS)]
    rng.shuffle(groups)
    for group in groups:
        longest = max(len(rows[i]) for i in group)
        ids = torch.full((len(group), longest), pad)
        labels = torch.full((len(group), longest), -100)
        for k, i in enumerate(group):
            ids[k, : len(rows[i])] = torch.tensor(rows[i])
            labels[k, : len(rows[i])] = torch.tensor(rows[i])
        yield ids, labels


def build_model(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def validation_loss(model, rows, pad: int) -> float:
    """Mean negative log-likelihood per token (nats) over the snippets of the held-out part."""
    total, count = 0.0, 0
    for ids, labels in batches(rows, random.Random(1), pad):
        tokens = int((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=ids, labels=labels).loss) * tokens
        count += tokens
    return total / count


def schedule(step: int, steps: int) -> float:
    """Learning rate: linear warm-up, then linear to a twentieth."""
    return LEARNING_RATE * min((step + 1) / WARMUP, 0.05 + 0.95 * (1 - step / steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--stop", type=int, help="stop at this step with a checkpoint only")
    parser.add_argument("--work", type=Path, default=Path("runs/lab_lm"))
    parser.add_argument("--out", type=Path, default=Path("data/lab_lm"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    texts = list(reviews("lab_lm", "imdb")["text"])
    tokenizer = train_tokenizer(texts)
    train_rows = sentence_ids(texts, tokenizer)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    heldout = snippets(sentence_ids(reviews("prompts_heldout", "imdb")["text"], tokenizer), eos, random.Random(1))

    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.95))
    state = {"step": 0, "epoch": 0, "seconds": 0.0, "tokens": 0, "train": [], "validation": [], "horizons": []}
    checkpoint = args.work / "state.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
        print(f"resumed at step {state['step']}", flush=True)

    if not state["horizons"] or state["horizons"][-1][1] != args.steps:
        state["horizons"].append([state["step"], args.steps])
    model.train()
    running, last = [], time.time()
    skip = state["step"]
    step, epoch = 0, 0
    while step < args.steps:
        rng = random.Random(SEED + 1000 * epoch)
        for ids, labels in batches(snippets(train_rows, eos, rng), rng, pad):
            if step >= args.steps:
                break
            step += 1
            if step <= skip:
                continue
            for group in optimizer.param_groups:
                group["lr"] = schedule(step - 1, args.steps)
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            running.append(float(loss.detach()))
            state["tokens"] += int((labels != -100).sum())
            if step % 100 == 0:
                now = time.time()
                state["seconds"] += now - last
                last = now
                state["train"].append([step, round(sum(running) / len(running), 4)])
                print(
                    f"step {step} epoch {epoch} loss {state['train'][-1][1]:.4f} "
                    f"{state['tokens'] / state['seconds']:.0f} tokens/s {state['seconds']:.0f} s",
                    flush=True,
                )
                running = []
            if step % 1000 == 0 or step == args.steps:
                model.eval()
                state["validation"].append([step, round(validation_loss(model, heldout, pad), 4)])
                model.train()
                state["step"], state["epoch"] = step, epoch
                partial = checkpoint.with_suffix(".tmp")
                torch.save(
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}, partial
                )
                os.replace(partial, checkpoint)
                print(f"validation {state['validation'][-1]}", flush=True)
            if step == args.stop:
                return
        epoch += 1

    model.eval()
    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    model.float()
    torch.manual_seed(SEED)
    samples = []
    for prompt in ("This movie is", "I rented this film", "The acting was", "If you like"):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"].repeat(2, 1)
        out = model.generate(ids, max_new_tokens=48, do_sample=True, top_k=0, pad_token_id=pad)
        samples += [tokenizer.decode(row, skip_special_tokens=True) for row in out]
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": {
            "command": f"python tools/train_lab_lm.py --steps {args.steps}",
            "horizons": state["horizons"],
            "seed": SEED,
            "rows_per_batch": ROWS,
            "max_tokens": MAX_TOKENS,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": WARMUP,
            "weight_decay": WEIGHT_DECAY,
            "betas": [0.9, 0.95],
            "max_grad_norm": 1.0,
            "schedule": "linear warm-up, then linear to a twentieth at the horizon ([from step, horizon])",
            "dtype": "float32, saved as float16",
            "data": "reviews('lab_lm', 'imdb') cut into snippets of 1 to 3 sentences, each closed by EOS",
        },
        "steps": args.steps,
        "epochs": epoch,
        "tokens": state["tokens"],
        "seconds": round(state["seconds"]),
        "processor": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "train_loss": state["train"],
        "validation_loss": state["validation"],
        "samples": samples,
    }
    (args.out / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({key: card[key] for key in ("parameters", "seconds", "tokens")}), flush=True)


if __name__ == "__main__":
    main()
