"""Make the records of the long runs in data/records/; a record that is there is not made again.

python tools/make_records.py            all that is missing
python tools/make_records.py nb09       one group: a module of tools/record_groups/

A group is a module with ``runs()`` (its configurations), ``run(config)`` (one run's results, numbers only) and,
where a picture is drawn from the records, ``draw()``.
"""

import argparse
import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from dpo_tutorial.training import records

GROUPS = sorted(path.stem for path in (Path(__file__).parent / "record_groups").glob("nb*.py"))


def make(group: str, config: dict) -> dict:
    run = importlib.import_module(f"record_groups.{group}").run
    return records.make(group, config, run, command=f"python tools/make_records.py {group}")


def make_apart(group: str, config: dict) -> dict:
    """The record, made in a process of its own: its peak memory is that of no other run."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(make, group, config).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="none means all")
    for group in parser.parse_args().groups or GROUPS:
        module = importlib.import_module(f"record_groups.{group}")
        for config in module.runs():
            there = records.path_of(group, config).exists()
            print(f"{group} {config}: {'there' if there else 'running ...'}", flush=True)
            if not there:
                record = make_apart(group, config)
                print({key: value for key, value in record["results"].items() if key != "curves"}, flush=True)
        if hasattr(module, "draw"):
            module.draw()


if __name__ == "__main__":
    main()
