"""Notebook 15: numbers from data that the course does not ship, the regression suite on the shipped adapters, and
what pairs that prefer short answers do to step-by-step work.

Those from external data need DPO_TUTORIAL_DATA and take seconds; numbers only enter the records, no text.
"""

import json
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd

from dpo_tutorial.training import records

POOL = Path("runs/nb15_pool.json")
TAUGHT = Path("runs/nb15_taught")
ALPACA = {"question": "length-controlled win rates", "source": "alpaca_eval", "draws": 200, "seed": 0}
PAIRS = (
    ("oasst-rlhf-llama-33b", "oasst-sft-llama-33b"),
    ("alpaca-farm-ppo-human", "alpaca-7b"),
    ("gpt-3.5-turbo-1106_verbose", "gpt-3.5-turbo-1106"),
    ("gpt-3.5-turbo-1106", "gpt-3.5-turbo-1106_concise"),
    ("gpt-3.5-turbo-1106_verbose", "gpt-3.5-turbo-1106_concise"),
    ("alpaca-7b_verbose", "alpaca-7b_concise"),
)
JUDGES = {"question": "judges against people", "source": "pandalm", "reference": "gpt-3.5-turbo's reference answers"}
EMBEDDING = JUDGES | {"question": "an embedding as judge", "model": "smollm2", "layers": 15, "tokens": 96}
SUITE = {"question": "capabilities", "samples": 4, "max_new_tokens": 32, "seed": 0}
START = {  # SmolLM2 alone solves 2 of the 80 problems: nothing to damage. So SFT teaches it to work them out first.
    "question": "short answers",
    "model": "smollm2",
    "taught": 160,
    "pairs": 0,
    "worked": 0,
    "beta": 0.1,
    "learning_rate": 1e-3,
    "rank": 8,
    "epochs": 2,
    "batch_size": 8,
    "problems": 80,
    "max_new_tokens": 80,
    "seed": 0,
}
SHORT = {
    "question": "short answers preferred",
    "start": START,
    "pairs": 32,
    "worked": 0,
    "beta": 0.1,
    "learning_rate": 1e-3,
    "rank": 8,
    "batch_size": 2,
    "measured": 4,
}
WHOLE = SHORT | {"prefer": "whole"}  # the same pairs, exchanged: what training does without that preference
WORKED = SHORT | {"pairs": 0, "worked": 16}  # the worked solutions alone
TOPICS = (
    """a bridge;a mirror;salt;a garden;music;a map;sleep;a clock;snow;paper;a market;the sea;a school;tea;a bicycle
rain;a letter;glass;a library;honey;a train;wood;a festival;a lamp;soap;a window;bread;a doctor;wool;a
ship;a calendar;ice;a newspaper;a candle;cotton;a river;a hospital;coffee;a kitchen;a telephone;sand;a museum;milk;a
farmer;iron;a football;a camera;a forest""".replace(";a\n", ";a ")
    .replace("\n", ";")
    .split(";")
)
OTHER_TOPICS = (  # no training pair asks for these
    "a hammer;a bus;rice;a pillow;a bank;winter;a lake;a pencil;gold;a zoo;an umbrella;cheese;a street;paint;grass"
).split(";")


def runs() -> list[dict]:
    """The external numbers, the suite (of every shipped adapter), then the training runs seed by seed."""
    from dpo_tutorial.training import sweep

    swept = [folder.name for folder in sorted(sweep.ADAPTERS.glob("beta_*"))]
    suite = [SUITE | {"adapter": name} for name in ("none", "sft", "dpo", *swept)]
    short = [START | {"taught": 0}, START]
    short += [SHORT | {"worked": worked, "seed": seed} for seed in (0, 1, 2) for worked in (0, 16)]
    short += [control | {"seed": seed} for control in (WHOLE, WORKED) for seed in (0, 1, 2)]
    return [ALPACA, JUDGES, *suite, *short, EMBEDDING]


def run(config: dict) -> dict:
    by_question = {
        "length-controlled win rates": alpaca,
        "judges against people": judges,
        "an embedding as judge": embedding_judge,
        "capabilities": suite,
        "short answers": before_training,
        "short answers preferred": short_answers,
    }
    return by_question[config["question"]](config)


