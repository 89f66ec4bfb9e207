"""The contest of notebook 12: what is counted, what is flipped, and that each arm runs and differs."""

import numpy as np
import pytest
import torch

from dpo_tutorial.training import contest, contest_exercises, encode, lab, reward_model
from dpo_tutorial.training import contest_book as book

TINY = {"judge_pairs": 24, "judge_epochs": 1, "eval_prompts": 4, "curve_prompts": 4, "pairs": 24}
FEW = TINY | {"iterations": 2, "measure_at": [1], "samples": 8, "minibatch": 8}
PPO = contest.METHODS["RM + PPO"] | FEW


@pytest.fixture(autouse=True)
def few_heldout_pairs(monkeypatch):
    """A run measures its judge on 200 held-out pairs, whatever its configuration; 16 show that it does."""
    load = lab.load_pairs
    monkeypatch.setattr(contest.lab, "load_pairs", lambda part, n: load(part, min(n, 16) if part == "heldout" else n))


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """A folder of judges for the whole module: those of one configuration are fitted once."""
    return tmp_path_factory.mktemp("judges")


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 3)

    def forward(self, ids):
        return self.embedding(ids).sum()


def test_the_meter_counts_tokens_where_they_enter_and_charges_the_inner_stage():
    model, meter, ids = Small(), contest.Meter(), torch.zeros(2, 5, dtype=int)
    model(ids)
    with meter.stage("outer"):
        model(ids)
        with meter.stage("inner"), torch.no_grad():
            model(ids)
            meter.add("generated", 7)
        model.requires_grad_(False)
        model(ids[:, :3])
    model(ids)
    counted = {name: (s["forward"], s["backward"], s["generated"]) for name, s in meter.stages.items()}
    assert counted == {"outer": (16, 10, 0), "inner": (10, 0, 7)}


def test_processor_time_of_an_inner_stage_is_not_the_outer_stage_s(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 9.0])
    monkeypatch.setattr(contest.time, "process_time", lambda: next(clock))
    meter = contest.Meter()
    with meter.stage("outer"), meter.stage("inner"):
        pass
    assert {name: s["cpu_seconds"] for name, s in meter.stages.items()} == {"outer": 1.0 + 5.0, "inner": 3.0}


def test_a_share_of_the_pairs_is_flipped_and_the_seed_says_which():
    clean = lab.load_pairs("train", 40)

    def flipped(seed):
        noisy = contest.train_pairs({"flip_rate": 0.25, "seed": seed}, 40)
        swapped = noisy["chosen"] == clean["rejected"]
        assert (noisy["rejected"][swapped] == clean["chosen"][swapped]).all()
        assert (noisy["chosen"][~swapped] == clean["chosen"][~swapped]).all()
        return swapped

    assert flipped(0).sum() == flipped(1).sum() == 10
    assert (flipped(0) != flipped(1)).any()


@pytest.mark.parametrize("name", ["DPO", "RM + PPO", "RM + RLOO"])
def test_an_arm_runs_counts_and_leaves_the_reference_alone(name, judges):
    config = contest.METHODS[name] | (TINY | {"measure_at": [2]} if name == "DPO" else FEW)
    results = contest.run(config, cache=judges)
    assert results["final"]["kl"][0] != 0 and len(results["curve"]) == 1
    spent = results["spent"]
    assert spent["train"]["backward"] > 0 and spent["reward model"]["backward"] > 0
    generated = sum(stage["generated"] for stage in spent.values())
    assert (generated > 0) == (name != "DPO")
    again = contest.World(config, judges)
    assert again.judge_accuracy == results["judge_accuracy"], "the judge comes from the cache"
    assert again.meter.stages["reward model"] == spent["reward model"] | {
        "cpu_seconds": again.meter.stages["reward model"]["cpu_seconds"]
    }


STAGE = {"cpu_seconds": 8.0, "generated": 80, "forward": 800, "backward": 400}


def finished(reward, kl, curve=()):
    final = {"reward": reward, "kl": [kl, 0, 9], "proxy": [1.0, 0, 2], "words": 5.0, "ended": 1.0}
    spent = {"reward model": STAGE, "reference": STAGE, "train": STAGE, "measuring": STAGE}
    return {"curve": list(curve), "final": final, "spent": spent}


def test_costs_to_reach_a_reward():
    run = finished([0.7, 0, 1], 4.0, [{"at": 5, "reward": [0.6, 0, 1], "kl": [2.0, 0, 9]}])
    options = {"start": 0.5, "total": 10}
    reached = book.cost_to_reach(run, reward=0.55, method="RM + PPO", **options)
    assert reached["share"] == 0.25 and reached["kl"] == 1.0
    assert reached["cpu_seconds"] == 8 + 8 + 2 and reached["generated"] == 80 + 80 + 20
    assert book.cost_to_reach(run, reward=0.55, method="DPO", **options)["cpu_seconds"] == 8 + 2, "no reward model"
    assert book.cost_to_reach(run, reward=0.75, method="DPO", **options) is None


def test_reward_at_a_kl_is_read_between_the_finished_runs_of_a_seed():
    groups = [[finished([0.6, 0.5, 0.7], 9.0)], [finished([0.5, 0.4, 0.6], 4.0)]]
    starts = [[0.4, 0.3, 0.5]]
    assert book.at_kl(groups, [2.5**2], starts)[0] == pytest.approx([0.55, 0.45, 0.65])
    assert book.at_kl(groups, [1.0], starts)[0] == pytest.approx([0.45, 0.35, 0.55])
    assert book.at_kl(groups, [25.0], starts)[0] == pytest.approx([0.6, 0.5, 0.7])
    assert book.at_kl(groups, [1.0], starts, power=1)[0] == pytest.approx([0.425, 0.325, 0.525])


