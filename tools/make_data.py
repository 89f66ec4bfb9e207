"""Make what ships in data/, one part at a time (data/README.md lists the commands and the hashes).

python tools/make_data.py split     data/split.json: counts and hashes of the reviews' parts      (5 s)
python tools/make_data.py reward    data/reward/: the sentiment classifier, the true reward      (15 s)
python tools/make_data.py sft       data/sft_adapter/: SmolLM2 taught to write review openings (busy: 20 min)
python tools/make_data.py pairs     data/pairs/: sampled, scored and paired review openings      (5 min)
"""

import argparse
import hashlib
import json
import re
import shutil
import time
from pathlib import Path

from dpo_tutorial.data import construct, pairs, scoring
from dpo_tutorial.training import records

DATA = scoring.DATA_DIR
SFT = {
    "model": "smollm2",
    "part": "lab_lm",
    "openings": 2000,
    "prompt_words": 5,
    "max_words": 32,
    "rank": 8,
    "learning_rate": 5e-4,
    "epochs": 1,
    "batch_size": 16,
    "seed": 0,
}
PAIRS = {
    "model": "smollm2 + data/sft_adapter",
    "prompts": {"train": 240, "heldout": 80},
    "prompt_words": 5,
    "samples_per_prompt": 4,
    "max_new_tokens": 40,
    "temperature": 1.0,
    "scorer": "data/reward, P(positive) of prompt + response",
    "policy": "widest",
    "seed": {"train": 0, "heldout": 1},
}


LAB_PAIRS = PAIRS | {"model": "lab_lm", "prompts": {"train": 800, "heldout": 200}, "max_new_tokens": 40}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def openings(config: dict):
    """prompt and completion of review openings: whole first sentences, at most ``max_words`` words."""
    import pandas as pd

    rows = []
    for text in scoring.reviews(config["part"], "imdb")["text"]:
        sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", text)
        taken, count = [], 0
        for sentence in sentences[:2]:
            count += len(sentence.split())
            if count > config["max_words"]:
                break
            taken.append(sentence)
        words = " ".join(taken).split(" ")
        if len(words) >= config["prompt_words"] + 4 and words[0][:1].isupper() and taken[-1][-1] in ".!?":
            cut = config["prompt_words"]
            rows.append((" ".join(words[:cut]), " " + " ".join(words[cut:])))
        if len(rows) == config["openings"]:
            return pd.DataFrame(rows, columns=["prompt", "completion"])
    raise ValueError(f"only {len(rows)} openings found")


def make_split() -> None:
    records.write_json(DATA / "split.json", scoring.split_summary())


def make_reward() -> None:
    scoring.save_classifier(scoring.fit_classifier(), DATA / "reward")


def make_sft() -> None:
    from dpo_tutorial.training import models, trl_bridge

    trl_bridge.quiet_libraries()
    model, tokenizer = models.load(SFT["model"])
    start = time.time()
    keys = ("learning_rate", "epochs", "batch_size", "rank", "seed")
    trainer = trl_bridge.train_sft(
        model, tokenizer, openings(SFT), output_dir="runs/sft", **{key: SFT[key] for key in keys}
    )
    folder = DATA / "sft_adapter"
    save_adapter(trainer.model, folder)
    losses = [[line["step"], round(line["loss"], 4)] for line in trainer.state.log_history if "loss" in line]
    card = {"config": SFT, "config_hash": construct.config_hash(SFT), "command": "python tools/make_data.py sft"}
    card |= {
        "seconds": round(time.time() - start),
        "versions": records.environment()["versions"],
        "dtype": str(model.dtype),
        "loss": losses,
    }
    records.write_json(folder / "card.json", card | {"sha256": sha256(folder / "adapter_model.safetensors")})
    shutil.rmtree("runs/sft", ignore_errors=True)


def save_adapter(model, folder: Path) -> None:
    """Write the adapter as float16 safetensors; its configuration names the course's model, not a folder."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "smollm2"}
    records.write_json(path, config | {"target_modules": sorted(config["target_modules"])})  # peft keeps a set


def make_pairs(config: dict = PAIRS, name: str = "sentiment", card_name: str = "card.json") -> None:
    """Sample, cut at the last sentence end, score and pair; then the card with configuration and hashes."""
    from dpo_tutorial.training import models, sampling

    model, tokenizer = models.load("lab_lm") if config["model"] == "lab_lm" else models.load_sft()
    score = scoring.load_classifier().scores
    cards = {}
    for part, count in config["prompts"].items():
        start = time.time()
        prompts = construct.review_prompts(f"prompts_{part}", count, words=config["prompt_words"])

        def draw(texts, part=part):
            ids = sampling.sample(
                model, tokenizer, texts, n=config["samples_per_prompt"], max_new_tokens=config["max_new_tokens"],
                temperature=config["temperature"], seed=config["seed"][part], label=part,
            )  # fmt: skip
            return [[construct.whole_sentences(text) for text in row] for row in sampling.texts(tokenizer, ids)]

        source = f"{name} samples, {part}, config {construct.config_hash(config)}"
        frame = construct.make_pairs(prompts, sample=draw, score=score, policy=config["policy"], source=source)
        path = DATA / "pairs" / f"{name}_{part}.jsonl"
        pairs.save(frame, path)
        cards[path.name] = {"pairs": len(frame), "sha256": sha256(path), "seconds": round(time.time() - start)}
    command = f"python tools/make_data.py {'pairs' if config is PAIRS else 'lab_pairs'}"
    card = {"config": config, "config_hash": construct.config_hash(config), "command": command}
    records.write_json(
        DATA / "pairs" / card_name,
        card | {"files": cards, "versions": records.environment()["versions"], "dtype": str(model.dtype)},
    )


def make_lab_pairs() -> None:
    make_pairs(LAB_PAIRS, "lab", "lab_card.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    makers = {"split": make_split, "reward": make_reward, "sft": make_sft, "pairs": make_pairs}
    makers |= {"lab_pairs": make_lab_pairs}
    parser.add_argument("part", choices=makers)
    makers[parser.parse_args().part]()


if __name__ == "__main__":
    main()
