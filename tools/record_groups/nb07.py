"""Notebook 07: what a filter or a fault in the pairs does to the policy of the lab LM; one run is 5 to 20 s.

Most conditions take the shipped pairs (data/pairs/lab_train.jsonl, the best against the worst of four samples).
Those on agreement, margins, closeness and prompts need other pairs of the same samples: these are drawn anew from
the same seed, once (40 s), and kept in runs/.
"""

import json
from functools import lru_cache, partial
from itertools import combinations

import numpy as np
import pandas as pd

from dpo_tutorial.data import audit, construct, external, scoring
from dpo_tutorial.theory import losses
from dpo_tutorial.training import encode, lab, loop, models, records, sampling

BASE = lab.LAB_RUN | {"learning_rate": 5e-4, "pairs": 320, "warmup_steps": 2, "eval_prompts": 200}
SEEDS = (0, 1, 2)
POOL = scoring.DATA_DIR.parent / "runs" / "nb07_pool.json"
VOTE_SCALE, RATING_NOISE, SHIFT = 2.0, 0.5, 3.0
GOOD = {"good", "great", "best", "love", "excellent", "wonderful"}
BAD = {"bad", "worst", "boring", "awful", "terrible", "poor"}
# question -> levels; a level is the settings that differ from BASE and from data(kind="shipped", label="true").
GRID = {
    "reference": [{"pairs": 0}],
    "size": [{"pairs": n} for n in (40, 320, 640)],
    "noise": [{"flip_rate": rate} for rate in (0.1, 0.2, 0.3, 0.4)],
    "clean or large": [
        {"pairs": 64},
        {"pairs": 64, "epochs": 10},
        *({"pairs": 640, "flip_rate": rate} for rate in (0.2, 0.3, 0.4)),
    ],
    "agreement": [
        {"kind": "two samples", "label": label, "judged": judged, "pairs": kept}
        for label, judged, kept in (
            ("one vote", 720, 720),
            ("majority of three", 240, 240),
            ("all of three", 240, None),
            ("all of three", 720, 240),
        )
    ],
    "agreement at equal steps": [  # 720 pairs are trained on, as with one vote each
        {"kind": "two samples", "label": label, "judged": judged, "pairs": 240, "epochs": 3}
        for label, judged in (("majority of three", 240), ("all of three", 720))
    ],
    "margin": [
        {"kind": "two samples", "label": "rating", "judged": 640, "keep_share": share, "pairs": kept}
        for share, kept in ((1, 640), (1, 160), (0.5, 160), (0.25, 160))
    ],
    "ratio": [
        {"kind": "two samples", "label": "rating", "judged": 640, "ratio": 1.5, "scale": scale, "pairs": None}
        for scale in ("P", "reward + 3")
    ],
    "near-identical": [{"twins": share} for share in (0.5, 1.0)],
    "trivial": [{"nonsense": 1.0}],
    "closeness": [{"kind": "closest"}, {"kind": "two samples"}],
    "one type": [{"longer_wins": 0.9}],
    "prompts": [{"kind": "few prompts", "prompts": 8}],
    "machine labels": [{"by_judge": share} for share in (0.8, 1.0)],
    "labels by": [{"label": "longer"}, {"label": "letters per word"}],
}


HUMAN = {"question": "human votes", "source": "pandalm", "length": "characters"}
TEST_SET = "pandalm/testset-v1.json"
AUDITED = [("rejected", "kept"), ("duplicates", "pairs"), ("near_duplicates", "pairs"), ("alike", "pairs")]
AUDITED += [("length", f"longer_is_chosen{end}") for end in ("", "_low", "_high")]


def runs() -> list[dict]:
    """The counts of the human votes; then the grid seed by seed, so that one cut short is still a grid."""
    return [HUMAN] + [
        BASE | {"question": q} | level | {"seed": seed} for seed in SEEDS for q in GRID for level in GRID[q]
    ]


@lru_cache(maxsize=1)
def pool() -> dict:
    """``four``: 800 prompts with the four samples behind the shipped pairs; ``ten``: 60 prompts with ten samples."""
    if not POOL.exists():
        model, tokenizer = models.load("lab_lm", device="cpu")
        content = {}
        for name, count, n, seed in (("four", 800, 4, 0), ("ten", 60, 10, 2)):
            prompts = list(construct.review_prompts("prompts_train", count, words=5)["prompt"])
            ids = sampling.sample(model, tokenizer, prompts, n=n, max_new_tokens=lab.MAX_NEW_TOKENS, seed=seed)
            texts = [[construct.whole_sentences(text) for text in row] for row in sampling.texts(tokenizer, ids)]
            content[name] = list(zip(prompts, texts, strict=True))
        records.write_json(POOL, content)
    return json.loads(POOL.read_text(encoding="utf-8"))


