"""Runs of notebook 12: one task, one reference, the same pairs; SFT, DPO, best-of-n and three kinds of RLHF.

Every run counts what it spends by stage (processor time, tokens generated, forward, backward) and measures the
policy on fresh samples: true reward, proxy reward (the reward model fitted on the same pairs), sequence-level KL.
"""

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_model, save_model

from dpo_tutorial.data import scoring
from dpo_tutorial.data.construct import config_hash
from dpo_tutorial.training import encode, frontier, lab, loop, models, records, reward_model, rlhf, sampling

PAIRS = {"model": "lab_lm", "pairs": 480, "flip_rate": 0.0, "batch_size": 8, "warmup_steps": 6, "seed": 0}
JUDGE = {"judge_rate": 5e-4, "judge_epochs": 2, "judge_pairs": 480}
MEASURED = {"eval_prompts": 160, "curve_prompts": 80}
OFFLINE = PAIRS | JUDGE | MEASURED | {"beta": 0.1, "learning_rate": 5e-4, "epochs": 1, "measure_at": [15, 30, 45]}
ROLLOUTS = {"samples": 64, "passes": 2, "minibatch": 32, "start": "reference", "reward": "model"}
RLHF = (
    PAIRS
    | JUDGE
    | MEASURED
    | ROLLOUTS
    | {"beta": 0.1, "learning_rate": 1e-3, "iterations": 20, "measure_at": [5, 10, 15]}
)
GROUP = 4  # samples per prompt of RLOO
# Left out where they say what is usual: a judge of all layers, fitted on pairs.
JUDGE_OPTIONS = ("judge_layers", "judge_labels")

METHODS = {
    "SFT": OFFLINE | {"arm": "sft"},
    "DPO": OFFLINE | {"arm": "dpo"},
    "RM + PPO": RLHF | {"arm": "ppo"},
    "RM + RLOO": RLHF | {"arm": "rloo"},
    "true reward + PPO": RLHF | {"arm": "ppo", "reward": "log-odds"},
}
RATES = {True: (5e-4, 1e-3), False: (3e-4, 1e-3)}  # offline or not: the two trials of every method
ONE_SEED = {("SFT", 1e-3), ("RM + RLOO", 3e-4)}  # trials that were not repeated
BEST_OF_N = OFFLINE | {"arm": "best_of_n", "sizes": [1, 2, 4, 8, 16, 32], "eval_prompts": 80, "measure_at": []}
NOISE = {"flip_rate": 0.25}
FEW = {"judge_pairs": 120}
SINGLE = {"judge_labels": "unary"}  # of each pair one response is seen, called good or bad
SMALL = {"judge_layers": 1}
EXTRAS = {
    "DPO, cut": METHODS["DPO"] | {"learning_rate": 1e-3, "cut": 10, "measure_at": []},
    "DPO, between": METHODS["DPO"] | {"learning_rate": 5.7e-4, "measure_at": []},  # where PPO's lower rate ends
    "P(positive) + PPO": METHODS["true reward + PPO"] | {"reward": "true"},
    "DPO, noise": METHODS["DPO"] | NOISE,
    "DPO, long": METHODS["DPO"] | {"beta": 0.02, "learning_rate": 1e-3, "epochs": 3, "measure_at": [30, 60, 120]},
    "DPO, 120 pairs": METHODS["DPO"] | {"pairs": 120, "learning_rate": 1e-3, "epochs": 2, "measure_at": [15]},
    "RM + PPO, noise": METHODS["RM + PPO"] | NOISE,
    "RM + PPO, long": METHODS["RM + PPO"] | {"beta": 0.0, "iterations": 40, "measure_at": [10, 20, 30]},
    "RM + PPO, 120 pairs": METHODS["RM + PPO"] | FEW,
    "DPO, then RM + PPO": METHODS["RM + PPO"] | {"start": {"learning_rate": 5e-4}, "learning_rate": 3e-4},
    "RM + PPO, single labels": METHODS["RM + PPO"] | SINGLE,
    "RM + PPO, small RM": METHODS["RM + PPO"] | SMALL,
}


def rates(method: str) -> tuple[float, ...]:
    """The learning rates tried for one of ``METHODS``."""
    return RATES[METHODS[method]["arm"] in ("sft", "dpo")]


