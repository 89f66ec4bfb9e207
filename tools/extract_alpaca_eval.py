"""Make the numbers that notebook 15 needs out of AlpacaEval's own files: no text is copied.

python tools/extract_alpaca_eval.py --out FOLDER                        fetch the originals first (about 160 MB, once)
python tools/extract_alpaca_eval.py --out FOLDER --checkout CLONE       use a clone of tatsu-lab/alpaca_eval
python tools/extract_alpaca_eval.py --out FOLDER --compare FOLDER2      and say whether FOLDER2 holds the same numbers

Writes alpaca_eval/annotations.csv.gz and alpaca_eval/leaderboard.csv below FOLDER; then set DPO_TUTORIAL_DATA=FOLDER.
The data is CC BY-NC 4.0: keep it for yourself. The course's table is that of commit cd543a14.
"""

import argparse
import gzip
import io
import sys
from pathlib import Path

import pandas as pd

from dpo_tutorial.data import external, pairs


def originals(checkout: Path | None) -> tuple[dict[str, Path], Path]:
    """Per model its annotation file, and the published leaderboard: from a clone, or fetched into the cache."""
    if checkout is None:
        return external.alpaca_eval_files()
    missing = [model for model in external.ALPACA_MODELS if not (checkout / external.judged_path(model)).is_file()]
    if missing:
        absent = (
            f"{external.judged_path(missing[0])} ({len(missing)} of {len(external.ALPACA_MODELS)} models are missing)"
        )
        raise SystemExit(f"{checkout} lacks {absent}; check out commit cd543a14 of github.com/tatsu-lab/alpaca_eval")
    files = {model: checkout / external.judged_path(model) for model in external.ALPACA_MODELS}
    return files, checkout / external.LEADERBOARD


def write(folder: Path, table: pd.DataFrame, rates: pd.DataFrame) -> None:
    folder = folder / "alpaca_eval"
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:  # the same bytes whenever it is made
        file.write(table.to_csv(index=False).encode())
    pairs.write_atomically(folder / "annotations.csv.gz", [buffer.getvalue()])
    pairs.write_atomically(folder / "leaderboard.csv", [rates.to_csv().encode()])


def differences(one: pd.DataFrame, two: pd.DataFrame) -> list[str]:
    """What tells two tables of annotations apart, in words; nothing if they are equal."""
    keys = ["model", "instruction_id"]
    both = one.merge(two, on=keys, how="outer", suffixes=("", "_2"), indicator=True)
    found = [f"{(both['_merge'] != 'both').sum()} rows stand in one table only"] if len(both) != len(one) else []
    if not found and len(one) != len(two):
        found.append(f"{len(one)} and {len(two)} rows")
    for name in ("preference", "len_output", "len_baseline"):
        far = (both[name] - both[f"{name}_2"]).abs() > 1e-6
        if far.any():
            found.append(f"{name} differs in {far.sum()} rows")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    files, leaderboard = originals(options.checkout)
    table, rates = external.extract_alpaca_eval(files), external.published_rates(leaderboard)
    write(options.out, table, rates)
    print(f"{len(table):,} judgements of {table['model'].nunique()} models, {len(rates)} published rates")
    if options.compare:
        found = differences(table, pd.read_csv(options.compare / "alpaca_eval/annotations.csv.gz"))
        print("\n".join(found) or "equal to the table in the other folder")
        return 1 if found else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
