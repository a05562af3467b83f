"""Conversations of several turns: what was sampled is what is trained, and what stands between reaches no number."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator

import rlhf
from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.lm.conversations import environment
from rlhf.lm.conversing import Talk, following_tokens
from rlhf.lm.engine import respond
from rlhf.lm.environments import FactoryTools, GymText, Tools, VerifiersText, parsed, schemas_of
from rlhf.lm.generate import Decoder
from rlhf.runs.log import read_lines
from tests.lm.engines import Cacheless
from tests.lm.tiny import save_tiny
from tests.lm.words import ASSISTANT, END, EOS, TEMPLATE, USER, A, B, word_tokenizer
from tests.lm.worlds import word_policy

CPU = Accelerator(cpu=True)
ROWS = [{"prompt": [{"role": "user", "content": text}], "number": i} for i, text in enumerate(["a", "b c", "c", "a b"])]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


class Echo:
    """Says back how many words the model said, three times, and pays as many."""

    def reset(self, prompt: list[dict[str, str]], number: int) -> list[dict[str, str]]:
        self.turn = 0
        return prompt

    def step(self, message: dict[str, str]) -> tuple[list[dict[str, str]], float, bool]:
        self.turn += 1
        words = message["content"].split()
        return [user(" ".join(["a"] * len(words)) or "b")], float(len(words)), self.turn == 3


def policy_of(**changes: Any) -> Any:
    policy = word_policy(**{"dtype": torch.float32, **changes})
    # Room for three turns.
    policy.tokenizer = word_tokenizer(template=TEMPLATE)
    policy.end_tokens = (EOS,)
    return policy


def long_policy(folder: Path, architecture: str = "llama", **settings: Any) -> Any:
    save_tiny(architecture, folder, vocab_size=14, eos_token_id=EOS, pad_token_id=EOS)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return rlhf.load_policy(str(folder), **settings)


def task_of(environment: Any = Echo, rows: Any = ROWS, **changes: Any) -> rlhf.Conversations:
    given = {"max_new_tokens": 4, "max_turns": 3, "held_out": rows[:2], "prompts_per_rollout": 4, **changes}
    return rlhf.Conversations(rows, environment, **given)


def collected(policy: Any, task: rlhf.Conversations, *, method: Any = None, update: int = 0) -> rlhf.Collected:
    here = rlhf.Here(CPU, 0, method or rlhf.PPO(), rlhf.Optimize(), None)
    task.read(policy.tokenizer, context=policy.context)
    task.prepare(policy, here)
    return task.collect(policy, update, here)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return long_policy(tmp_path_factory.mktemp("llama"))


def test_a_row_is_the_conversation_as_it_was_sampled_and_told(policy: Any) -> None:
    """Every turn by hand: its tokens from the same draws, behind the template's own words and the environment's."""
    rollout, metrics, samples = collected(policy, task_of())
    draws = uniforms(0, "responses", 0, torch.arange(4), 12)
    sampling = rlhf.Sampling(max_new_tokens=4, stop_tokens=(EOS,))
    assert {sample["turns"] for sample in samples} > {1.0}
    for row, sample in enumerate(samples):
        content = ROWS[sample["row"]]["prompt"][0]["content"]
        tokens = [USER, *policy.tokenizer(content)["input_ids"], ASSISTANT]
        actions: list[int] = []
        for turn in range(int(sample["turns"])):
            given = respond(
                Decoder(), policy, [tokens], sampling=sampling,
                uniforms=draws[row : row + 1, 4 * turn : 4 * turn + 4], sample_ids=torch.tensor([row]),
            )  # fmt: skip
            ids = given.tokens[0, : int(given.lengths[0])].tolist()
            actions += range(len(tokens), len(tokens) + len(ids))
            tokens += ids
            if not given.finished[0] or turn + 1 == sample["turns"]:
                break
            words = [token for token in ids if token not in (EOS, 1)]
            # The template writes `;` behind the end of the turn.
            tokens += [END, USER, *([A] * len(words) or [B]), ASSISTANT]
        length = int(rollout.inputs["lengths"][row])
        assert rollout.inputs["tokens"][row, :length].tolist() == tokens
        assert rollout.inputs["actions"][row][rollout.mask[row]].tolist() == actions
    assert metrics["turns_mean"] == sum(sample["turns"] for sample in samples) / 4
    assert metrics["tool_calls_mean"] == 0.0


def test_only_what_was_sampled_is_an_action(policy: Any) -> None:
    rollout, _, samples = collected(policy, task_of())
    for row, sample in enumerate(samples):
        ids = rollout.inputs["tokens"][row][rollout.inputs["actions"][row][rollout.mask[row]]]
        said = [m["content"] for m in sample["messages"] if m["role"] == "assistant"]
        text = policy.tokenizer.decode(ids, skip_special_tokens=True)
        assert text.split() == " ".join(said).split()
        assert sample["length"] == len(ids)


@pytest.mark.parametrize("critic", ["shared", "separate", "none"])
@pytest.mark.parametrize("engine", [None, Cacheless()], ids=["ours", "another"])
def test_acting_and_training_agree_over_several_turns(critic: str, engine: Any, tmp_path: Path) -> None:
    """Law 2, and the critic's values, by the training forward."""
    policy = long_policy(tmp_path, critic=critic, temperature=0.8)
    if critic != "none":
        torch.nn.init.normal_(policy.value_head.weight)
    rollout, _, _ = collected(policy, task_of(engine=engine))
    with torch.no_grad():
        output = policy(rollout.inputs)
    mask = rollout.mask
    torch.testing.assert_close(output.logprobs[mask], rollout.behaviour_logprobs[mask], rtol=0, atol=1e-4)
    torch.testing.assert_close(output.logprobs[mask], rollout.logprobs[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.values[mask], rollout.values[mask], rtol=0, atol=1e-5)
    following = torch.cat([rollout.values[:, 1:], torch.zeros(4, 1)], dim=1).masked_fill(rollout.dones, 0.0)
    torch.testing.assert_close(rollout.next_values[mask], following[mask], rtol=0, atol=1e-5)


def test_turns_are_paid_at_their_last_tokens(policy: Any) -> None:
    rollout, _, samples = collected(policy, task_of())
    for row, sample in enumerate(samples):
        actions = rollout.inputs["actions"][row][rollout.mask[row]].tolist()
        ends = [i for i in range(len(actions)) if i + 1 == len(actions) or actions[i + 1] != actions[i] + 1]
        said = [m["content"].split() for m in sample["messages"] if m["role"] == "assistant"]
        paid = rollout.rewards[row].tolist()
        expected = [0.0] * rollout.mask.shape[1]
        for end, words in zip(ends, said, strict=True):
            expected[end] = float(len(words))
        # A turn that was cut is answered by nobody.
        last = rollout.inputs["tokens"][row, actions[-1]]
        if last != EOS:
            expected[ends[-1]] = 0.0
        assert paid == expected
        assert sample["score"] == sum(expected)
        assert sample["finished"] == (last == EOS and len(said) == 3)
        assert rollout.dones[row].nonzero().flatten().tolist() == [len(actions) - 1]


def test_garbage_in_what_is_told_reaches_nothing(policy: Any) -> None:
    """Values, log-probabilities and rewards have no cell for it: T counts actions only."""
    rollout, _, _ = collected(policy, task_of())
    told = rollout.inputs["lengths"].sum() - rollout.mask.sum()
    assert int(told) > 15
    assert rollout.mask.shape[1] < rollout.inputs["tokens"].shape[1]
    for cells in (rollout.logprobs, rollout.values, rollout.rewards, rollout.behaviour_logprobs):
        assert cells.shape == rollout.mask.shape


@pytest.mark.parametrize("method", [rlhf.PPO(kl_coef=0.05), rlhf.GRPO(kl_coef=0.05)], ids=lambda method: method.name)
def test_a_run_learns_and_resumes_bit_for_bit(method: Any, tmp_path: Path) -> None:
    def train(out: Path, updates: int, *, resume: bool = False) -> Any:
        policy = long_policy(tmp_path / "model")
        task = task_of(responses_per_prompt=2)
        rlhf.train(
            policy, task, method, rlhf.Optimize(learning_rate=1e-2, epochs=1), updates=updates, evaluations=1,
            checkpoints=1, out=out, resume=resume,
        )  # fmt: skip
        return policy.state_dict()

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    parts = train(tmp_path / "parts", 4, resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = read_lines(tmp_path / "whole" / method.name / "metrics.jsonl")
    assert {"eval_turns_mean", "eval_score_mean"} <= set(rows[0])
    assert rows[1]["ratio_error_max"] < 1e-4
    shown = read_lines(tmp_path / "whole" / method.name / "samples.jsonl")
    assert all(isinstance(sample["messages"], list) for sample in shown)


def test_more_is_paid_after_learning(tmp_path: Path) -> None:
    """Of the words said in three turns."""
    policy = long_policy(tmp_path / "model")
    task = task_of(rows=ROWS * 8, prompts_per_rollout=16)
    settings = rlhf.Optimize(learning_rate=1e-2, epochs=2)
    found = rlhf.train(policy, task, rlhf.PPO(), settings, updates=15, evaluations=1, out=tmp_path / "run")
    assert found.after["eval_score_mean"] > found.before["eval_score_mean"] + 1.0


# --- limits


def test_a_conversation_without_room_for_another_turn_is_cut(policy: Any) -> None:
    rollout, _, samples = collected(policy, task_of(max_tokens=9))
    assert int(rollout.inputs["lengths"].max()) <= 9
    assert not any(sample["finished"] for sample in samples)


def test_one_that_has_no_room_for_its_first_turn_is_refused(policy: Any) -> None:
    with pytest.raises(
        InputError, match=r"row 1, conversation 1: the conversation begins with 4 tokens, .* exceed the 7 that"
    ):
        collected(policy, task_of(max_tokens=7))


def test_single_turns_are_those_of_prompts(policy: Any) -> None:
    """The same tokens, log-probabilities and values as by rlhf.Prompts."""

    def words(responses: list[str]) -> list[float]:
        return [float(len(text.split())) for text in responses]

    plain = rlhf.Prompts(ROWS, words, max_new_tokens=4, held_out=ROWS[:2], prompts_per_rollout=4)
    one = collected(policy, plain).rollout  # type: ignore[arg-type]
    other = collected(policy, task_of(max_turns=1, reward=words)).rollout
    assert torch.equal(one.inputs["tokens"], other.inputs["tokens"])
    for name in ("mask", "rewards", "logprobs", "values", "dones"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_rewards_of_whole_conversations_see_their_messages(policy: Any) -> None:
    seen: list[Any] = []

    def watch(completions: list[Any], responses: list[str], number: list[int]) -> list[float]:
        seen.extend(zip(completions, responses, number, strict=True))
        return [1.0] * len(responses)

    rollout, metrics, samples = collected(policy, task_of(reward=[watch, environment]))
    for (messages, response, number), sample in zip(seen[-4:], samples, strict=True):
        assert messages == sample["messages"]
        assert response == sample["response"]
        assert number == sample["row"]
        assert sample["parts"]["watch"] == 1.0
        assert sample["score"] == 1.0 + sample["parts"]["environment"]
    assert metrics["reward/environment"] == metrics["score_mean"] - 1.0
    assert float(rollout.rewards.sum()) == sum(sample["score"] for sample in samples)


# --- environments that are wrong


class Wrong:
    """Does what its class is told."""

    begins: ClassVar[Any] = [user("a")]
    answers: ClassVar[Any] = ([user("b")], 1.0, False)

    def reset(self, **row: Any) -> Any:
        if isinstance(self.begins, Exception):
            raise self.begins
        return self.begins

    def step(self, message: Any) -> Any:
        if callable(self.answers):
            return self.answers()
        return self.answers


def wrong(**what: Any) -> Any:
    return type("Wronger", (Wrong,), {name: staticmethod(x) if callable(x) else x for name, x in what.items()})


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing to begin with": (wrong(begins=[]), r"the environment's reset gave \[\], and the row has no prompt"),
    "no messages": (wrong(begins=[{"text": "a"}]), "must be a message, a dict with 'role' and 'content'"),
    "no step": (type("Neither", (), {}), "Neither has neither step.message. nor reset"),
    "two things": (wrong(answers=([user("b")], 1.0)), "step returned .* it must return the messages"),
    "no number": (wrong(answers=([user("b")], "much", False)), "paid 'much'; a reward must be a finite number"),
    "NaN": (wrong(answers=([user("b")], float("nan"), False)), "paid nan; a reward must be a finite number"),
    "a text": (wrong(answers=("b", 1.0, False)), "'b' must be a list of messages"),
    "nothing told": (wrong(answers=([], 1.0, False)), "must be a list of messages"),
    "the model's turn": (
        wrong(answers=([{"role": "assistant", "content": "b"}], 1.0, False)),
        "ended with a turn of the assistant's",
    ),
}


@pytest.mark.parametrize(("environment", "words"), REFUSED.values(), ids=REFUSED)
def test_environments_that_are_wrong_are_one_message(environment: Any, words: str, policy: Any) -> None:
    with pytest.raises(InputError, match=words):
        collected(policy, task_of(environment, [{"number": i} for i in range(4)]))


def test_what_an_environment_raises_comes_through(policy: Any) -> None:
    with pytest.raises(KeyError, match="mine"):
        collected(policy, task_of(wrong(begins=KeyError("mine")), [{"number": i} for i in range(4)]))


def test_an_environment_that_never_ends_is_cut_or_runs_out_of_time(policy: Any) -> None:
    rows = [{"number": i} for i in range(4)]
    _, _, samples = collected(policy, task_of(wrong(), rows, max_turns=5))
    assert not any(sample["finished"] for sample in samples)
    assert max(sample["turns"] for sample in samples) <= 5

    def sleeps() -> Any:
        time.sleep(5.0)

    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"step an environment took more than 0\.2 s"):
        collected(policy, task_of(wrong(answers=sleeps), rows, step_timeout=0.2))
    assert time.monotonic() - started < 4.0


THINKING = (
    "{% for message in messages %}{{ message.role }}: {% if message.role == 'assistant' and not loop.last %}"
    "{{ message.content.split('</think>')[-1] }}{% else %}{{ message.content }}{% endif %} "
    "{% if message.role == 'assistant' %}<eos> ; {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_templates_that_rewrite_earlier_turns_are_refused_by_name(policy: Any) -> None:
    tokenizer = word_tokenizer(template=THINKING)
    with pytest.raises(InputError, match=r"writes earlier turns differently once more follows .*max_turns 1"):
        task_of().read(tokenizer, context=64)
    # Of single turns nothing follows.
    task_of(max_turns=1).read(tokenizer, context=64)


def test_settings_that_say_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="neither an environment nor a tool"):
        rlhf.Conversations(ROWS, max_new_tokens=4)
    with pytest.raises(InputError, match="overlong_tokens is of single responses"):
        task_of(overlong_tokens=2)


# --- what stands between turns, on templates in use

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES: dict[str, tuple[str, str, str]] = {
    # Template, what ends a turn, and what the model reads between its turn and the next one.
    "chatml": (CHATML, "<|im_end|>", "\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"),
    "llama 3": (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nmore<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} "
        "</s>{% endif %}{% endfor %}",
        "</s>",
        "<s>[INST] more [/INST]",
    ),
    "mistral": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %} {{ m.content }}</s>"
        "{% endif %}{% endfor %}",
        "</s>",
        "[INST] more[/INST]",
    ),
    "gemma": (
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<end_of_turn>",
        "\n<start_of_turn>user\nmore<end_of_turn>\n<start_of_turn>model\n",
    ),
    "zephyr": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "</s>",
        "\n<|user|>\nmore</s>\n<|assistant|>\n",
    ),
    "phi": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|end|>",
        "\n<|user|>\nmore<|end|>\n<|assistant|>\n",
    ),
    "no end": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        "<eos>",
        "\nuser: more\nassistant:",
    ),
}