def alpaca(config: dict) -> dict:
    """Per model: rates, length effect, mean length, published rates; per pair: differences with 95 % intervals.

    The intervals draw the instructions again, all models together, and fit everything anew.
    """
    from dpo_tutorial.data import external
    from dpo_tutorial.evaluation import benchmarks
    from dpo_tutorial.evaluation.length_control import length_controlled_win_rates

    judged = external.load("alpaca_eval", network=False)
    table = benchmarks.rates_beside_published(judged, external.alpaca_eval_leaderboard(network=False)).reset_index()
    rows = table.astype(object).where(table.notna(), None)
    rng, names = np.random.default_rng(config["seed"]), ["win_rate", "length_controlled_win_rate"]
    by_instruction = {i: part for i, part in judged.groupby("instruction_id")}
    keys, draws = list(by_instruction), []
    for _ in range(config["draws"]):
        picked = [by_instruction[keys[k]] for k in rng.integers(len(keys), size=len(keys))]
        again = pd.concat([part.assign(instruction_id=k) for k, part in enumerate(picked)])
        rates = length_controlled_win_rates(again)[names]
        draws.append([(rates.loc[a] - rates.loc[b]).to_numpy() for a, b in PAIRS])
    low, high = np.quantile(np.array(draws), [0.025, 0.975], axis=0).round(2)
    differences = {
        f"{a} - {b}": {name: [low[k, j], high[k, j]] for j, name in enumerate(names)}
        for k, (a, b) in enumerate(PAIRS)
    }
    return {"columns": list(rows.columns), "table": rows.to_numpy().tolist(), "differences": differences}


def judges(config: dict) -> dict:
    """Agreement of machine judges and rules with people."""
    from dpo_tutorial.evaluation import benchmarks

    return benchmarks.judge_numbers(benchmarks.pandalm_verdicts(network=False))


def embedding_judge(config: dict) -> dict:
    """Agreement with people of "closer to the reference answer", by the cosine of two embeddings."""
    from dpo_tutorial.data import external
    from dpo_tutorial.evaluation import benchmarks, stats

    frame, table = external.load("pandalm", network=False), benchmarks.pandalm_verdicts(network=False)
    references = benchmarks._references(frame["idx"])
    texts = [*frame["response1"].astype(str), *frame["response2"].astype(str), *references]
    one, two, reference = np.split(embeddings(texts, config), 3)
    cosines = [(side * reference).sum(1).round(5) for side in (one, two)]
    table["embedding"] = pd.array(benchmarks.verdicts(*cosines), dtype="Int64")
    right = {name: (table[name] == table["people"]).fillna(False).astype(float) for name in benchmarks.JUDGES}
    mine = (table["embedding"] == table["people"]).astype(float)
    written = np.array([text != "" for text in references])  # without one a rule that reads it finds a tie

    def differences(rows):
        found = {
            name: stats.paired_difference(mine[rows], right[name][rows], table["instruction"][rows])
            for name in benchmarks.JUDGES
        }
        return {name: [round(x, 4) for x in (v.mean, v.low, v.high)] for name, v in found.items()}

    counts = table.groupby(["people", "embedding"]).size().items()
    return {
        "against_people": benchmarks.against_people(table, ["embedding"]).round(4).loc["embedding"].to_dict(),
        "counts": [[int(p), int(j), int(n)] for (p, j), n in counts],
        "differences": differences(np.full(len(table), True)),
        "differences_with_reference": differences(written),
        "with_reference": int(written.sum()),
    }


