"""A finite world: a few prompts, a few responses each, true rewards and a reference. Everything is exact.

Tables are float64 tensors of shape (P, R): P prompts, R responses. A policy is a table of probabilities whose
rows sum to one; functions of a policy also take leading dimensions, (..., P, R). Nothing here is random except
:func:`random_world` and :meth:`FiniteWorld.sample_preferences`, which take a ``torch.Generator``.
"DPO paper" is Rafailov et al. 2023, arXiv 2305.18290.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def _beta(beta: float) -> None:
    if not (isinstance(beta, (int, float)) and math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta is {beta!r}; accepted is a finite number above 0, for example 0.5")


@dataclass(frozen=True)
class Preferences:
    """Comparisons, one row each: on prompt ``prompts[k]``, ``chosen[k]`` was preferred to ``rejected[k]``.

    Attributes:
        prompts, chosen, rejected: (N,) integer indices into the world's tables.
        weights: (N,) float64; ones for a sample, probabilities (sum one) for a population.
        ties: (N,) bool; where True neither was preferred, and chosen and rejected are in arbitrary order.
    """

    prompts: Tensor
    chosen: Tensor
    rejected: Tensor
    weights: Tensor
    ties: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, mask: Tensor) -> "Preferences":
        """The rows where ``mask`` (N,) is True, weights unchanged."""
        return Preferences(
            *(getattr(self, name)[mask] for name in ("prompts", "chosen", "rejected", "weights", "ties"))
        )

    def decided(self) -> "Preferences":
        """The rows that are not ties."""
        return self.select(~self.ties)

    def counts(self, n_prompts: int, n_responses: int) -> Tensor:
        """Total weight by (prompt, chosen, rejected), shape (P, R, R); ties are left out."""
        table = torch.zeros(n_prompts, n_responses, n_responses, dtype=torch.float64)
        rows = self.decided()
        return table.index_put((rows.prompts, rows.chosen, rows.rejected), rows.weights, accumulate=True)


def preferences_from_counts(counts: Tensor) -> Preferences:
    """The inverse of :meth:`Preferences.counts`: one weighted row per non-zero entry of (P, R, R) ``counts``."""
    prompts, chosen, rejected = torch.nonzero(counts, as_tuple=True)
    weights = counts[prompts, chosen, rejected].double()
    return Preferences(prompts, chosen, rejected, weights, torch.zeros(len(prompts), dtype=torch.bool))


@dataclass(frozen=True)
class FiniteWorld:
    """True rewards and a reference policy over P prompts and R responses.

    Attributes:
        true_rewards: (P, R), r*(x, y).
        ref_probs: (P, R), pi_ref(y given x); rows sum to one, zeros allowed.
        prompt_weights: (P,), probability of each prompt; uniform when left out.

    Raises:
        ValueError: shapes that do not agree, a row that does not sum to one, a negative probability.
    """

    true_rewards: Tensor
    ref_probs: Tensor
    prompt_weights: Tensor | None = None

    def __post_init__(self) -> None:
        rewards, ref = self.true_rewards.double(), self.ref_probs.double()
        if rewards.ndim != 2 or rewards.shape != ref.shape:
            raise ValueError(
                f"true_rewards has shape {tuple(rewards.shape)}, ref_probs {tuple(ref.shape)}; "
                "accepted is one shape (P, R)"
            )
        weights = self.prompt_weights
        weights = torch.full((len(rewards),), 1 / len(rewards)).double() if weights is None else weights.double()
        if weights.shape != rewards.shape[:1]:
            raise ValueError(f"prompt_weights has shape {tuple(weights.shape)}; accepted is ({len(rewards)},)")
        for name, table in (("ref_probs", ref), ("prompt_weights", weights[None])):
            wrong = ((table.sum(-1) - 1).abs() > 1e-6) | (table < 0).any(-1)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"{name} row {row} is {table[row].tolist()}; accepted are probabilities that sum to one. "
                    "Divide by the row's sum."
                )
        for name, value in (
            ("true_rewards", rewards),
            ("ref_probs", ref / ref.sum(-1, keepdim=True)),
            ("prompt_weights", weights / weights.sum()),
        ):
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int]:
        """(P, R)."""
        return tuple(self.true_rewards.shape)

    @property
    def ref_logps(self) -> Tensor:
        """(P, R) log pi_ref; -inf where the reference is zero."""
        return self.ref_probs.log()

    def average(self, per_prompt: Tensor) -> Tensor:
        """Mean over prompts of (..., P) values by ``prompt_weights``, shape (...)."""
        return (per_prompt * self.prompt_weights).sum(-1)

    def log_partition(self, beta: float) -> Tensor:
        """log Z(x) = log sum_y pi_ref(y given x) exp(r*(x, y) / beta), shape (P,). DPO paper, below Eq. 4."""
        _beta(beta)
        return torch.logsumexp(self.ref_logps + self.true_rewards / beta, dim=-1)

    def optimal_logps(self, beta: float) -> Tensor:
        """log pi*(y given x) = log pi_ref + r* / beta - log Z, shape (P, R). DPO paper, Eq. 4."""
        return self.ref_logps + self.true_rewards / beta - self.log_partition(beta)[:, None]

    def optimal_policy(self, beta: float) -> Tensor:
        """The policy that maximises :meth:`objective`, shape (P, R): pi_ref exp(r* / beta) / Z."""
        return self.optimal_logps(beta).exp()

    def expected_reward(self, policy: Tensor) -> Tensor:
        """sum_y policy(y given x) r*(x, y) per prompt, shape (..., P)."""
        return (policy * self.true_rewards).sum(-1)

    def kl(self, policy: Tensor) -> Tensor:
        """KL(policy || reference) per prompt in nats, shape (..., P).

        Infinite where the policy leaves the reference's support. Exact and differentiable where the policy
        is positive, with 0 log 0 = 0.
        """
        inside = policy > 0
        safe = torch.where(inside, policy, torch.ones_like(policy))
        terms = torch.where(inside, safe * (safe.log() - self.ref_logps), torch.zeros_like(policy))
        return terms.sum(-1)

    def total_variation(self, one: Tensor, two: Tensor) -> Tensor:
        """Half the summed absolute difference of two policies, averaged over prompts: 0 equal, 1 disjoint."""
        return self.average((one - two).abs().sum(-1) / 2)

    def objective(self, policy: Tensor, beta: float) -> Tensor:
        """Expected reward minus beta times KL, averaged over prompts, shape (...). DPO paper, Eq. 3."""
        _beta(beta)
        return self.average(self.expected_reward(policy) - beta * self.kl(policy))

    def preference_probs(self) -> Tensor:
        """P(y_i preferred to y_j given x) = sigma(r*_i - r*_j), shape (P, R, R), diagonal 0.5. DPO paper, Eq. 1."""
        return torch.sigmoid(self.true_rewards[:, :, None] - self.true_rewards[:, None, :])

    def tie_probs(self, tie_strength: float) -> Tensor:
        """P(tie) for each pair under Davidson's model, shape (P, R, R).

        Davidson 1970: win : loss : tie = e^{r_i} : e^{r_j} : nu e^{(r_i + r_j) / 2}. Two equal responses tie with
        probability nu / (2 + nu), far-apart ones hardly ever; decided pairs are still exactly Bradley-Terry.
        """
        if not tie_strength >= 0:
            raise ValueError(f"tie_strength is {tie_strength!r}; accepted is 0 (no ties) or above, for example 0.5")
        gap = self.true_rewards[:, :, None] - self.true_rewards[:, None, :]
        return tie_strength / (tie_strength + 2 * torch.cosh(gap / 2))

    def pair_probs(self, pairs: str = "uniform") -> Tensor:
        """Probability that a comparison is about (i, j) on prompt p, shape (P, R, R), zero diagonal, sum one.

        ``"uniform"``: prompt by its weight, any two different responses alike. ``"reference"``: two independent
        draws from the reference, given that they differ.
        """
        size = self.shape[1]
        if pairs == "uniform":
            table = torch.ones(*self.shape, size, dtype=torch.float64)
        elif pairs == "reference":
            table = self.ref_probs[:, :, None] * self.ref_probs[:, None, :]
        else:
            raise ValueError(f"pairs is {pairs!r}; accepted are 'uniform' and 'reference'")
        table = table * (1 - torch.eye(size, dtype=torch.float64))
        return self.prompt_weights[:, None, None] * table / table.sum((1, 2), keepdim=True)

    def population_preferences(self, *, pairs: str = "uniform", flip_rate: float = 0.0) -> Preferences:
        """Every ordered pair, weighted by how often it comes out so: infinitely many comparisons.

        The weights sum to one. ``flip_rate`` swaps that share of the labels. There are no ties.
        """
        _rate("flip_rate", flip_rate)
        win = self.preference_probs() * (1 - flip_rate) + self.preference_probs().transpose(1, 2) * flip_rate
        return preferences_from_counts(2 * self.pair_probs(pairs) * win)

    def sample_preferences(
        self,
        n: int,
        *,
        generator: torch.Generator,
        pairs: str = "uniform",
        tie_strength: float = 0.0,
        flip_rate: float = 0.0,
    ) -> Preferences:
        """Draw ``n`` comparisons from Bradley-Terry, with Davidson ties and flipped labels if asked.

        Args:
            n: number of comparisons, ties included.
            generator: source of randomness; the same state gives the same rows.
            pairs: how the pair is drawn, see :meth:`pair_probs`.
            tie_strength: Davidson's nu, see :meth:`tie_probs`.
            flip_rate: probability that a decided label is swapped, in [0, 1].

        Returns:
            Preferences with weights of one.
        """
        _rate("flip_rate", flip_rate)
        if n < 1:
            raise ValueError(f"n is {n!r}; accepted is a whole number of comparisons, 1 or above")
        size = self.shape[1]
        flat = torch.multinomial(self.pair_probs(pairs).flatten(), n, replacement=True, generator=generator)
        prompts, first, second = flat // size**2, flat // size % size, flat % size
        coin = torch.rand(3, n, dtype=torch.float64, generator=generator)
        ties = coin[0] < self.tie_probs(tie_strength)[prompts, first, second]
        first_wins = coin[1] < self.preference_probs()[prompts, first, second]
        first_wins = first_wins ^ ((coin[2] < flip_rate) & ~ties)
        chosen, rejected = torch.where(first_wins, first, second), torch.where(first_wins, second, first)
        return Preferences(prompts, chosen, rejected, torch.ones(n, dtype=torch.float64), ties)


def _rate(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; accepted is a share between 0 and 1")


def random_world(
    n_prompts: int,
    n_responses: int,
    *,
    generator: torch.Generator,
    reward_scale: float = 1.0,
    ref_scale: float = 1.0,
) -> FiniteWorld:
    """A world with normal rewards (standard deviation ``reward_scale``) and a softmax-normal reference.

    ``ref_scale`` is the standard deviation of the reference's logits: 0 gives a uniform reference. The mean of each
    prompt's rewards is not zero, so that code that forgets the per-prompt shift is found out.
    """
    rewards = reward_scale * torch.randn(n_prompts, n_responses, dtype=torch.float64, generator=generator)
    shifts = torch.randn(n_prompts, 1, dtype=torch.float64, generator=generator)
    logits = ref_scale * torch.randn(n_prompts, n_responses, dtype=torch.float64, generator=generator)
    weights = torch.softmax(0.5 * torch.randn(n_prompts, dtype=torch.float64, generator=generator), 0)
    return FiniteWorld(rewards + shifts, F.softmax(logits, -1), weights)