class Characters:
    """A tokenizer of characters, in which what ends a turn is one token."""

    name_or_path = "characters"

    def __init__(self, template: str, end: str) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.chat_template, self.end = template, end
        self._template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def get_chat_template(self, tools: Any = None) -> str:
        return self.chat_template

    def apply_chat_template(self, messages: Any, **given: Any) -> str:
        return self._template.render(messages=messages, add_generation_prompt=given["add_generation_prompt"])

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.end if token == -1 else chr(token) for token in ids)


@pytest.mark.parametrize(("template", "end", "between"), TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("said", ["yes", "  it is so \n", "an end within"], ids=["plain", "spaces", "more"])
def test_what_stands_between_turns_is_what_the_template_writes(
    template: str, end: str, between: str, said: str
) -> None:
    """Whatever the model said, and also where the template would write that in another way."""
    talk = Talk(None, [user("go"), {"role": "assistant", "content": said}], {}, "row 0")
    tokenizer = Characters(template, end)
    found = following_tokens(tokenizer, talk, [user("more")], [ord("x"), -1], [-1])
    assert "".join(map(chr, found)) == between


def test_a_turn_that_a_stop_string_ended_gets_the_templates_end() -> None:
    """Its last token is in that end, too."""
    talk = Talk(None, [user("go"), {"role": "assistant", "content": "yes</d>"}], {}, "row 0")
    found = following_tokens(Characters(CHATML, "<|im_end|>"), talk, [user("more")], [ord("d"), ord(">")], [-1])
    assert "".join(map(chr, found)) == "<|im_end|>" + TEMPLATES["chatml"][2]


def test_environments_cannot_change_the_data(policy: Any) -> None:
    class Takes:
        def reset(self, items: list[int]) -> Any:
            items.pop()
            return [user("a")]

        def step(self, message: Any) -> Any:
            return [], 0.0, True

    rows = [{"items": [1, 2, 3]} for _ in range(4)]
    task = task_of(Takes, rows, responses_per_prompt=2, prompts_per_rollout=2)
    collected(policy, task)
    assert all(row["items"] == [1, 2, 3] for row in [*task.data.rows, *rows])


ONE_CALL = (
    "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one at once') }}"
    "{% endif %}{{ m.role }}: {{ m.content }} {% if m.role == 'assistant' %}<eos> ; {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_what_the_template_does_not_take_ends_the_conversation_and_not_the_run(tmp_path: Path) -> None:
    policy = long_policy(tmp_path)
    policy.tokenizer.chat_template = ONE_CALL

    def twice(text: str) -> dict[str, Any]:
        one = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}
        return {"content": text, "tool_calls": [one, one]}

    task = rlhf.Conversations(
        ROWS, tools=[add], show_tools=False, parse=twice, max_new_tokens=4, held_out=2, prompts_per_rollout=2
    )
    _, metrics, samples = collected(policy, task)
    assert not any(sample["finished"] for sample in samples)
    assert all(sample["turns"] == 1.0 for sample in samples)
    assert metrics["tool_errors_mean"] <= 1.0


# --- tools


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def slowly(text: str) -> str:
    """Says it again.

    Args:
        text: What.
    """
    return text * 2


def bad(kind: str) -> Any:
    """Goes wrong.

    Args:
        kind: How.
    """
    if kind == "raise":
        raise RuntimeError("no")
    return object()


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


CALLS: dict[str, tuple[str, str, int]] = {
    "a number": (call("add", a=2, b=3), "5", 0),
    "async": (call("slowly", text="ab"), "abab", 0),
    "another tool": (
        call("sub", a=1, b=2),
        '{"error": "ValueError: there is no tool sub; there are add, slowly, bad"}',
        1,
    ),
    "wrong arguments": (call("add", a=1, c=2), "TypeError", 1),
    "raises": (call("bad", kind="raise"), '{"error": "RuntimeError: no"}', 1),
    "no text": (call("bad", kind="object"), "the tool returned object, which is no text", 1),
    "no JSON": ("<tool_call>add(1, 2)</tool_call>", "this is no JSON", 1),
    "no call": ('<tool_call>{"a": 1}</tool_call>', "a call is an object with a name and arguments", 1),
    "arguments that are a list": (
        '<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>',
        r"the arguments are [1, 2]; they must be an object",
        1,
    ),
}


@pytest.mark.parametrize(("text", "told", "errors"), CALLS.values(), ids=CALLS)
def test_tools_are_called_and_what_goes_wrong_is_told(text: str, told: str, errors: int) -> None:
    message = parsed(f"Let me see. {text}")
    assert message["content"] == "Let me see."
    step = Tools([add, slowly, bad]).step(message)
    assert told in step.messages[0]["content"]
    assert step.messages[0]["role"] == "tool"
    assert (step.done, step.tool_calls, step.tool_errors) == (False, 1, errors)


def test_an_answer_without_a_call_ends_the_conversation() -> None:
    step = Tools([add]).step(parsed("It is 5."))
    assert (step.messages, step.done, step.tool_calls) == ([], True, 0)


def test_several_calls_are_answered_in_their_order() -> None:
    message = parsed(call("add", a=1, b=1) + call("add", a=2, b=2))
    assert [told["content"] for told in Tools([add]).step(message).messages] == ["2", "4"]


def test_tools_that_cannot_be_described_are_refused() -> None:
    def silent(a):
        return a

    with pytest.raises(InputError, match=r"the tool 'silent' cannot be described to the model .* give it type hints"):
        schemas_of([silent])
    with pytest.raises(InputError, match="two tools are called 'add'"):
        schemas_of([add, add])
    (schema,) = schemas_of([add])
    assert schema["function"]["parameters"]["properties"]["a"] == {"type": "integer", "description": "The first."}


class Counter:
    """As TRL's environment_factory takes them."""

    def reset(self, **row: Any) -> str:
        self.total = 0
        return f" (row {row['number']})"

    def increment(self, step: int) -> int:
        """Counts on.

        Args:
            step: By how much.
        """
        self.total += step
        return self.total

    def get_reward(self) -> float:
        return float(self.total)


def test_an_environment_factory_of_trl_plugs_in() -> None:
    environment = FactoryTools(Counter())
    assert environment.reset(number=3) == " (row 3)"
    for step in (2, 5):
        told = environment.step(parsed(call("increment", step=step)))
    assert told.messages[0]["content"] == "7"
    assert environment.step(parsed("done")) == ([], 7.0, True, 0, 0)


def test_gymnasium_like_and_verifiers_like_environments_plug_in() -> None:
    class Game:
        def reset(self, seed: Any = None, options: Any = None) -> Any:
            return f"begin {seed}", {}

        def step(self, action: str) -> Any:
            return f"you said {action}", 0.5, action == "stop", False, {}

    game = GymText(Game())
    assert game.reset(seed=4, other=1) == [user("begin 4")]
    assert game.reset(other=1) == game.reset(other=1) != game.reset(other=2)
    assert game.step({"role": "assistant", "content": "go"}) == ([user("you said go")], 0.5, False)
    assert game.step({"role": "assistant", "content": "stop"}) == ([], 0.5, True)

    class Turns:
        async def is_completed(self, messages: Any, state: Any) -> bool:
            return state["turn"] == 2

        def env_response(self, messages: Any, state: Any) -> Any:
            return [user(f"{len(messages)}")], state

    turns = VerifiersText(Turns())
    assert turns.reset(prompt=[user("a")]) is None
    assert turns.step({"role": "assistant", "content": "b"}) == ([user("2")], 0.0, False)
    assert turns.step({"role": "assistant", "content": "c"}) == ([], 0.0, True)


CALLING = (
    "{% if tools %}tools: {{ tools | length }} {% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }} "
    "{% if message.role == 'assistant' %}<eos> ; {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_tools_are_shown_to_the_template_that_reads_them(policy: Any) -> None:
    task = rlhf.Conversations(ROWS, tools=[add], max_new_tokens=4, held_out=2)
    with pytest.raises(InputError, match="the chat template reads nothing called 'tools'"):
        task.read(policy.tokenizer, context=64)
    rlhf.Conversations(ROWS, tools=[add], max_new_tokens=4, held_out=2, show_tools=False).read(
        policy.tokenizer, context=64
    )
    tokenizer = word_tokenizer(template=CALLING)
    task.read(tokenizer, context=64)
    (talk,) = task._conversing(tokenizer, engine=None).begun(task._rows[0][:1])  # type: ignore[index]
    assert talk.chat().text(tokenizer).startswith("tools: 1 user: a")
