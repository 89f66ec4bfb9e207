"""Time and memory of the audit and of every filter on 100,000 preference pairs of about 100 words a response.

    python benchmarks/data_scale.py            make the file, measure, write data_scale.json, print it (2 minutes)
    python benchmarks/data_scale.py --table    the table of what has been measured

The pairs are windows of the course's movie reviews, drawn with seed 0, with scores, votes, sources and positions; one
in a hundred repeats its predecessor and one in a hundred is a near-identical pair. Loading and the audit run in a
process of their own each, so that their peak memory is theirs (the pairs are made in another one, since a child's
peak counts its parent's memory too). Limits: 120 s and 1.5 GB for the audit, 10 s for a filter, 60 s for near
duplicates.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from dpo_step import machine

from dpo_tutorial.data import filters, pairs, scoring

RESULTS = Path(__file__).with_suffix(".json")
ROWS = 100_000


def write_pairs(path: Path, count: int = ROWS, seed: int = 0) -> None:
    """``count`` synthetic pairs as JSONL."""
    rng = random.Random(seed)
    texts = [text.split() for text in scoring.load_reviews()["text"]]
    texts = [words for words in texts if len(words) > 160]

    def window(length):
        words = rng.choice(texts)
        start = rng.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    row = None
    with path.open("w", encoding="utf-8") as file:
        for k in range(count):
            if k % 100 != 7:
                row = {"prompt": window(12), "chosen": window(rng.randint(60, 140)), "rejected": ""}
                row["rejected"] = row["chosen"] + " x" if k % 100 == 9 else window(rng.randint(60, 140))
                row |= {"score_chosen": rng.random() + 1, "score_rejected": rng.random()}
                row |= {"votes_chosen": rng.randint(2, 3), "votes_rejected": rng.randint(0, 1)}
                row |= {"source": rng.choice("abc"), "chosen_position": rng.choice((1, 2))}
            file.write(json.dumps(row) + "\n")


def child(*arguments: str) -> dict:
    """Seconds, processor seconds and peak memory of a Python process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"python {' '.join(arguments)} ended with status {status}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, 2),
    }


def steps(test) -> dict:
    """Every filter of ``data/filters.py`` under its name, ready to run; ``test`` is the set that leaks."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(scoring.DATA_DIR / "lab_lm" / "tokenizer.json"))

    def encode(texts):
        return [found.ids for found in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return {
        "min_agreement": partial(filters.min_agreement, threshold=0.7),
        "min_margin": partial(filters.min_margin, margin=0.5),
        "min_ratio": partial(filters.min_ratio, ratio=1.5),
        "drop_empty": filters.drop_empty,
        "drop_identical": filters.drop_identical,
        "drop_near_identical": partial(filters.drop_near_identical, similarity=0.9),
        "drop_duplicates": filters.drop_duplicates,
        "drop_contradictions": filters.drop_contradictions,
        "drop_near_duplicates": filters.drop_near_duplicates,
        "drop_leaks": partial(filters.drop_leaks, test=test),
        "drop_leaks, near": partial(filters.drop_leaks, test=test, similarity=0.8),
        "drop_truncated": partial(filters.drop_truncated, encode=encode, max_length=128),
        "keep_script": filters.keep_script,
        "max_length_ratio": partial(filters.max_length_ratio, ratio=2),
        "balance_length": partial(filters.balance_length, seed=0),
        "balance_position": partial(filters.balance_position, seed=0),
        "limit_share": partial(filters.limit_share, share=0.4, seed=0),
    }


def measure() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        child(__file__, "--write", str(path))
        page = str(Path(folder) / "audit.html")
        found = {"rows": ROWS, "megabytes": round(path.stat().st_size / 1e6)}
        found["audit"] = child("-m", "dpo_tutorial", "audit", str(path), "--html", page)
        found["load"] = child("-c", f"from dpo_tutorial.data import pairs; pairs.load({str(path)!r})")
        frame = pairs.load(path)
    found["filters"] = {}
    for name, step in steps(frame.tail(1000)).items():
        start = time.perf_counter()
        kept, _ = step(frame)
        found["filters"][name] = {"seconds": round(time.perf_counter() - start, 2), "kept": len(kept)}
        print(f"{name:22} {found['filters'][name]['seconds']:6.2f} s, {len(kept):,} rows kept", flush=True)
    return {"command": "python benchmarks/data_scale.py", "machine": machine()} | found


def table(found: dict) -> str:
    lines = [f"{found['rows']:,} pairs, {found['megabytes']} MB, {found['machine']['processor']}"]
    for name in ("audit", "load"):
        cost = found[name]
        lines.append(f"{name:22} {cost['seconds']:6.1f} s, peak {cost['peak_gb']:.2f} GB")
    lines += [f"{name:22} {cost['seconds']:6.2f} s" for name, cost in found["filters"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_pairs(args.write)
        return
    if not args.table:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