def test_a_gap_is_separated_when_three_seeds_agree_and_its_interval_excludes_zero():
    wide, narrow = [0.5, 0.3, 0.7], [0.5, 0.48, 0.52]
    assert book.gap([[0.6, 0.58, 0.62]] * 3, [narrow] * 3).sign == 1
    assert book.gap([narrow] * 3, [[0.6, 0.58, 0.62]] * 3).sign == -1
    assert book.gap([[0.6, 0.58, 0.62]] * 3, [wide] * 3).sign == 0, "too noisy"
    assert book.gap([[0.9, 0.88, 0.92]] * 2 + [[0.49, 0.47, 0.51]], [narrow] * 3).sign == 0, "seeds disagree"
    assert book.gap([[0.9, 0.88, 0.92]], [narrow]).sign == 0, "one seed decides nothing"
    halved = book.gap([[0.6, 0.58, 0.62]] * 3, [narrow] * 3, scale=2)
    assert halved.mean == pytest.approx(0.05)


def test_a_gap_at_equal_kl_is_separated_only_where_both_ways_of_reading_it_agree():
    frontier, starts = [[finished([0.6, 0.59, 0.61], 4.0)] * 3], [[0.4, 0.39, 0.41]] * 3
    torn, clear = (
        book.gap_at_kl([finished([r, r - 0.01, r + 0.01], 1.0)] * 3, frontier, starts) for r in (0.47, 0.55)
    )
    assert (torn.mean, torn.in_kl.mean) == pytest.approx((-0.03, 0.02)), "0.5 in the root of KL, 0.45 in KL"
    assert torn.in_kl.sign == 1 and torn.sign == 0
    assert clear.sign == 1


def test_the_cost_table_says_who_never_got_there():
    there = {"share": 0.5, "kl": 4.0, "cpu_seconds": 10.0, "generated": 0.0, "forward": 100.0, "backward": 50.0}
    twice = {name: 2 * value for name, value in there.items()}
    costs = {
        ("DPO", 0.6): [there, there, None],
        ("RM + PPO", 0.6): [twice, None, twice],
        ("RM + RLOO", 0.6): [None] * 3,
    }
    assert book.ratios(costs, "RM + PPO", 0.6, "forward") == [2.0], "where both got there"
    table = book.cost_table(costs)
    assert table["seeds"].tolist() == ["2", "2", "never reached"]
    assert table["forward / DPO's"].tolist() == ["", "2.0 to 2.0", ""] and table["backward"].tolist() == [
        "50",
        "100",
        "",
    ]


def test_the_exercise_is_checked_against_all_subsets():
    def first_only(proxy, true, n):
        return true[np.argmax(proxy[:n])]

    assert contest_exercises.expected_best(lambda proxy, true, n: None).startswith("not done yet")
    assert contest_exercises.expected_best(first_only).startswith("a pool of 5")


def test_windows_are_means_over_iterations():
    runs = [{"rollouts": [{"true": float(k)} for k in range(10)]}]
    assert book.windows(runs, "true").tolist() == [[2.0, 7.0]]


def test_single_labels_and_a_small_reward_model_are_arms_that_run(judges):
    few = FEW | {"iterations": 1, "measure_at": []}
    singly, small = (
        contest.run(contest.EXTRAS[f"RM + PPO, {name}"] | few, judges) for name in ("single labels", "small RM")
    )
    assert singly["final"] != small["final"] and len(singly["rollouts"]) == len(small["rollouts"]) == 1


def test_a_judge_of_one_layer_and_a_judge_of_single_labels_are_fitted_and_kept_apart(judges):
    usual = contest.World(PPO, judges)
    small = contest.World(PPO | contest.SMALL, judges)
    unary = contest.World(PPO | contest.SINGLE, judges)
    assert len(list(judges.glob("*.json"))) == 3
    assert len(small.judge.backbone.layers) == 1 < len(usual.judge.backbone.layers)
    assert len(usual.reference.model.layers) == len(usual.judge.backbone.layers), "the reference keeps its layers"
    tokens = [world.meter.stages["reward model"]["forward"] for world in (usual, unary)]
    assert tokens[1] == tokens[0] / 2, "one response of each pair"
    assert not torch.equal(usual.judge.head.weight, unary.judge.head.weight)


def test_single_labels_raise_the_good_and_lower_the_bad(judges):
    pad = {"pad_token_id": 0}
    world = contest.World(PPO, judges)
    examples = encode.encode_pairs(world.tokenizer, world.pairs)[:8]
    flags = [True, False] * 4
    judge = reward_model.RewardModel(world.reference)
    order = [[0, 1, 2, 3], [4, 5, 6, 7]] * 8
    reward_model.fit(judge, examples, order=order, learning_rate=1e-3, desirable=flags, **pad)
    with torch.no_grad():
        chosen, rejected = judge(encode.collate(examples, **pad)).chunk(2)
    seen = torch.where(torch.tensor(flags), chosen, rejected)
    assert (seen[::2] > 0).all() and (seen[1::2] < 0).all()
