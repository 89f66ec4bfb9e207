"""Masks as written-out matrices, the one shift, and equality with TRL on the same pairs."""

import math

import pandas as pd
import pytest
import torch

from dpo_tutorial.training import encode, logps, models, trl_bridge

PAIRS = pd.DataFrame(
    {
        "prompt": ["This movie", "I rented this film", "The acting was"],
        "chosen": [" is a joy.", " twice, and I would again", " fine"],
        "rejected": [" is dull and far too long.", " once.", " awful, and the plot made no sense at all."],
    }
)


@pytest.fixture(scope="module")
def lab():
    return models.load("lab_lm", device="cpu")


def test_collate_lays_out_chosen_then_rejected_padded_on_the_right():
    examples = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
        {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [9, 10]},
    ]
    batch = encode.collate(examples, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [7, 8, 0, 0, 0], [1, 2, 3, 6, 0], [7, 9, 10, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 1, 1, 0, 0]]


def test_collate_truncates_at_the_end():
    examples = [{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [4, 6]}]
    batch = encode.collate(examples, pad_token_id=0, max_length=4)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, 3, 4]], (
        "the pair became equal: the audit looks for it"
    )


def test_per_token_logps_shifts_once():
    logits = torch.full((1, 3, 2), 0.0)
    logits[0, 0] = torch.tensor([0.0, math.log(3)])  # position 0 predicts token 1 with probability 3/4
    logits[0, 1] = torch.tensor([math.log(4), 0.0])  # position 1 predicts token 0 with probability 4/5
    logits[0, 2] = torch.tensor([50.0, -50.0])  # the last position predicts nothing that is there
    out = logps.per_token_logps(logits, torch.tensor([[0, 1, 0]]))
    assert torch.allclose(out, torch.tensor([[math.log(3 / 4), math.log(4 / 5)]]))


def test_a_row_without_completion_tokens_is_refused(lab):
    model, _ = lab
    batch = encode.collate(
        [{"prompt_ids": [5, 6, 7], "chosen_ids": [8], "rejected_ids": [9]}], pad_token_id=1, max_length=3
    )
    with pytest.raises(ValueError, match=r"rows \[0, 1\].*max_length"):
        logps.completion_logps(model, batch)


def test_summed_and_averaged_logps_agree_with_a_token_by_token_computation(lab):
    model, tokenizer = lab
    example = encode.encode_pairs(tokenizer, PAIRS)[1]
    batch = encode.collate([example], pad_token_id=tokenizer.pad_token_id)
    total = 0.0
    ids = example["prompt_ids"] + example["chosen_ids"]
    for place in range(len(example["prompt_ids"]), len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
        total += float(logits.log_softmax(-1)[ids[place]])
    with torch.no_grad():
        assert float(logps.completion_logps(model, batch)[0]) == pytest.approx(total, abs=1e-3)
        average = float(logps.completion_logps(model, batch, average=True)[0])
    assert average == pytest.approx(total / len(example["chosen_ids"]), abs=1e-4)


def test_padding_changes_nothing(lab):
    model, tokenizer = lab
    examples = encode.encode_pairs(tokenizer, PAIRS)
    together = logps.pair_logps(model, examples, pad_token_id=tokenizer.pad_token_id)
    for k, example in enumerate(examples):
        alone = logps.pair_logps(model, [example], pad_token_id=tokenizer.pad_token_id)
        assert torch.allclose(
            torch.stack([alone[0][0], alone[1][0]]), torch.stack([together[0][k], together[1][k]]), atol=1e-4
        )


def test_ids_and_logps_equal_trl(lab, tmp_path):
    from trl import DPOTrainer

    trl_bridge.quiet_libraries()
    model, tokenizer = lab
    config = trl_bridge.dpo_config(tmp_path, beta=0.1, learning_rate=1e-4, epochs=1, batch_size=3, seed=0)
    trainer = DPOTrainer(
        model=model, args=config, train_dataset=trl_bridge.to_dataset(PAIRS), processing_class=tokenizer,
        peft_config=models.lora_config(rank=2),
    )  # fmt: skip
    ours = encode.encode_pairs(tokenizer, PAIRS)
    for mine, theirs in zip(ours, trainer.train_dataset, strict=True):
        assert mine == {key: theirs[key] for key in mine}
    fresh, _ = models.load("lab_lm", device="cpu")
    chosen, rejected = logps.pair_logps(fresh, ours, pad_token_id=tokenizer.pad_token_id)
    assert torch.allclose(chosen, torch.tensor(trainer.train_dataset["ref_chosen_logps"]), atol=1e-5, rtol=1e-5)
    assert torch.allclose(rejected, torch.tensor(trainer.train_dataset["ref_rejected_logps"]), atol=1e-5, rtol=1e-5)


def test_conversations_go_through_the_chat_template():
    class Template:
        eos_token = "</s>"

        def apply_chat_template(self, messages, add_generation_prompt, return_dict):
            ids = [hash_id for message in messages for hash_id in (1, len(message["content"]), 2)]
            return {"input_ids": ids + [1] * add_generation_prompt}

    prompt, chosen, rejected = (
        [{"role": role, "content": text}]
        for role, text in (("user", "hello"), ("assistant", "yes"), ("assistant", "no"))
    )
    assert encode.encode_pair(Template(), prompt, chosen, rejected) == {
        "prompt_ids": [1, 5, 2, 1], "chosen_ids": [3, 2], "rejected_ids": [2, 2],
    }  # fmt: skip