class Meter:
    """What a run spends, by stage: processor seconds, tokens generated, through a forward, through a backward pass.

    Tokens are counted where they enter a model, at its embedding, padding included; under no_grad, or in a frozen
    model, there is no backward pass. A stage inside another is charged alone.

    Args:
        frozen_embedding: for LoRA, which leaves the embedding frozen: only no_grad says that nothing goes backward.
    """

    def __init__(self, frozen_embedding: bool = False):
        self.frozen_embedding = frozen_embedding
        self.stages: dict[str, dict[str, float]] = {}
        self._open: list[str] = []
        self._since = 0.0

    def _charge(self) -> None:
        now = time.process_time()
        if self._open:
            self.stages[self._open[-1]]["cpu_seconds"] += now - self._since
        self._since = now

    def _count(self, module, args) -> None:
        if isinstance(module, torch.nn.Embedding):
            self.add("forward", args[0].numel())
            trained = self.frozen_embedding or module.weight.requires_grad
            self.add("backward", args[0].numel() * (torch.is_grad_enabled() and trained))

    def add(self, what: str, count: int) -> None:
        """Charges ``count`` tokens to the stage that is open."""
        self.stages[self._open[-1]][what] += int(count)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.setdefault(name, {"cpu_seconds": 0.0, "generated": 0, "forward": 0, "backward": 0})
        self._charge()
        hook = None if self._open else torch.nn.modules.module.register_module_forward_pre_hook(self._count)
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()
            if hook is not None:
                hook.remove()

    def numbers(self) -> dict[str, dict]:
        return {name: spent | {"cpu_seconds": round(spent["cpu_seconds"], 2)} for name, spent in self.stages.items()}


def train_pairs(config: dict, count: int) -> pd.DataFrame:
    """The first ``count`` training pairs; chosen and rejected exchanged in a share ``flip_rate``, by the seed."""
    frame = lab.load_pairs("train", count).copy()
    flipped = np.random.default_rng(config["seed"]).permutation(count) < round(config["flip_rate"] * count)
    frame.loc[flipped, ["chosen", "rejected"]] = frame.loc[flipped, ["rejected", "chosen"]].to_numpy()
    return frame


def true_reward(prompts, texts) -> np.ndarray:
    """The true reward that notebooks measure: P(positive) of prompt and response together."""
    return scoring.load_classifier().scores([a + b for a, b in zip(prompts, texts, strict=True)])


class World:
    """Reference, tokenizer, pairs and judge of a run, and the bookkeeping around them.

    Args:
        cache: folder in which judges are kept between runs of one seed, with what fitting them took.
    """

    def __init__(self, config: dict, cache: Path | None = None):
        self.config, self.meter, self.curve = config, Meter(), []
        self.reference, self.tokenizer = models.load(config["model"], device="cpu")
        self.reference.requires_grad_(False)
        self.pad = {"pad_token_id": self.tokenizer.pad_token_id}
        self.pairs = train_pairs(config, config["pairs"])
        self.judge = reward_model.RewardModel(self.reference, config.get("judge_layers"))
        self.judge_accuracy = self.load_judge(cache) if cache else self.fit_judge()
        self.judge.requires_grad_(False).eval()

    def fit_judge(self) -> dict[str, float]:
        """Fits the reward model on the run's pairs, flipped ones included; its accuracies at the end."""
        config = self.config
        examples = encode.encode_pairs(self.tokenizer, train_pairs(config, config["judge_pairs"]))
        sizes = {"batch_size": config["batch_size"], "epochs": config["judge_epochs"], "seed": config["seed"]}
        order = loop.batch_order(len(examples), **sizes)
        flags = np.random.default_rng(config["seed"]).permutation(len(examples)) % 2 == 0
        options = {"desirable": flags.tolist()} if config.get("judge_labels") == "unary" else {}
        with self.meter.stage("reward model"):
            options |= {"order": order, "learning_rate": config["judge_rate"]} | self.pad
            reward_model.fit(self.judge, examples, **options)
        parts = {"train": examples, "heldout": encode.encode_pairs(self.tokenizer, lab.load_pairs("heldout", 200))}
        found = {name: reward_model.accuracy(self.judge, rows, **self.pad) for name, rows in parts.items()}
        return {name: round(value, 4) for name, value in found.items()}

    def load_judge(self, cache: Path) -> dict[str, float]:
        """The judge from ``cache``, with its costs; fitted and put there if it is not."""
        names = [name for name in (*PAIRS, *JUDGE, *JUDGE_OPTIONS) if name in self.config]
        stem = cache / f"judge-{config_hash({name: self.config[name] for name in names})}"
        weights, notes = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
        if not notes.exists():
            cache.mkdir(parents=True, exist_ok=True)
            accuracy = self.fit_judge()
            save_model(self.judge, str(weights))
            records.write_json(notes, {"accuracy": accuracy, "spent": self.meter.stages["reward model"]})
            return accuracy
        load_model(self.judge, str(weights))
        kept = json.loads(notes.read_text())
        self.meter.stages["reward model"] = kept["spent"]
        return kept["accuracy"]

    def proxy(self, prompts, texts, completion_ids) -> np.ndarray:
        """Rewards of the reward model, in Bradley-Terry's log-odds."""
        return reward_model.scores(self.judge, self.tokenizer, list(prompts), list(completion_ids)).numpy()

    def measure(self, policy, *, prompts: int) -> dict:
        """Fresh samples on held-out prompts, of at most ``cut`` tokens: ``frontier.numbers`` and the proxy's."""
        options = {"n": 1, "max_new_tokens": self.config.get("cut", lab.MAX_NEW_TOKENS), "ref_model": self.reference}
        texts = list(lab.load_pairs("heldout", prompts)["prompt"])
        drawn = sampling.rollouts(policy, self.tokenizer, texts, seed=5000 + self.config["seed"], **options)
        drawn["reward"] = true_reward(drawn["prompt"], drawn["text"])
        drawn["kl"] = drawn["policy_logps"] - drawn["ref_logps"]
        drawn["words"] = drawn["text"].str.split().str.len()
        drawn["ended"] = drawn["completion_ids"].str[-1] == self.tokenizer.eos_token_id
        proxy = self.proxy(drawn["prompt"], drawn["text"], drawn["completion_ids"])
        return frontier.numbers(drawn) | {"proxy": frontier.interval(proxy, drawn["prompt"])}

    def note(self, at: float, policy) -> None:
        """A point of the curve; measuring is charged to nobody."""
        with self.meter.stage("measuring"):
            self.curve.append({"at": at} | self.measure(policy, prompts=self.config["curve_prompts"]))


