from __future__ import annotations

import pytest
import torch

import rlhf
from recipes import loop
from rlhf.errors import InputError

DATA = [{"prompt": prompt} for prompt in ("a b", "c d", "b a", "d c a") * 3]


def reward(responses: list[str], **_: object) -> list[float]:
    return [-len(response) / 10 for response in responses]


def test_the_written_out_loop_is_what_train_does_bit_for_bit(model):
    config = loop.Config(model=str(model), updates=3, max_new_tokens=6, learning_rate=1e-3)
    written_out, trained, start = (rlhf.load_policy(str(model)) for _ in range(3))
    loop.train(written_out, DATA, reward, config)
    # Of the rows held out for evaluation, `loop` has none: here they are others.
    task = rlhf.Prompts(
        DATA, reward, max_new_tokens=6, held_out=DATA[:2], prompts_per_rollout=4, responses_per_prompt=8
    )
    settings = rlhf.Optimize(learning_rate=1e-3, epochs=2, minibatches=2)
    rlhf.train(trained, task, rlhf.PPO(kl_coef=0.01), settings, updates=3)
    for name, weights in written_out.named_parameters():
        assert torch.equal(weights, trained.get_parameter(name)), name
    moved = [
        float((weights - start.get_parameter(name)).detach().abs().max())
        for name, weights in trained.named_parameters()
    ]
    # 12 steps of AdamW at 1e-3, each of which moves no weight by much more than that.
    assert 5e-3 < max(moved) < 2e-2
    assert min(moved) > 0.0


def test_the_script_prints_the_score_of_each_update(model, capsys):
    loop.main(loop.Config(model=str(model), updates=2, max_new_tokens=4))
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == ["update 1: score", "update 2: score"]
    assert all(0.0 <= float(line.rpartition(" ")[2]) <= 1.0 for line in lines)


def test_more_minibatches_than_responses_are_refused_before_anything_loads():
    with pytest.raises(InputError, match="a rollout has 6 rows, which make no 7 parts; lower minibatches"):
        loop.Config(model="m", prompts=2, responses=3, minibatches=7)
    assert loop.Config(model="m", prompts=2, responses=3, minibatches=6).minibatches == 6
