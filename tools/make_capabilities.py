"""Make data/capabilities/: write all items, measure how often SmolLM2 gets each right, keep 20 to 90 per cent.

python tools/make_capabilities.py        2 minutes on a quiet machine
"""

import hashlib
import json
import random

import capability_items
import numpy as np

from dpo_tutorial.data.construct import config_hash
from dpo_tutorial.data.scoring import DATA_DIR
from dpo_tutorial.training import records

CONFIG = {
    "model": "smollm2",
    "seed": 0,
    "low": 0.2,
    "high": 0.9,
    "samples": 8,
    "max_new_tokens": 32,
    "at_most": {"arithmetic": 30, "facts": 40, "copying": 30, "following": 25, "steps": 30, "code": 30, "rules": 24},
}


def kept(frame, config: dict):
    """Items within the band; where a family has more than its share, the ones drawn by the seed."""
    inside = frame[(frame["base"] >= config["low"]) & (frame["base"] <= config["high"])]
    rng, rows = random.Random(config["seed"]), []
    for family, part in inside.groupby("family", sort=False):
        rows += sorted(rng.sample(list(part.index), min(len(part), config["at_most"][family])))
    return inside.loc[rows].reset_index(drop=True)


def main() -> None:
    import pandas as pd

    from dpo_tutorial.evaluation import capabilities
    from dpo_tutorial.training import models, sampling

    model, tokenizer = models.load(CONFIG["model"], device="cpu")
    written = capability_items.items(CONFIG["seed"])
    items = pd.DataFrame(written)

    def sample(prompts, seed):
        options = {"n": CONFIG["samples"], "max_new_tokens": CONFIG["max_new_tokens"]}
        return sampling.texts(tokenizer, sampling.sample(model, tokenizer, prompts, seed=seed, **options))

    scores = capabilities.score(model, tokenizer, items, sample=sample, seed=CONFIG["seed"])
    items["base"] = items["id"].map(scores.set_index("id")["p"]).round(3)
    chosen = kept(items, CONFIG)
    folder = DATA_DIR / "capabilities"
    base = dict(zip(chosen["id"], chosen["base"], strict=True))
    rows = [row | {"base": base[row["id"]]} for row in written if row["id"] in base]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "items.jsonl").write_text(text, encoding="utf-8")
    card = {"config": CONFIG, "config_hash": config_hash(CONFIG), "command": "python tools/make_capabilities.py"}
    counts = {name: [int((f["family"] == name).sum()) for f in (items, chosen)] for name in capabilities.FAMILIES}
    card |= records.environment() | {"dtype": str(model.dtype), "written_and_kept": counts}
    card |= {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    records.write_json(folder / "card.json", card)
    print(counts, len(chosen), np.round(items.groupby("family")["base"].mean(), 2).to_dict())
    items.to_json("runs/capability_pool.jsonl", orient="records", lines=True)


if __name__ == "__main__":
    main()
