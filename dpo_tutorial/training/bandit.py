"""A world of two tokens whose KL-regularised optimum is known, to check PPO against it."""

import torch

from dpo_tutorial.training import rlhf

VOCABULARY = 5  # two tokens: 25 responses


class TwoTokens(torch.nn.Module):
    """A tabular policy over two tokens with a value table; the tree that language models are, at its smallest."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.nn.Parameter(torch.randn(VOCABULARY, generator=generator, dtype=torch.float64))
        self.second = torch.nn.Parameter(
            torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
        )
        self.value = torch.nn.Parameter(torch.zeros(1 + VOCABULARY, dtype=torch.float64))

    def forward(self, batch):
        a, b = batch["tokens"].T
        logps = torch.stack([self.first.log_softmax(-1)[a], self.second.log_softmax(-1)[a, b]], dim=1)
        return logps, torch.stack([self.value[0].expand(len(a)), self.value[1 + a]], dim=1)

    def joint(self) -> torch.Tensor:
        """(V, V) log-probabilities of all responses."""
        return (self.first.log_softmax(-1)[:, None] + self.second.log_softmax(-1)).detach()


def solve(*, beta: float, iterations: int = 200, seed: int) -> list[tuple[float, float]]:
    """Exact (reward, KL) of PPO's policy and of the closed-form optimum, for a random reward and reference."""
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    policy, reference = TwoTokens(seed), TwoTokens(seed)
    ref = reference.joint()

    def collect(iteration):
        flat = torch.multinomial(policy.joint().exp().flatten(), 512, replacement=True, generator=generator)
        batch = {"tokens": torch.stack([flat // VOCABULARY, flat % VOCABULARY], dim=1)}
        with torch.no_grad():
            logps, values = policy(batch)
            ref_logps = reference(batch)[0]
        return rlhf.Rollout(batch, torch.ones(512, 2), logps, ref_logps, values, reward.flatten()[flat])

    options = {"iterations": iterations, "seed": seed, "passes": 2, "minibatch": 256}
    rlhf.train_ppo(collect, policy, policy.parameters(), beta=beta, learning_rate=0.05, **options)
    optimum = (ref + reward / beta).flatten().log_softmax(0).view(VOCABULARY, VOCABULARY)
    return [
        ((table.exp() * reward).sum().item(), (table.exp() * (table - ref)).sum().item())
        for table in (policy.joint(), optimum)
    ]