def rewards(frame: pd.DataFrame, column: str) -> np.ndarray:
    """The true reward in Bradley-Terry's units (log-odds) of prompt + response."""
    return scoring.load_classifier().logits(list(frame["prompt"] + frame[column]))


def two_per_prompt(kind: str, prompts: int | None, seed: int) -> pd.DataFrame:
    """``prompt, a, b``: two responses without a label, in random order."""
    rows = []
    if kind == "shipped":
        shipped = lab.load_pairs("train", 800)
        rows = list(zip(shipped["prompt"], shipped["chosen"], shipped["rejected"], strict=True))
    elif kind == "few prompts":
        for prompt, texts in pool()["ten"][seed * 20 : seed * 20 + prompts]:
            rows += [(prompt, *two) for two in combinations(texts, 2)]
    else:
        score = scoring.load_classifier().logits
        for prompt, texts in pool()["four"]:
            order = np.argsort(score([prompt + text for text in texts])) if kind == "closest" else range(4)
            texts = [texts[i] for i in order]
            rows.append((prompt, texts[0], texts[1]) if kind == "two samples" else (prompt, texts[1], texts[2]))
    frame = pd.DataFrame([row for row in rows if row[1] != row[2]], columns=["prompt", "a", "b"])
    rng = np.random.default_rng(seed)
    frame = frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)
    swap = rng.random(len(frame)) < 0.5
    frame.loc[swap, ["a", "b"]] = frame.loc[swap, ["b", "a"]].to_numpy()
    return frame


def judge(text: str) -> float:
    """A weak judge: counts twelve words, and where they do not decide it takes the longer response."""
    words = text.lower().split()
    bare = [word.strip(".,!?;:\"'()") for word in words]
    return sum(w in GOOD for w in bare) - sum(w in BAD for w in bare) + 0.001 * len(words)


def letters_per_word(text: str) -> float:
    words = text.split()
    return sum(map(str.isalpha, text)) / max(len(words), 1)


def length(text: str) -> float:
    return len(text.split())


def prefers_a(frame: pd.DataFrame, config: dict, rng) -> np.ndarray:
    """The label of every row: True where ``a`` is chosen. Adds what a filter needs to the frame."""
    gap = rewards(frame, "a") - rewards(frame, "b")
    truth, label = gap > 0, config.get("label", "true")
    frame["truth"] = truth
    if label in ("one vote", "majority of three", "all of three"):
        votes = rng.random((3, len(frame))) < 1 / (1 + np.exp(-VOTE_SCALE * gap))
        frame["unanimous"] = votes.all(axis=0) | ~votes.any(axis=0)
        return votes[0] if label == "one vote" else votes.sum(axis=0) >= 2
    if label == "rating":
        for side in "ab":
            frame[f"rated_{side}"] = rewards(frame, side) + rng.normal(0, RATING_NOISE, len(frame))
        return (frame["rated_a"] > frame["rated_b"]).to_numpy()
    measures = {"longer": length, "letters per word": letters_per_word, "true": None}
    by = measures[label] or (judge if "by_judge" in config else None)
    if by is None:
        return truth
    other = np.array([by(a) - by(b) for a, b in zip(frame["a"], frame["b"], strict=True)])
    share = config.get("by_judge", config.get("label_share", 1.0))
    used = (np.arange(len(frame)) % 20 < round(20 * share)) & (other != 0)
    return np.where(used, other > 0, truth)


def keep(frame: pd.DataFrame, config: dict) -> pd.DataFrame:
    """The rows that the condition's filter keeps, then at most ``pairs`` of them (None: all)."""
    frame = frame.head(config.get("judged") or len(frame))
    if config.get("label") == "all of three":
        frame = frame[frame["unanimous"]]
    if "keep_share" in config:
        gaps = (frame["rated_a"] - frame["rated_b"]).abs()
        frame = frame[gaps >= gaps.quantile(1 - config["keep_share"])]
    if "ratio" in config:
        high, low = (frame[["rated_a", "rated_b"]].agg(how, axis=1) for how in ("max", "min"))
        scale = {
            "P": lambda r: 1 / (1 + np.exp(-r)),
            "reward + 3": lambda r: r + SHIFT,
        }[config["scale"]]
        frame = frame[scale(high) >= config["ratio"] * scale(low)]
    if "longer_wins" in config:
        longer = frame["chosen"].map(length) > frame["rejected"].map(length)
        n = round(config["pairs"] * config["longer_wins"])
        shorter = frame[frame["chosen"].map(length) < frame["rejected"].map(length)]
        frame = pd.concat([frame[longer].head(n), shorter.head(config["pairs"] - n)])
    return frame.head(config["pairs"] or len(frame)).reset_index(drop=True)


