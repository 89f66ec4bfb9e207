"""Speed and memory of one DPO step on SmolLM2 with LoRA: TRL as it comes, TRL with cached reference, the fast step.

    python benchmarks/dpo_step.py                     every group, then the table (some 20 minutes on two cores)
    python benchmarks/dpo_step.py --group 96,64,64    one shape (base in float32 unless --dtype says otherwise)
    python benchmarks/dpo_step.py --growth            how the time grows with length and batch (groups not yet there)
    python benchmarks/dpo_step.py --table             the table of what has been measured

A group is one shape and one type of the base's weights; its variants run one after another, each in a process of
its own (peak memory), on the same ragged pairs: every length is drawn between 3/4 and 5/4 of the shape's. The first
step is a warm-up and not counted. Caching the reference is counted over two epochs. Useful work is what no way of
computing can leave out: 2 N floating-point operations forward and 2 N backward (the base is frozen) per token, the
prompt once, the head for completion tokens, and a forward pass for the reference. Results: dpo_step.json beside this
file.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).with_suffix(".json")
VARIANTS = {
    "trl": "TRL as it comes",
    "trl_cached": "TRL, cached reference",
    "trl_memory": "TRL as it comes, freed memory kept",
    "fast": "fast step",
}
SHAPES = {
    "cpu": [(8, 40, 40), (96, 64, 64), (256, 128, 128)],
    "cuda": [(96, 64, 64), (256, 128, 128), (1024, 512, 512)],
}
GROWTH = [((48, 32, 32), 8), ((96, 64, 64), 4), ((96, 64, 64), 8), ((96, 64, 64), 16), ((192, 128, 128), 8)]
EPOCHS, RANK = 2, 16


def ragged(shape: tuple[int, int, int], count: int) -> list[dict[str, list[int]]]:
    """Pairs of random tokens whose prompt, chosen and rejected have 3/4 to 5/4 of the shape's lengths."""
    import numpy as np

    generator = np.random.default_rng(0)

    def tokens(length):
        size = int(generator.integers(round(0.75 * length), round(1.25 * length) + 1))
        return generator.integers(100, 40_000, size).tolist()

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [dict(zip(names, map(tokens, shape), strict=True)) for _ in range(count)]


def matmul_rate(device, dtype) -> float:
    """The best rate of a matrix product at the model's shapes, in operations per second."""
    import torch

    best = 0.0
    for rows, inner, outer in ((1024, 576, 1536), (1024, 1536, 576), (1792, 576, 576), (512, 576, 49152)):
        a, b = (
            torch.randn(rows, inner, device=device, dtype=dtype),
            torch.randn(inner, outer, device=device, dtype=dtype),
        )
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * rows * inner * outer / (time.perf_counter() - start))
    return best


