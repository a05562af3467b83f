"""Answers in several turns: the model speaks, an environment answers, and only what the model said is an action."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf.errors import InputError
from rlhf.files import users_code
from rlhf.lm.answering import Responses, sampled_ids
from rlhf.lm.chat import Chat, prompt_tokens, require_messages, tokenized
from rlhf.lm.data import Prompt, lm_inputs
from rlhf.lm.engine import Engine, Generation, Sampling, respond
from rlhf.lm.environments import Step, parsed
from rlhf.lm.policy import CausalLM
from rlhf.lm.templates import Message, template_arguments
from rlhf.lm.texts import decoded
from rlhf.runs.waiting import Waiting


class Talk:
    """One conversation: its messages, and its tokens as they were read and sampled.

    Args:
        where: What error messages call it.
        arguments: What the chat template is told besides messages.
    """

    def __init__(self, environment: Any, messages: list[Message], arguments: Mapping[str, Any], where: str) -> None:
        self.environment, self.messages, self.arguments, self.where = environment, messages, arguments, where
        self.begun = len(messages)
        self.tokens: list[int] = []
        self.actions: list[int] = []
        self.logprobs: list[Tensor] = []
        self.values: list[Tensor] = []
        self.rewards: list[float] = []
        self.turns = self.tool_calls = self.tool_errors = 0
        self.text = ""
        self.over = self.finished = False

    def chat(self) -> Chat:
        return Chat(messages=self.messages, where=self.where, arguments=self.arguments)

    def says(self, ids: Sequence[int], logprobs: Tensor, values: Tensor | None) -> None:
        """Takes up what was sampled in this turn."""
        self.actions += range(len(self.tokens), len(self.tokens) + len(ids))
        self.tokens += ids
        self.logprobs.append(logprobs)
        if values is not None:
            self.values.append(values)
        self.rewards += [0.0] * len(ids)
        self.turns += 1


class Conversing:
    """Answers prompts by conversations with environments.

    What was sampled stays in the row as it was sampled: of what comes between, only the environment's messages and the
    template's own words are tokenized, as the template writes them behind the model's turn. They stand in `inputs` and
    are no actions.

    Args:
        sampling: Of each turn.
        make: Makes an environment for a conversation.
        tools: JSON schemas that the chat template is told; () if there are none.
        max_turns: Turns of the model; a conversation that goes on is cut.
        max_tokens: Tokens of a conversation, the environment's included; 0: as many as the model can take.
        seconds: That an environment has for a reset or a step; 0 is no limit.
        parse: Makes a message of the model's words, with the tools that it calls; None: `parsed`.
    """

    columns: tuple[str, ...] = ("turn_rewards",)

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        sampling: Sampling,
        *,
        make: Callable[[], Any],
        tools: Sequence[Mapping[str, Any]],
        max_turns: int,
        max_tokens: int,
        seconds: float,
        parse: Callable[[str], Message] | None = None,
    ) -> None:
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        self.make, self.tools, self.max_turns = make, list(tools), max_turns
        self.max_tokens, self.seconds = max_tokens, seconds
        self.parse = parse or parsed
        self.num_draws, self.exact = max_turns * sampling.max_new_tokens, engine.exact
        self._pool: list[Any] = []

    def begun(self, prompts: Sequence[Prompt]) -> list[Talk]:
        """Conversations up to the model's first turn, each with an environment of its own, and its tokens.

        Raises:
            InputError: An environment cannot be made or reset, or the conversation cannot be rendered.
        """
        while len(self._pool) < len(prompts):
            self._pool.append(self._asked("make an environment", self.make))
        talks = [self._begun(self._pool[i], prompt, i) for i, prompt in enumerate(prompts)]
        for talk, tokens in zip(talks, prompt_tokens(self.tokenizer, [talk.chat() for talk in talks]), strict=True):
            talk.tokens = tokens
        return talks

    def _begun(self, environment: Any, prompt: Prompt, number: int) -> Talk:
        given: list[Message] = [] if prompt.prompt is None else list(prompt.prompt)  # type: ignore[arg-type]
        # Its own, whatever the environment makes of it: those of a group are one object in the data.
        row = copy.deepcopy({**prompt.columns, **({} if prompt.prompt is None else {"prompt": given})})
        told = self._asked("reset an environment", lambda: environment.reset(**_understood(environment.reset, row)))
        where = f"row {prompt.row}, conversation {number}"
        if isinstance(told, str) and given:
            told = [*given[:-1], {**given[-1], "content": given[-1]["content"] + told}]
        elif told is None:
            told = given
        if not isinstance(told, list) or not told:
            raise InputError(
                f"{where}: the environment's reset gave {told!r:.60}, and the row has no prompt; it must give the "
                "messages that the conversation begins with, or the data must have prompts."
            )
        require_messages(told, where)
        arguments = dict(template_arguments(prompt.columns, where))
        if self.tools:
            arguments["tools"] = [*arguments.get("tools", []), *self.tools]
        return Talk(environment, [dict(message) for message in told], arguments, where)

    def __call__(
        self, policy: CausalLM, prompts: Sequence[Prompt], *, uniforms: Tensor | None, sample_ids: Tensor
    ) -> Responses:
        talks, width = self.begun(prompts), self.sampling.max_new_tokens
        most = min(limit for limit in (self.max_tokens, policy.context or 0, 2**62) if limit)
        _require_room(talks, width, most)
        for turn in range(self.max_turns):
            going = [i for i, talk in enumerate(talks) if not talk.over]
            if not going:
                break
            draws = None if uniforms is None else uniforms[going, turn * width : (turn + 1) * width]
            given = respond(
                self.engine,
                policy,
                [talks[i].tokens for i in going],
                sampling=self.sampling,
                uniforms=draws,
                sample_ids=sample_ids[going],
            )
            for place, (i, ids) in enumerate(zip(going, sampled_ids(given), strict=True)):
                values = None if given.values is None else given.values[place, : len(ids)]
                talks[i].says(ids, given.logprobs[place, : len(ids)], values)
                room = most - width if turn + 1 < self.max_turns else 0
                self._answered(talks[i], ids, ended=bool(given.finished[place]), room=room)
        return _responses(talks, policy.device)

    def _answered(self, talk: Talk, ids: Sequence[int], *, ended: bool, room: int) -> None:
        """The environment's answer to a turn, and what of it the model reads next.

        Args:
            room: Tokens up to which another turn may follow.
        """
        (talk.text,) = decoded(self.tokenizer, [ids], follows=False, skip_special_tokens=True)
        message = {"role": "assistant", **self.parse(talk.text)}
        before = talk.messages
        talk.messages = [*before, message]
        if not ended:
            talk.over = True
            return
        step = self._stepped(talk, message)
        talk.rewards[-1] += step.reward
        talk.tool_calls += step.tool_calls
        talk.tool_errors += step.tool_errors
        talk.finished = talk.over = step.done
        if talk.over or not room:
            return
        told = self._told(talk, step.messages, ids)
        if told is None:
            return
        # Cut, where the next turn might not fit.
        talk.over = len(talk.tokens) + len(told) > room
        if not talk.over:
            talk.tokens += told
            talk.messages = [*talk.messages, *step.messages]

    def _told(self, talk: Talk, messages: Sequence[Message], ids: Sequence[int]) -> list[int] | None:
        """What the model reads next; None where the template does not take what it wrote, as several calls at once,
        which ends the conversation and not the run."""
        if talk.messages[-1].get("tool_calls"):
            try:
                talk.chat().text(self.tokenizer)
            except InputError:
                talk.over, talk.tool_errors = True, talk.tool_errors + 1
                return None
        return following_tokens(self.tokenizer, talk, messages, ids, self.sampling.stop_tokens)

    def _stepped(self, talk: Talk, message: Message) -> Step:
        given = self._asked("step an environment", lambda: talk.environment.step(dict(message)))
        if not isinstance(given, tuple) or len(given) not in (3, len(Step._fields)):
            raise InputError(
                f"an environment's step returned {given!r:.60}; it must return the messages that the model is told "
                "next, a reward, and whether the conversation is over."
            )
        step = Step(*given)
        if isinstance(step.reward, bool) or not isinstance(step.reward, Real) or not math.isfinite(step.reward):
            raise InputError(f"an environment's step paid {step.reward!r:.60}; a reward must be a finite number.")
        if not step.done:
            require_messages(step.messages, f"{talk.where}: what the environment's step tells the model")
            if step.messages[-1]["role"] == "assistant":
                raise InputError(f"{talk.where}: the environment's step ended with a turn of the assistant's.")
        return step._replace(reward=float(step.reward), done=bool(step.done))

    def _asked(self, what: str, ask: Callable[[], Any]) -> Any:
        """What user code answers, within its time."""
        with Waiting() as waiting, users_code(), waiting.limit(self.seconds, what):
            return ask()


def _understood(function: Callable[..., Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row the function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(row)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in row.items() if name in names}


# What stands for the model's words where the end of its turn is looked for; for private use, so that no text has it.
_WORDS = "\ue0c8"


def following_tokens(
    tokenizer: Any, talk: Talk, messages: Sequence[Message], sampled: Sequence[int], stops: Sequence[int]
) -> list[int]:
    """What the model reads between the end of its turn and its next one: what the template writes behind the turn's
    last token, the messages, and the beginning of the next turn.

    Args:
        sampled: The turn's tokens.
        stops: Tokens that end a turn; one that was sampled is not written again.

    Raises:
        InputError: The template writes the conversation so far differently once more follows.
    """
    so_far = talk.chat().text(tokenizer)
    more = Chat(messages=[*talk.messages, *messages], where=talk.where, arguments=talk.arguments)
    whole = more.text(tokenizer, add_generation_prompt=True)
    if not whole.startswith(so_far):
        raise InputError(
            f"{talk.where}: the chat template writes earlier turns differently once more follows (some drop earlier "
            "reasoning), so what the model read would not be what it reads when it is used; take a template that only "
            "appends, or a single turn (max_turns 1)."
        )
    said = [*talk.messages[:-1], {"role": "assistant", "content": _WORDS}]
    plain = Chat(messages=said, where=talk.where, arguments=talk.arguments).text(tokenizer)
    # Of a template that does not show the words, nothing is known but what follows the turn.
    tail = plain[plain.rindex(_WORDS) + len(_WORDS) :] if _WORDS in plain else ""
    end = tokenizer.decode(list(sampled[-1:])) if sampled and sampled[-1] in stops else ""
    if end and end in tail:
        tail = tail[tail.index(end) + len(end) :]
    (tokens,) = tokenized(tokenizer, [tail + whole[len(so_far) :]])
    if not tokens:
        raise InputError(f"{talk.where}: the chat template writes nothing for what the environment tells the model.")
    return tokens


def require_appending(tokenizer: Any, talk: Talk, *, tool: str | None) -> None:
    """Refuses a template that writes a turn with reasoning differently once another follows, or cannot write what a
    tool says, before a run begins.

    Args:
        tool: The name of one, where only tools speak; None: a user does.

    Raises:
        InputError: As that of `following_tokens`.
    """
    said: Message = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nbecause"}
    told: Message = {"role": "user", "content": "and?"}
    if tool is not None:
        said["tool_calls"] = [{"type": "function", "function": {"name": tool, "arguments": {}}}]
        told = {"role": "tool", "name": tool, "content": "nothing"}
    tried = Talk(None, [*talk.messages, said], talk.arguments, talk.where)
    following_tokens(tokenizer, tried, [told], [], [])


def _require_room(talks: Sequence[Talk], width: int, most: int) -> None:
    long = next((talk for talk in talks if len(talk.tokens) + width > most), None)
    if long is not None:
        raise InputError(
            f"{long.where}: the conversation begins with {len(long.tokens)} tokens, which with max_new_tokens "
            f"{width} exceed the {most} that there are for it; leave long ones out, or raise max_tokens."
        )


def _responses(talks: Sequence[Talk], device: torch.device) -> Responses:
    inputs, _ = lm_inputs([talk.tokens for talk in talks], [talk.actions for talk in talks])
    tokens = [torch.tensor([talk.tokens[place] for place in talk.actions]) for talk in talks]
    generation = Generation(
        tokens=pad_sequence(tokens, batch_first=True).to(device),
        lengths=torch.tensor([len(talk.actions) for talk in talks], device=device),
        finished=torch.tensor([talk.finished for talk in talks], device=device),
        logprobs=pad_sequence([torch.cat(talk.logprobs) for talk in talks], batch_first=True),
        values=pad_sequence([torch.cat(talk.values) for talk in talks], batch_first=True) if talks[0].values else None,
    )
    return Responses(
        generation=generation,
        inputs={name: tensor.to(device) for name, tensor in inputs.items()},
        texts=[talk.text for talk in talks],
        completions=[talk.messages[talk.begun :] for talk in talks],
        columns={"turn_rewards": [list(talk.rewards) for talk in talks]},
        counts={
            "turns": [float(talk.turns) for talk in talks],
            "tool_calls": [float(talk.tool_calls) for talk in talks],
            "tool_errors": [float(talk.tool_errors) for talk in talks],
        },
    )