def embeddings(texts: list[str], config: dict) -> np.ndarray:
    """(N, width), of length 1: hidden states after some layers, averaged over the tokens, minus all texts' mean."""
    import torch

    from dpo_tutorial.training import models

    model, tokenizer = models.load(config["model"], device="cpu")
    body = model.model
    body.layers = body.layers[: config["layers"]]
    rows = [tokenizer(text or " ")["input_ids"][: config["tokens"]] for text in texts]
    order, found = sorted(range(len(rows)), key=lambda i: len(rows[i])), [None] * len(rows)
    for start in range(0, len(order), 32):
        picked = order[start : start + 32]
        width = max(len(rows[i]) for i in picked)
        ids = torch.tensor([rows[i] + [tokenizer.pad_token_id] * (width - len(rows[i])) for i in picked])
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in picked])
        with torch.no_grad():
            states = body(input_ids=ids, attention_mask=mask).last_hidden_state.float() * mask[:, :, None]
        for i, total, count in zip(picked, states.sum(1), mask.sum(1), strict=True):
            found[i] = (total / count).numpy()
    centred = np.array(found) - np.mean(found, axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def load_with(adapter: str):
    """(model, tokenizer): SmolLM2 alone ("none"), with the SFT adapter, or with a DPO adapter on top of that."""
    from dpo_tutorial.data.scoring import DATA_DIR
    from dpo_tutorial.training import models, sweep

    model, tokenizer = models.load("smollm2", device="cpu") if adapter == "none" else models.load_sft(device="cpu")
    if adapter not in ("none", "sft"):
        folder = DATA_DIR / "dpo_adapter" if adapter == "dpo" else sweep.ADAPTERS / adapter
        model = models.load_adapter(model, folder).merge_and_unload().eval()
    return model, tokenizer


def suite(config: dict) -> dict:
    """p of every item, rules included."""
    from dpo_tutorial.evaluation import capabilities
    from dpo_tutorial.training import sampling

    model, tokenizer = load_with(config["adapter"])

    def sample(prompts, seed):
        options = {"n": config["samples"], "max_new_tokens": config["max_new_tokens"], "seed": seed}
        return sampling.texts(tokenizer, sampling.sample(model, tokenizer, prompts, **options))

    scores = capabilities.score(model, tokenizer, sample=sample, seed=config["seed"])
    return {
        "p": {id: round(p, 4) for id, p in zip(scores["id"], scores["p"], strict=True)},
        "dtype": str(model.dtype),
    }


def word_problem(rng) -> tuple[str, str, int]:
    """(question, worked answer, result) of a problem with two steps."""
    name, thing = (
        rng.choice("Ann Ben Cara Dan Eva Finn Gina Hugo".split()),
        rng.choice("apples pens books eggs".split()),
    )
    a, b, c = rng.randint(4, 12), rng.randint(2, 4), rng.randint(2, 6)
    if rng.random() < 0.5:
        question = (
            f"{name} has {a} {thing} and buys {b} bags with {c} {thing} each. How many {thing} does {name} have now?"
        )
        steps = f"The bags hold {b} x {c} = {b * c} {thing}. Together that is {a} + {b * c} = {a + b * c}."
        return question, f"{steps} The answer is {a + b * c}.", a + b * c
    a += 8
    question = f"{name} has {a} {thing}, gives away {b} and loses {c}. How many {thing} does {name} have now?"
    kept, left = a - b, a - b - c
    steps = f"After giving away {b}, {a} - {b} = {kept} are left. After losing {c}, {kept} - {c} = {left} are left."
    return question, f"{steps} The answer is {left}.", left


def ask(question: str) -> list[dict]:
    return [{"role": "user", "content": f"{question} Think step by step."}]


def good_for(topic: str) -> list[dict]:
    return [{"role": "user", "content": f"What is {topic} good for?"}]


def say(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def problems(n: int, seed: int) -> list[tuple[str, str, int]]:
    """``n`` different problems; training takes seeds from 1 on, evaluation seed 0."""
    rng, found = random.Random(seed), {}
    while len(found) < n:
        question, worked, result = word_problem(rng)
        found[question] = (question, worked, result)
    return list(found.values())


def everyday_pairs(model, tokenizer) -> list[dict]:
    """The model's own answers to everyday questions, whole sentences (rejected), and the first of these (chosen)."""
    from dpo_tutorial.training import sampling

    if not POOL.exists():
        prompts = [good_for(topic) for topic in TOPICS]
        drawn = sampling.sample(model, tokenizer, prompts, n=1, max_new_tokens=80, temperature=0.7, seed=0)
        rows = []
        for prompt, (text,) in zip(prompts, sampling.texts(tokenizer, drawn), strict=True):
            whole = re.search(r"(?s).*[.!?](?=\s|$)", text.strip())  # up to the last end of a sentence
            first, *rest = re.split(r"(?<=[.!?])\s+", whole[0]) if whole else [""]
            if rest:
                rows.append({"prompt": prompt, "chosen": say(first), "rejected": say(whole[0])})
        records.write_json(POOL, {"pairs": rows})
    return json.loads(POOL.read_text(encoding="utf-8"))["pairs"]


def unseen(n: int, seed: int, config: dict) -> list[tuple[str, str, int]]:
    """``n`` problems, none of which is held out."""
    heldout = {question for question, _, _ in problems(config["problems"], 0)}
    return [p for p in problems(2 * n + 40, seed) if p[0] not in heldout][:n]


def taught(model, tokenizer, pool: list[dict], config: dict):
    """The model after SFT on worked problems and on its own whole answers to everyday questions; made once."""
    from dpo_tutorial.training import models, trl_bridge

    if not TAUGHT.exists():
        trl_bridge.quiet_libraries()
        rows = [{"prompt": ask(q), "completion": say(w)} for q, w, _ in unseen(config["taught"], 100, config)]
        rows += [{"prompt": row["prompt"], "completion": row["rejected"]} for row in pool]
        options = {name: config[name] for name in ("learning_rate", "rank", "epochs", "batch_size", "seed")}
        trainer = trl_bridge.train_sft(model, tokenizer, pd.DataFrame(rows), output_dir="runs/nb15_sft", **options)
        trainer.model.save_pretrained(TAUGHT)
        model, _ = models.load(config["model"], device="cpu")
    return models.load_adapter(model, TAUGHT).merge_and_unload().eval()


def start_of(config: dict):
    """(model, tokenizer, everyday pairs) before any preference is trained."""
    from dpo_tutorial.training import models

    model, tokenizer = models.load(config["model"], device="cpu")
    pool = everyday_pairs(model, tokenizer)
    return (taught(model, tokenizer, pool, config) if config["taught"] else model), tokenizer, pool


def before_training(config: dict) -> dict:
    """What SmolLM2 can do with the problems, taught or not."""
    model, tokenizer, _ = start_of(config)
    return solve(model, tokenizer, config) | {"steps_p": steps_p(model, tokenizer)}


def short_answers(config: dict) -> dict:
    """One epoch on pairs whose short response is preferred, or the whole one; measured four times on the way."""
    from dpo_tutorial.training import encode, loop, models

    model, tokenizer, pool = start_of(config["start"])
    everyday = pool[: config["pairs"]]
    if config.get("prefer") == "whole":
        everyday = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in everyday]
    rows = everyday + [
        {"prompt": ask(question), "chosen": say(worked), "rejected": say(f"The answer is {result}.")}
        for question, worked, result in unseen(config["worked"], 1 + config["seed"], config["start"])
    ]
    encoded = [encode.encode_pair(tokenizer, row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    pad = {"pad_token_id": tokenizer.pad_token_id}
    ref_logps = loop.reference_logps(model, encoded, **pad)
    model = models.add_lora(model, rank=config["rank"], seed=config["seed"])
    order = loop.batch_order(len(rows), batch_size=config["batch_size"], epochs=1, seed=config["seed"])
    found, every = [], len(order) // config["measured"]

    def measure(step: int, _) -> None:
        """After ``step`` + 1 updates."""
        if (step + 1) % every == 0 and step < len(order):
            found.append({"updates": step + 1} | solve(model.eval(), tokenizer, config["start"]))

    rates = {"beta": config["beta"], "learning_rate": config["learning_rate"]}
    trained = loop.train_dpo(model, encoded, ref_logps, order=order, on_step=measure, **rates, **pad)
    losses = [round(row["loss"], 4) for row in trained.history[:-1]]
    return {"measured": found, "loss": losses, "steps_p": steps_p(model, tokenizer), "pairs_used": len(rows)}


def calculations(text: str) -> list[bool]:
    """Of every calculation that the text writes out, as "3 x 6 = 18", whether it is right."""
    signs = {"+": int.__add__, "-": int.__sub__}
    found = re.findall(r"(?<!\d)(?<![-+x*×] )(\d+)[a-z ]*([-+x*×])\s*(\d+)[a-z ]*=\s*(\d+)", text)
    return [signs.get(sign, int.__mul__)(int(a), int(b)) == int(value) for a, sign, b, value in found]


def solve(model, tokenizer, config: dict) -> dict:
    """Held-out problems: right results, words, written calculations; everyday questions: words. Greedy."""
    from dpo_tutorial.training import sampling

    held = problems(config["problems"], 0)
    options = {"n": 1, "max_new_tokens": config["max_new_tokens"], "temperature": 0, "seed": 0, "batch_size": 80}
    drawn = sampling.sample(model, tokenizer, [ask(question) for question, _, _ in held], **options)
    texts = [text for (text,) in sampling.texts(tokenizer, drawn)]
    ended = [ids[-1:] == [tokenizer.eos_token_id] for (ids,) in drawn]
    last = [re.findall(r"\d+", text)[-1:] for text in texts]
    right = [found == [str(result)] for found, (_, _, result) in zip(last, held, strict=True)]
    everyday = sampling.sample(model, tokenizer, [good_for(topic) for topic in OTHER_TOPICS], **options)
    return {
        "right": [int(value) for value in right],
        "words": [len(text.split()) for text in texts],
        "calculations": [len(calculations(text)) for text in texts],
        "calculations_right": [sum(calculations(text)) for text in texts],
        "ended": round(float(np.mean(ended)), 3),
        "everyday_words": [len(text.split()) for (text,) in sampling.texts(tokenizer, everyday)],
    }


def steps_p(model, tokenizer) -> float:
    """The suite's family ``steps``: mean probability of the right option."""
    from dpo_tutorial.evaluation import capabilities

    items = capabilities.load_items().query("family == 'steps'")
    return round(float(capabilities.score(model, tokenizer, items)["p"].mean()), 4)