def trainer_for(variant: str, rows: list, batch: int, dtype, folder: str):
    """The variant's trainer, and a dict that gets the seconds of caching and the time at the end of each step."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOTrainer

    from dpo_tutorial.training import models, trl_bridge
    from dpo_tutorial.training.trl_fast import FastDPOTrainer

    trl_bridge.quiet_libraries()
    seen = {"caching": 0.0, "caching_cpu": 0.0, "ends": [], "cpu": []}
    if variant == "trl_memory":
        models.keep_memory()  # the fast trainer does so itself

    class Timed(FastDPOTrainer if variant == "fast" else DPOTrainer):
        def _prepare_dataset(self, dataset, *args):
            return dataset  # tokens already

        def _precompute_ref_logps(self, *args):
            start, cpu = time.perf_counter(), time.process_time()
            answer = super()._precompute_ref_logps(*args)
            seen["caching"] += time.perf_counter() - start
            seen["caching_cpu"] += time.process_time() - cpu
            return answer

    class Ends(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seen["ends"].append(time.perf_counter())
            seen["cpu"].append(time.process_time())

    source = models.fetch_smollm2()
    options = {"beta": 0.1, "learning_rate": 3e-4, "epochs": 1, "batch_size": batch, "seed": 0, "max_length": None}
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(source, dtype=dtype),
        args=trl_bridge.dpo_config(folder, **options, precompute_ref_log_probs=variant in ("trl_cached", "fast")),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(source),
        peft_config=models.lora_config(rank=RANK),
        callbacks=[Ends()],
    )
    return trainer, seen


def work(rows: list) -> tuple[int, int]:
    """Tokens of the body and positions of the head that have to be computed for these pairs."""
    body = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) - 2 for row in rows)
    return body, sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)


def measure(variant: str, shape: tuple, batch: int, dtype_name: str, steps: int) -> dict:
    """One variant, in this process."""
    import torch

    from dpo_tutorial.training import trl_bridge
    from dpo_tutorial.training.models import pick_device

    dtype, device = getattr(torch, dtype_name), pick_device()
    before = {name: matmul_rate(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    rows = ragged(shape, batch * (steps + 1))
    with tempfile.TemporaryDirectory() as folder:
        trainer, seen = trainer_for(variant, rows, batch, dtype, folder)
        trl_bridge.train(trainer)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else rss
    after = {name: matmul_rate(device, getattr(torch, name)) for name in before}
    body, scored = work(rows)
    linear = sum(
        p.numel() for name, p in trainer.model.named_parameters() if "layers" in name and "base_layer" in name
    )
    head = trainer.model.get_output_embeddings().weight.numel()
    forward = 2 * (linear * body + head * scored) / len(rows)  # operations of one pair
    durations, cpu = ([b - a for a, b in itertools.pairwise(seen[name])] for name in ("ends", "cpu"))
    seconds = statistics.mean(durations) / batch + seen["caching"] / len(rows) / EPOCHS
    cpu_seconds = statistics.mean(cpu) / batch + seen["caching_cpu"] / len(rows) / EPOCHS
    compute = getattr(trainer, "compute_dtype", None) or dtype
    return {
        "variant": variant,
        "shape": list(shape),
        "batch": batch,
        "dtype": dtype_name,
        "computed_in": str(compute).removeprefix("torch."),
        "step_seconds": durations,
        "step_cpu_seconds": cpu,
        "caching_seconds_per_pair": seen["caching"] / len(rows),
        "pairs_per_second": 1 / seconds,
        "pairs_per_processor_second": 1 / cpu_seconds,
        "peak_bytes": peak,
        "useful_operations_per_second": forward * (2 + 1 / EPOCHS) / seconds,
        "matmul_rates": {name: max(before[name], after[name]) for name in before},
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "fallback": getattr(trainer, "fast_step_reason", None),
    }


def machine() -> dict:
    import torch
    import transformers
    import trl

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    return {"processor": processor, "threads": torch.get_num_threads(), "gpu": gpu, "versions": versions}


def load_results() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": machine(), "groups": {}}


def group_name(shape, batch: int, dtype: str) -> str:
    return f"{'+'.join(map(str, shape))} batch {batch} {dtype}"


def run_group(shape, batch: int, dtype: str, variants, steps: int) -> None:
    """Measure the variants of a group in fresh processes and store them together."""
    rows = []
    for variant in variants:
        command = [sys.executable, __file__, "--one", variant, "--group", ",".join(map(str, shape))]
        command += ["--batch", str(batch), "--dtype", dtype, "--steps", str(steps)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        )
        if done.returncode:
            raise SystemExit(f"{variant} failed:\n{done.stderr}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{variant:11} {shape} batch {batch} {dtype}: {rows[-1]['pairs_per_second']:.2f} pairs/s", flush=True)
    results = load_results()
    results["machine"] = machine()
    results["groups"][group_name(shape, batch, dtype)] = rows
    RESULTS.write_text(json.dumps(results, indent=1))


def table(results: dict) -> str:
    """Markdown: one line per variant; the ratio is to TRL as it comes in the same run."""
    where = results["machine"]
    lines = [
        f"{where['gpu'] or where['processor']}, {where['threads']} threads, "
        + ", ".join(f"{name} {version}" for name, version in where["versions"].items()),
        "",
        "| tokens, batch, base | variant | pairs/s | times TRL | peak memory, GB | useful GFLOP/s | of matmul |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in results["groups"].items():
        base = next(row for row in rows if row["variant"] == "trl")
        for row in rows:
            rate, useful = row["matmul_rates"][row["computed_in"]], row["useful_operations_per_second"]
            note = "" if row["computed_in"] == row["dtype"] else f", computed in {row['computed_in']}"
            lines.append(
                f"| {name} | {VARIANTS[row['variant']]}{note} | {row['pairs_per_second']:.2f} "
                f"| {row['pairs_per_second'] / base['pairs_per_second']:.2f} | {row['peak_bytes'] / 1e9:.2f} "
                f"| {useful / 1e9:.0f} | {useful / rate:.0%} |"
            )
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", help="prompt,chosen,rejected tokens")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the base's weights")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, help="counted steps, after the warm-up")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    shape = tuple(map(int, args.group.split(","))) if args.group else None
    if args.one:
        print(json.dumps(measure(args.one, shape, args.batch, args.dtype or "float32", args.steps)))
        return
    from dpo_tutorial.training.models import pick_device

    variants = args.variants.split(",")
    if args.growth:
        dtype = args.dtype or "float32"
        for tokens, batch in GROWTH:
            if group_name(tokens, batch, dtype) not in load_results()["groups"]:
                run_group(tokens, batch, dtype, ["trl", "fast"], args.steps or 1)
    elif not args.table:
        for dtype in [args.dtype] if args.dtype else ["float32", "bfloat16"]:
            for tokens in [shape] if shape else SHAPES[pick_device().type]:
                run_group(tokens, args.batch, dtype, variants, args.steps or (4 if sum(tokens) < 150 else 2))
    print(table(load_results()))


if __name__ == "__main__":
    main()
