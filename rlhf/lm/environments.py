"""What a model talks with: environments, tools, and what others call so."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from transformers.utils import get_json_schema

from rlhf.errors import InputError
from rlhf.lm.templates import Message

Tool = Callable[..., Any]
# As Hermes, Qwen and many after them write it.
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", flags=re.DOTALL)


class Step(NamedTuple):
    """What comes of the model's message.

    Args:
        messages: What it is told next; none if the conversation is over.
        reward: Of this turn.
        done: The conversation is over.
        tool_calls, tool_errors: How many tools were called, and how many calls came to nothing.
    """

    messages: list[Message]
    reward: float
    done: bool
    tool_calls: int = 0
    tool_errors: int = 0


class Environment(Protocol):
    """One conversation at a time; made anew for each, or used again after `reset`."""

    def reset(self, **row: Any) -> Any:
        """Given a row of the data: the messages that the conversation begins with; a text, which is put behind the
        last message of the row's prompt; or None: the row's prompt."""
        ...

    def step(self, message: Message) -> tuple[list[Message], float, bool]:
        """What the model is told next, the reward of its message, and whether the conversation is over."""
        ...


def parsed(text: str) -> Message:
    """The model's words as a message, with the tools that it calls: between <tool_call> and </tool_call>, as JSON with
    a name and arguments. A call that is no such JSON has an `error`.
    """
    calls = [_call(written) for written in _CALL.findall(text)]
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": _CALL.sub("", text).strip(), "tool_calls": calls}


def _call(written: str) -> dict[str, Any]:
    try:
        found = json.loads(written)
    except ValueError as error:
        return {"type": "function", "function": {"name": "", "arguments": {}}, "error": f"this is no JSON: {error}"}
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        wrong = "a call is an object with a name and arguments"
        return {"type": "function", "function": {"name": "", "arguments": {}}, "error": wrong}
    return {"type": "function", "function": {"name": found["name"], "arguments": found.get("arguments") or {}}}


class Tools:
    """An environment in which the model may call Python functions, until it answers without calling any.

    What a tool returns is told to the model as text (JSON, where it is none), and what goes wrong as an error: the run
    goes on.

    Args:
        tools: With type hints and docstrings, from which the chat template describes them; plain or async.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = {tool.__name__: tool for tool in tools}

    def reset(self, **row: Any) -> None:
        """The prompt is the data's."""

    def step(self, message: Message) -> Step:
        calls = message.get("tool_calls") or []
        results = [self._called(call) for call in calls]
        return Step(
            messages=[{"role": "tool", "name": name, "content": content} for name, content, _ in results],
            reward=0.0,
            done=not calls,
            tool_calls=len(calls),
            tool_errors=sum(failed for _, _, failed in results),
        )

    def _called(self, call: Mapping[str, Any]) -> tuple[str, str, bool]:
        """Its name, what the model is told, and whether it failed."""
        function = call.get("function") or {}
        name, arguments = function.get("name") or "unknown", function.get("arguments") or {}
        try:
            if call.get("error"):
                raise ValueError(call["error"])
            if name not in self.tools:
                raise ValueError(f"there is no tool {name}; there are {', '.join(self.tools)}")
            if not isinstance(arguments, dict):
                raise ValueError(f"the arguments are {arguments!r:.60}; they must be an object")
            result = self.tools[name](**arguments)
            if inspect.isawaitable(result):
                result = asyncio.run(_awaited(result))
            return name, _as_text(result), False
        # The model is told, whatever it is.
        except Exception as error:
            return name, json.dumps({"error": f"{type(error).__name__}: {error}"}), True


async def _awaited(result: Any) -> Any:
    return await result


def _as_text(result: Any) -> str:
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the tool returned {type(result).__name__}, which is no text") from error


class FactoryTools(Tools):
    """What TRL calls an environment factory: an object whose public methods are tools, with `reset(**row)`, which may
    return a text to put behind the prompt, and perhaps `get_reward()`, which is asked at the end."""

    def __init__(self, made: Any, tools: Sequence[Tool] = ()) -> None:
        super().__init__([*tools, *tools_of(made)])
        self.made = made

    def reset(self, **row: Any) -> Any:
        return self.made.reset(**row)

    def step(self, message: Message) -> Step:
        step = super().step(message)
        if not step.done or not hasattr(self.made, "get_reward"):
            return step
        reward = self.made.get_reward()
        if inspect.isawaitable(reward):
            reward = asyncio.run(_awaited(reward))
        return step._replace(reward=float(reward))


def tools_of(made: Any) -> list[Tool]:
    """The public methods of an object, but for `reset` and `get_reward`."""
    names = [name for name, _ in inspect.getmembers(type(made), predicate=inspect.isfunction)]
    return [getattr(made, name) for name in names if not name.startswith("_") and name not in ("reset", "get_reward")]


class GymText:
    """A gymnasium-like environment of texts: `reset(seed=..., options=...)` gives an observation and `step(text)` the
    next one, a reward, whether it terminated or was cut, and more that nobody reads. Without a column `seed` the seed
    follows from the row.

    Args:
        env: Such an object.
    """

    def __init__(self, env: Any) -> None:
        self.env = env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None, **row: Any) -> list[Message]:
        if seed is None:
            # The same for all that begin with this row.
            seed = int(hashlib.sha256(json.dumps(row, sort_keys=True, default=repr).encode()).hexdigest()[:8], 16)
        observation, _ = self.env.reset(seed=seed, options=options)
        return [{"role": "user", "content": str(observation)}]

    def step(self, message: Message) -> tuple[list[Message], float, bool]:
        observation, reward, terminated, truncated, _ = self.env.step(message["content"])
        done = bool(terminated or truncated)
        return [] if done else [{"role": "user", "content": str(observation)}], float(reward), done


class VerifiersText:
    """An environment after the manner of the package verifiers: `env_response(messages, state)` gives what the model is
    told next and the state, `is_completed(messages, state)` says whether it is over; `rewards` are the task's.

    Args:
        env: Such an object; its methods may be async.
    """

    def __init__(self, env: Any) -> None:
        self.env = env

    def reset(self, **row: Any) -> None:
        self.messages: list[Message] = list(row.get("prompt") or [])
        self.state: dict[str, Any] = {"prompt": self.messages, "turn": 0, **row}

    def step(self, message: Message) -> tuple[list[Message], float, bool]:
        self.messages = [*self.messages, message]
        self.state["turn"] += 1
        if _now(self.env.is_completed(self.messages, self.state)):
            return [], 0.0, True
        told = _now(self.env.env_response(self.messages, self.state))
        told, self.state = told if isinstance(told, tuple) else (told, self.state)
        self.messages = [*self.messages, *told]
        return list(told), 0.0, False


def _now(result: Any) -> Any:
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


def schemas_of(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """What the chat template is told of the tools.

    Raises:
        InputError: A tool has no name of its own, type hints or docstring to tell of; or two have one name.
    """
    names = [getattr(tool, "__name__", "") for tool in tools]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"two tools are called {twice[0]!r}; the model could not tell them apart.")
    found = []
    for tool in tools:
        try:
            found.append(get_json_schema(tool))
        # transformers raises kinds of its own.
        except Exception as error:
            raise InputError(
                f"the tool {getattr(tool, '__name__', tool)!r} cannot be described to the model ({error}); give it "
                "type hints, and a docstring that says what it does and, under Args:, what each argument is."
            ) from error
    return found