def spoil(frame: pd.DataFrame, config: dict, rng) -> pd.DataFrame:
    """Flip labels, or put twins or nonsense in the place of a share of the rejected responses."""
    frame = frame.copy()
    flips = rng.random(len(frame)) < config.get("flip_rate", 0)
    frame.loc[flips, ["chosen", "rejected"]] = frame.loc[flips, ["rejected", "chosen"]].to_numpy()
    frame["truth"] = frame["truth"] ^ flips
    words = " ".join(frame["chosen"]).split()
    for row in range(len(frame)):
        chosen = frame.at[row, "chosen"].split()
        if row % 10 < round(10 * config.get("twins", 0)):
            twin = list(chosen)
            twin[rng.integers(len(twin))] = words[rng.integers(len(words))]
            frame.at[row, "rejected"] = " " + " ".join(twin)
            frame.at[row, "chosen"] = " " + " ".join(chosen)
        elif row % 10 < round(10 * config.get("nonsense", 0)):
            frame.at[row, "rejected"] = " " + " ".join(rng.choice(words, len(chosen)))
    frame = frame[frame["chosen"] != frame["rejected"]].reset_index(drop=True)
    if config.get("twins"):  # labelled by the truth again
        worse = rewards(frame, "chosen") < rewards(frame, "rejected")
        frame.loc[worse, ["chosen", "rejected"]] = frame.loc[worse, ["rejected", "chosen"]].to_numpy()
    return frame


def build(config: dict) -> pd.DataFrame:
    """The training pairs of a condition: ``prompt, chosen, rejected, truth`` (is the label the true one?)."""
    rng = np.random.default_rng(100 + config["seed"])
    frame = two_per_prompt(config.get("kind", "shipped"), config.get("prompts"), config["seed"])
    first = prefers_a(frame, config, rng)
    frame["chosen"] = np.where(first, frame["a"], frame["b"])
    frame["rejected"] = np.where(first, frame["b"], frame["a"])
    frame["truth"] = frame["truth"] == first
    return spoil(keep(frame, config), config, rng)


def count_votes() -> dict:
    """How often each pattern of three votes (1, 2, 0 = tie) came with which longer response; the audit's figures."""
    frame = external.load("pandalm", network=False)
    first, second = (frame[name].map(lambda text: len(str(text))) for name in ("response1", "response2"))
    frame["longer"] = np.select([first > second, second > first], [1, 2], 0)
    names = ["annotator1", "annotator2", "annotator3", "longer"]
    counts = frame.groupby(names).size().reset_index()
    folder = next(f for f in (external.data_dir(), external.cache_dir()) if f and (f / TEST_SET).exists())
    audited = audit.audit(folder / TEST_SET).as_dict()["checks"]
    figures = {f"{key} {name}": round(audited[key][name], 3) for key, name in AUDITED}
    return {"columns": [*names, "rows"], "table": counts.to_numpy().tolist(), "audit": figures}


def run(config: dict) -> dict:
    """The results of one record: the votes' counts, or a training run."""
    return count_votes() if config == HUMAN else train_and_measure(config)


def train_and_measure(config: dict) -> dict:
    """Train on the condition's pairs; measure on fresh samples and on the held-out pairs with true labels."""
    if config["pairs"] == 0:
        policy, tokenizer = models.load("lab_lm", device="cpu")
        reference, history, train = loop.frozen_copy(policy), [], pd.DataFrame({"truth": []})
    else:
        train = build(config)
        policy, reference, tokenizer, result = lab.run(config, train=train)
        history = [row["loss"] for row in result.history if "loss" in row]
    measured = lab.measure(policy, reference, tokenizer, prompts=config["eval_prompts"], seed=config["seed"])
    pad = {"pad_token_id": tokenizer.pad_token_id}
    heldout = encode.encode_pairs(tokenizer, lab.load_pairs("heldout", config["heldout_pairs"]))
    loss = partial(losses.dpo, beta=config["beta"])
    ref_logps = loop.reference_logps(reference, heldout, **pad)
    ends = loop.evaluate(policy, heldout, ref_logps, loss=loss, beta=config["beta"], **pad)
    late = np.array(history[len(history) // 2 :])
    found = {
        "reward": measured.reward,
        "kl": measured.kl,
        "words": measured.words,
        "ended": measured.ended,
        "letters_per_word": float(measured.samples["text"].map(letters_per_word).mean()),
        **ends,
    }
    if history:
        found |= {
            "label_accuracy": float(train["truth"].mean()),
            "late_loss": late.mean(),
            "late_loss_sd": late.std(),
        }
    return {"pairs": len(train), "steps": len(history)} | {k: round(float(v), 4) for k, v in found.items()}