def with_config(world: World, config: dict) -> World:
    """The same reference, pairs and judge, the same meter, for a run with other settings."""
    other = copy.copy(world)
    other.config = config
    return other


def offline(world: World):
    """SFT on the chosen or DPO, as ``config["arm"]`` says."""
    config, policy = world.config, loop.frozen_copy(world.reference).requires_grad_(True)
    examples = encode.encode_pairs(world.tokenizer, world.pairs)
    with world.meter.stage("reference"):
        ref_logps = loop.reference_logps(world.reference, examples, **world.pad)
    order = loop.batch_order(len(examples), **{key: config[key] for key in ("batch_size", "epochs", "seed")})
    loss = frontier.loss_of({"loss": config["arm"], "beta": config["beta"]})
    options = {key: config[key] for key in ("beta", "learning_rate", "warmup_steps")} | world.pad

    def watch(step, _):
        if step + 1 in config["measure_at"]:
            world.note(step + 1, policy.eval())

    with world.meter.stage("train"):
        loop.train_dpo(policy, examples, ref_logps, order=order, loss=loss, on_step=watch, **options)
    return policy


def start_policy(world: World):
    """Where RLHF starts: a copy of the reference, or what DPO makes of it first."""
    if world.config["start"] == "reference":
        return loop.frozen_copy(world.reference).requires_grad_(True)
    first = OFFLINE | world.config["start"] | {"arm": "dpo", "seed": world.config["seed"], "measure_at": []}
    return offline(with_config(world, first)).requires_grad_(True)


def judged(meter: Meter, proxy: Callable, rows: list[dict], *, reward: str = "model") -> Callable:
    """The score that the policy is trained on; true and proxy reward of every batch are appended to ``rows``.

    Args:
        reward: ``model``, the proxy; ``log-odds``, the true reward in the unit of the pairs and of the proxy;
            ``true``, P(positive).
    """

    def score(prompts, texts, completion_ids):
        meter.add("generated", sum(map(len, completion_ids)))
        found, true = proxy(prompts, texts, completion_ids), true_reward(prompts, texts)
        words = float(np.mean([len(text.split()) for text in texts]))
        rows.append({"true": float(true.mean()), "proxy": float(found.mean()), "words": words})
        return {"model": found, "true": true, "log-odds": np.log(true / (1 - true))}[reward]

    return score


