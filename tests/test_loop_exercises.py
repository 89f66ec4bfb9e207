"""Notebook 08's checkers: silent on nothing, right about right and wrong answers."""

from dpo_tutorial.training import loop_exercises as check


def test_prompt_leak():
    def right(d, p, w, l):  # noqa: E741
        return d / (p + w) - d / (p + l)

    assert check.prompt_leak(lambda *_: None).startswith("not done yet")
    assert check.prompt_leak(right).startswith("correct")
    assert "equal length" in check.prompt_leak(lambda d, p, w, l: d)  # noqa: E741
    assert "flip" in check.prompt_leak(lambda d, p, w, l: abs(right(d, p, w, l)))  # noqa: E741
    assert "sign or the divisor" in check.prompt_leak(lambda d, p, w, l: -right(d, p, w, l))  # noqa: E741


def test_backward_in_parts():
    def right(parts, loss_of):
        total = sum(len(part) for part in parts)
        for part in parts:
            (loss_of(part) * len(part) / total).backward()

    def summed(parts, loss_of):
        for part in parts:
            loss_of(part).backward()

    def mean_of_means(parts, loss_of):
        for part in parts:
            (loss_of(part) / len(parts)).backward()

    assert check.backward_in_parts(lambda parts, loss_of: None).startswith("not done yet")
    assert check.backward_in_parts(right).startswith("correct")
    assert "twice" in check.backward_in_parts(summed)
    assert "mean of means" in check.backward_in_parts(mean_of_means)
    assert "do not give" in check.backward_in_parts(lambda parts, loss_of: loss_of(parts[0]).backward())


def test_batch_margins():
    def right(new, old, beta):
        chosen, rejected = (new - old).chunk(2)
        return beta * (chosen - rejected)

    def interleaved(new, old, beta):
        chosen, rejected = (new - old).view(-1, 2).unbind(1)
        return beta * (chosen - rejected)

    assert check.batch_margins(right).startswith("correct")
    assert check.batch_margins(interleaved).startswith("not done yet")
    assert "one pair" in check.batch_margins(lambda new, old, beta: -right(new, old, beta))
    assert "six margins" in check.batch_margins(lambda new, old, beta: new)
    assert "reference" in check.batch_margins(lambda new, old, beta: right(new, 0 * old, beta))
