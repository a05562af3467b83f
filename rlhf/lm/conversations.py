"""Conversations of several turns, with environments and tools, as what a language model is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rlhf.errors import InputError
from rlhf.lm.conversing import Conversing, require_appending
from rlhf.lm.data import Data, Prompt
from rlhf.lm.engine import Engine
from rlhf.lm.environments import FactoryTools, Tool, Tools, schemas_of, tools_of
from rlhf.lm.generate import Decoder
from rlhf.lm.prompts import Prompts, Reward, Source
from rlhf.lm.templates import Message
from rlhf.settings import Count, CountOrNone, Size, checked
from rlhf.sources import code_sums
from rlhf.task import Here


def environment(turn_rewards: list[list[float]]) -> list[list[float]]:
    """What the environment paid, at the last token of each turn: the reward where no other is given."""
    return turn_rewards


class Conversations(Prompts):
    """Conversations in which the policy answers an environment, or calls tools, and what they are paid.

    Only the tokens that the policy sampled are actions, as they were sampled; what it is told stands between them. A
    turn that ends by itself is the environment's to answer; one that is cut, and a conversation that goes on behind
    `max_turns` or has no room for another turn, ends there, not `finished`. `turns_mean`, `tool_calls_mean` and
    `tool_errors_mean` are logged, and samples.jsonl has the messages.

    Args:
        data: As for Prompts, with prompts that are lists of messages; or rows of any columns for environments that
            begin the conversation themselves.
        environment: A class, or what else makes an object with `reset(**row)`, which gives the first messages, and
            `step(message)`, which gives the messages that the policy is told next, a reward, and whether it is over;
            None: tools only. An object without `step` is a set of tools, as TRL's environment_factory has them.
        tools: Python functions with type hints and docstrings that the policy may call.
        reward: As for Prompts, of whole conversations: `completions` are their messages, `responses` the last answers;
            several; or none: what the environment pays. The function `environment` is that, beside others.
        max_turns: Turns of the policy.
        max_new_tokens: Longest turn.
        max_tokens: Longest conversation; 0: as long as the model can take.
        step_timeout: Seconds that an environment has for a reset or a step; 0 is no limit.
        show_tools: The chat template tells the policy of the tools; else the prompts must.
        parse: Makes of the policy's words a message with `content` and `tool_calls`, for models that write calls in a
            way of their own; None: JSON with a name and arguments, between <tool_call> and </tool_call>.

    Raises:
        InputError: The data, the environment or a tool cannot be used; or there is no such setting.
    """

    @checked
    def __init__(
        self,
        data: Source,
        environment: Callable[[], Any] | None = None,
        *,
        tools: Sequence[Tool] = (),
        reward: Reward | Sequence[Reward] | None = None,
        max_turns: Count = 8,
        max_new_tokens: Count,
        max_tokens: CountOrNone = 0,
        step_timeout: Size = 0.0,
        show_tools: bool = True,
        parse: Callable[[str], Message] | None = None,
        held_out: CountOrNone | Source = 16,
        engine: Engine | None = None,
        **options: Any,
    ) -> None:
        if environment is None and not tools:
            raise InputError("there is neither an environment nor a tool; give one of them, or take rlhf.Prompts.")
        rewards: list[Any] = [reward] if callable(reward) or isinstance(reward, str) else list(reward or ())
        paid = rewards or [_environment]
        super().__init__(data, paid, max_new_tokens=max_new_tokens, held_out=held_out, engine=engine, **options)
        if self.config.overlong_tokens:
            raise InputError("overlong_tokens is of single responses; conversations have max_turns and max_tokens.")
        self.environment, self.tools, self.show_tools = environment, tuple(tools), show_tools
        self.max_turns, self.max_tokens, self.step_timeout = max_turns, max_tokens, step_timeout
        self.parse = parse
        self._schemas: list[dict[str, Any]] | None = None

    def make(self) -> Any:
        """What one conversation is held with."""
        if self.environment is None:
            return Tools(self.tools)
        made = self.environment()
        if hasattr(made, "step"):
            if self.tools:
                raise InputError("an environment with step(message) runs its own tools; leave tools out.")
            return made
        if not hasattr(made, "reset"):
            raise InputError(
                f"the environment {type(made).__name__} has neither step(message) nor reset(**row); see "
                "rlhf.Conversations."
            )
        return FactoryTools(made, self.tools)

    def schemas(self) -> list[dict[str, Any]]:
        """What the chat template is told of the tools, which are the same in all conversations."""
        if self._schemas is None:
            made = None if self.environment is None else self.environment()
            methods = [] if made is None or hasattr(made, "step") else tools_of(made)
            self._schemas = schemas_of([*self.tools, *methods]) if self.show_tools else []
        return self._schemas

    def read(self, tokenizer: Any, *, context: int | None) -> None:
        """Begins two conversations, so that what is wrong with the data, the environment or the chat template shows
        before a model is loaded."""
        self._read_with = (tokenizer, context)
        apart = [] if isinstance(self.held_out, int) else _prompts(self.held_out)
        self._rows = _prompts(self.data), apart
        for data in (self.data,) if isinstance(self.held_out, int) else (self.data, self.held_out):
            self.rewards.require_columns([*data.reward_columns, *Conversing.columns])
            self.rewards.require_rows(data.name, data.rows)
        talks = self._conversing(tokenizer, engine=None).begun(self._rows[0][:2])
        for talk in talks:
            if context is not None and len(talk.tokens) + self.sampling.max_new_tokens > context:
                raise InputError(
                    f"{talk.where}: the conversation begins with {len(talk.tokens)} tokens, which with max_new_tokens "
                    f"{self.sampling.max_new_tokens} exceed the model's context of {context}."
                )
        if self.max_turns > 1:
            made = talks[0].environment
            tool = next(iter(made.tools), None) if isinstance(made, Tools) else None
            require_appending(tokenizer, talks[0], tool=tool)
        if isinstance(self.held_out, int) and not 0 < self.held_out < len(self._rows[0]):
            raise InputError(
                f"held_out is {self.held_out} and there are {len(self._rows[0])} rows; hold out at least one to "
                "evaluate on, and leave some to train on."
            )

    def _conversing(self, tokenizer: Any, *, engine: Engine | None, stops: tuple[int, ...] = ()) -> Conversing:
        return Conversing(
            engine or Decoder(tokenizer),
            tokenizer,
            replace(self.sampling, stop_tokens=stops),
            make=self.make,
            tools=self.schemas(),
            max_turns=self.max_turns,
            max_tokens=self.max_tokens,
            seconds=self.step_timeout,
            parse=self.parse,
        )

    def answering_of(self, policy: Any, here: Here) -> Conversing:
        return self._conversing(policy.tokenizer, engine=self.engine, stops=policy.stop_tokens)

    def inputs(self) -> dict[str, str]:
        own = {} if self.environment is None else code_sums("environment", self.environment)
        if self.parse is not None:
            own |= code_sums("parse", self.parse)
        for tool in self.tools:
            own |= code_sums(f"tool {tool.__name__}", tool)
        return super().inputs() | own

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "environment": getattr(self.environment, "__name__", str(self.environment)),
            "tools": [tool.__name__ for tool in self.tools],
            "max_turns": self.max_turns,
            "max_tokens": self.max_tokens,
        }


_environment = environment


def _prompts(data: Data) -> list[Prompt]:
    """Rows whose tokens are known once the conversation has begun."""
    has_prompt = "prompt" in data.columns
    prompts = []
    for row, values in enumerate(data.rows):
        given: Any = values["prompt"] if has_prompt else None
        if isinstance(given, str):
            given = [{"role": "user", "content": given}]
        columns = {name: values[name] for name in data.reward_columns}
        prompts.append(Prompt(row=row, prompt=given, text=_shown(given), tokens=[], columns=columns))
    return prompts


def _shown(messages: Any) -> str:
    """The last thing that is asked, for samples.jsonl."""
    return str(messages[-1].get("content") or "") if isinstance(messages, list) and messages else ""