def ppo(world: World):
    """PPO of ``rlhf`` on the reward model or the true reward; returns the policy and a row per iteration."""
    config, rows = world.config, []
    prompts = list(world.pairs["prompt"])
    score = judged(world.meter, world.proxy, rows, reward=config["reward"])
    policy = rlhf.ValuedPolicy(start_policy(world))
    generator = torch.Generator().manual_seed(config["seed"])

    def collect(iteration):
        picked = torch.randint(len(prompts), (config["samples"],), generator=generator).tolist()
        options = {"max_new_tokens": lab.MAX_NEW_TOKENS, "seed": 1000 * config["seed"] + iteration}
        with world.meter.stage("samples"):
            batch = [prompts[row] for row in picked]
            return rlhf.language_rollout(policy, world.reference, world.tokenizer, batch, score, **options)

    def watch(iteration, row):
        rows[iteration] |= {name: row[name] for name in ("kl", "clipped", "value_loss")}
        if iteration + 1 in config["measure_at"]:
            world.note(iteration + 1, policy.model)

    options = {key: config[key] for key in ("beta", "learning_rate", "iterations", "seed", "passes", "minibatch")}
    with world.meter.stage("train"):
        rlhf.train_ppo(collect, policy, policy.parameters(), on_iteration=watch, **options)
    return policy.model, rows


def rloo(world: World):
    """TRL's RLOO with the sizes of :func:`ppo`; TRL's sampling and training are one stage."""
    from dpo_tutorial.training import trl_rloo

    config, rows = world.config, []
    policy = start_policy(world)

    def watch(iteration):
        if iteration + 1 in config["measure_at"]:
            world.note(iteration + 1, policy.eval())
            policy.train()

    names = ("beta", "learning_rate", "iterations", "seed", "samples", "passes", "minibatch")
    options = {key: config[key] for key in names} | {"group": GROUP, "max_new_tokens": lab.MAX_NEW_TOKENS}
    prompts = list(world.pairs["prompt"])
    score = judged(world.meter, world.proxy, rows, reward=config["reward"])
    with tempfile.TemporaryDirectory() as folder, world.meter.stage("train"):
        trl_rloo.train_rloo(policy, world.tokenizer, prompts, score, folder, on_iteration=watch, **options)
    return policy, rows


def best_of_n(world: World) -> list[dict]:
    """A row per n in ``config["sizes"]``: the best of n by proxy on held-out prompts, from one pool of samples."""
    config = world.config
    prompts = list(lab.load_pairs("heldout", config["eval_prompts"])["prompt"])
    n = max(config["sizes"])
    with world.meter.stage("samples"):
        options = {"n": n, "max_new_tokens": lab.MAX_NEW_TOKENS, "seed": config["seed"], "batch_size": 128}
        drawn = sampling.sample(world.reference, world.tokenizer, prompts, **options)
        flat = [prompt for prompt in prompts for _ in range(n)]
        ids = [row for per in drawn for row in per]
        texts = world.tokenizer.batch_decode(ids, skip_special_tokens=True)
        world.meter.add("generated", sum(map(len, ids)))
        proxy = world.proxy(flat, texts, ids).reshape(len(prompts), n)
    true = true_reward(flat, texts).reshape(len(prompts), n)
    words = np.array([len(text.split()) for text in texts]).reshape(len(prompts), n)
    rows = []
    for size in config["sizes"]:
        best = (np.arange(len(prompts)), proxy[:, :size].argmax(1))
        row = {"n": size, "kl_bound": reward_model.best_of_n_kl(size), "words": float(words[best].mean())}
        rows.append(
            row | {"reward": frontier.interval(true[best], prompts), "proxy": frontier.interval(proxy[best], prompts)}
        )
    return rows


def run(config: dict, cache: Path | None = None) -> dict:
    """One run as numbers: ``spent`` by stage, ``curve``, ``final``, ``rollouts`` and the judge's accuracies."""
    world = World(config, cache)
    results = {"judge_accuracy": world.judge_accuracy}
    arm = config["arm"]
    if arm == "best_of_n":
        results["sizes"] = best_of_n(world)
    else:
        policy, rows = (offline(world), []) if arm in ("sft", "dpo") else {"ppo": ppo, "rloo": rloo}[arm](world)
        results["rollouts"] = [{name: round(value, 4) for name, value in row.items()} for row in rows]
        with world.meter.stage("measuring"):
            results["final"] = world.measure(policy, prompts=config["eval_prompts"])
    return results | {"curve": world.curve, "spent": world.meter.numbers()}
