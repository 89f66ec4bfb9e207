"""The stress tests of notebook 05: data sets with one fault each, and tables trained on several of them at once.

``seeds`` are whole numbers, one per data set: each has a generator of its own, so that it can be drawn alone.
S is the number of data sets, P of prompts, R of responses. A data set of pairs is a table of counts (P, R, R), as
:meth:`finite.Preferences.counts` gives it.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from dpo_tutorial.theory import finite, tabular

LENGTHS = (10.0, 40.0) * 3  # tokens of the six responses of :func:`world_with_lengths`
JUNK = 2  # responses of :func:`world_with_junk` that no pair mentions


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def sample_counts(
    world: finite.FiniteWorld,
    n: int,
    seeds: Iterable[int],
    *,
    pairs: str = "uniform",
    tie_strength: float = 0.0,
    flip_rate: float = 0.0,
    half_ties: bool = False,
) -> Tensor:
    """Counts (S, P, R, R) of ``n`` comparisons per seed; ties are dropped, or count half each way (``half_ties``)."""
    out = []
    for seed in seeds:
        rows = world.sample_preferences(
            n, generator=_generator(seed), pairs=pairs, tie_strength=tie_strength, flip_rate=flip_rate
        )
        counts, tied = rows.counts(*world.shape), rows.select(rows.ties)
        for one, other in ((tied.chosen, tied.rejected), (tied.rejected, tied.chosen)) if half_ties else ():
            counts.index_put_((tied.prompts, one, other), tied.weights / 2, accumulate=True)
        out.append(counts)
    return torch.stack(out)


def train(
    loss: Callable[..., Tensor],
    counts: Tensor,
    world: finite.FiniteWorld,
    *,
    steps: int = 400,
    record_every: int | None = None,
) -> Tensor:
    """Policies (S, P, R) after ``steps`` of Adam on ``counts`` (S, P, R, R), all data sets at once.

    Each starts at the reference; they do not touch each other, because the other data sets' prompts are other rows of
    the table. With ``record_every`` the whole path, (records, S, P, R), start and end included.
    """
    data, ref_logps = finite.preferences_from_counts(counts.flatten(0, 1)), world.ref_logps.repeat(len(counts), 1)
    run = tabular.fit(
        tabular.TablePolicy(ref_logps),
        tabular.pair_objective(loss, data, ref_logps),
        optimizer="adam",
        learning_rate=0.1,
        steps=steps,
        tolerance=0,
        record_every=record_every,
    )
    return (run.path if record_every else run.logps).exp().unflatten(-2, (len(counts), -1))


def regret(world: finite.FiniteWorld, policy: Tensor, *, beta: float) -> Tensor:
    """How far reward minus beta KL is below its best possible value, (...) for policies (..., P, R)."""
    return world.objective(world.optimal_policy(beta), beta) - world.objective(policy, beta)


def reward_at_kl(world: finite.FiniteWorld, path: Tensor, kl: float) -> Tensor:
    """Expected true reward (S,) at the first record of ``path`` (records, S, P, R) with this mean KL.

    Raises:
        ValueError: a data set whose path never spends that much.
    """
    spent = world.average(world.kl(path)) > kl
    if not spent.any(0).all():
        raise ValueError(
            f"kl is {kl}, which {int((~spent.any(0)).sum())} path(s) never reach; train longer or lower it"
        )
    first = spent.double().argmax(0)
    return world.average(world.expected_reward(path))[first, torch.arange(path.shape[1])]


def thumb_probs(world: finite.FiniteWorld) -> Tensor:
    """P(thumb up) = sigma(reward - the reference's mean reward on the prompt), (P, R)."""
    return torch.sigmoid(world.true_rewards - world.expected_reward(world.ref_probs)[:, None])


def sample_thumbs(world: finite.FiniteWorld, n: int, seeds: Sequence[int]) -> Tensor:
    """Numbers of thumbs down and up (S, P, R, 2) for ``n`` responses of the reference per seed."""
    tables = torch.zeros(len(seeds), *world.shape, 2, dtype=torch.float64)
    for seed, table in zip(seeds, tables, strict=True):
        generator = _generator(seed)
        prompts = torch.multinomial(world.prompt_weights, n, replacement=True, generator=generator)
        responses = torch.multinomial(world.ref_probs[prompts], 1, generator=generator)[:, 0]
        coin = torch.rand(n, dtype=torch.float64, generator=generator)
        up = coin < thumb_probs(world)[prompts, responses]
        table.index_put_((prompts, responses, up.long()), torch.ones(n, dtype=torch.float64), accumulate=True)
    return tables


def rankings_of_four(world: finite.FiniteWorld) -> tuple[Tensor, Tensor]:
    """All rankings of any four responses (K, 4), best first, and their Plackett-Luce probabilities (P, K), sum one.

    Any four responses are asked about alike; the best is chosen by exp(reward), then the best of the rest, and so on.
    """
    fours = list(itertools.combinations(range(world.shape[1]), 4))
    orders = torch.tensor([order for four in fours for order in itertools.permutations(four)])
    ranked = world.true_rewards[:, orders]  # (P, K, 4)
    log_probs = sum(ranked[..., k] - torch.logsumexp(ranked[..., k:], -1) for k in range(4))
    return orders, log_probs.exp() * world.prompt_weights[:, None] / len(fours)


def sample_rankings(world: finite.FiniteWorld, n: int, seeds: Iterable[int]) -> Tensor:
    """How often each ranking of :func:`rankings_of_four` occurs among ``n`` drawn ones, (S, P, K)."""
    probs = rankings_of_four(world)[1]
    drawn = [torch.multinomial(probs.flatten(), n, replacement=True, generator=_generator(seed)) for seed in seeds]
    return (
        torch.stack([torch.bincount(one, minlength=probs.numel()) for one in drawn])
        .double()
        .unflatten(1, probs.shape)
    )


def pairs_of_rankings(world: finite.FiniteWorld, weights: Tensor, places: Iterable[tuple[int, int]]) -> Tensor:
    """Counts (..., P, R, R) of pairs from weights (..., P, K) of rankings; place 0 is the best, 3 the worst."""
    orders = rankings_of_four(world)[0]
    counts = torch.zeros(*weights.shape[:-1], world.shape[1] ** 2, dtype=torch.float64)
    for better, worse in places:
        index = orders[:, better] * world.shape[1] + orders[:, worse]
        counts.index_add_(-1, index, weights)
    return counts.unflatten(-1, (world.shape[1], world.shape[1]))


def implied_scale(
    loss: Callable[..., Tensor], counts: Tensor, ref_logps: Tensor | None, world: finite.FiniteWorld, *, beta: float
) -> float:
    """Slope of the implied on the true reward, centred per prompt, after training to the end on (P, R, R) counts.

    ``loss`` still needs beta. ``ref_logps`` None is for losses without a reference; the implied reward is then beta
    times the log-probability. 1 means that the rewards come out right.
    """
    objective = tabular.pair_objective(
        lambda *logps: loss(*logps, beta=beta), finite.preferences_from_counts(counts), ref_logps
    )
    logps = tabular.fit(tabular.TablePolicy(world.ref_logps), objective).logps
    implied = beta * (logps if ref_logps is None else logps - ref_logps)
    implied, truth = (table - table.mean(-1, keepdim=True) for table in (implied, world.true_rewards))
    return ((implied * truth).sum() / (truth * truth).sum()).item()


def world_with_lengths(seed: int, *, long_bonus: float = 0.0) -> finite.FiniteWorld:
    """Three prompts; three qualities, each in a short and a long version (:data:`LENGTHS`) of equal true reward.

    The reference says the long versions more rarely. ``long_bonus`` is added to their rewards.
    """
    generator = _generator(seed)
    quality = _normal(generator, 3, 3) + _normal(generator, 3, 1)
    logits = 0.7 * _normal(generator, 3, 6) - 0.03 * torch.tensor(LENGTHS, dtype=torch.float64)
    bonus = long_bonus * torch.tensor([0.0, 1.0] * 3, dtype=torch.float64)
    return finite.FiniteWorld(quality.repeat_interleave(2, 1) + bonus, torch.softmax(logits, -1))


def per_token(loss: Callable[..., Tensor], rows: finite.Preferences) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of averaged log-probabilities as one of summed ones, for the N pairs of ``rows``: (N,), (N,) -> (N,).

    Each is divided by the length of its response: avg_logps = logps / |y|, with |y| from :data:`LENGTHS`.
    """
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    return lambda chosen, rejected: loss(chosen / lengths[rows.chosen], rejected / lengths[rows.rejected])


def five_policies(
    world: finite.FiniteWorld,
    dpo: Callable[..., Tensor],
    cpo: Callable[..., Tensor],
    simpo: Callable[..., Tensor],
    orpo: Callable[..., Tensor],
    likelihood: Callable[..., Tensor],
) -> dict[str, Tensor]:
    """The reference of a :func:`world_with_lengths`, and what five losses make of it: name -> (P, R) probabilities.

    Each starts at the reference and minimises its mean over the population preferences, to the end. DPO alone has a
    reference in its loss; SimPO, ORPO and its likelihood take log-probabilities :func:`per_token`.
    """
    rows = world.population_preferences()
    trained = {"DPO": dpo, "CPO": cpo, "SimPO": per_token(simpo, rows), "ORPO": per_token(orpo, rows)}
    policies = {"reference": world.ref_probs}
    for name, loss in (trained | {"likelihood only": per_token(likelihood, rows)}).items():
        objective = tabular.pair_objective(loss, rows, world.ref_logps if name == "DPO" else None)
        policies[name] = tabular.fit(tabular.TablePolicy(world.ref_logps), objective).policy
    return policies


def world_with_junk(seed: int, n: int) -> tuple[finite.FiniteWorld, finite.Preferences]:
    """A base model's world, and ``n`` comparisons in it: 90 % of the reference is on two responses no pair mentions.

    Three prompts; four useful responses, then :data:`JUNK` of reward -3.
    """
    generator = _generator(seed)
    quality, useful = _normal(generator, 3, 4), torch.softmax(_normal(generator, 3, 4), -1)
    junk = torch.ones(3, JUNK, dtype=torch.float64)
    world = finite.FiniteWorld(torch.cat([quality, -3 * junk], 1), torch.cat([0.1 * useful, 0.45 * junk], 1))
    labelled = finite.FiniteWorld(quality, useful).sample_preferences(n, generator=generator)
    return world, finite.preferences_from_counts(labelled.counts(*world.shape))
