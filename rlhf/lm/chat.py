"""Conversations as tokens, by the tokenizer's own chat template."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rlhf.errors import InputError
from rlhf.lm.templates import Message, rendered, rendered_apart, understood

# Where an answer that was cut ends; for private use, so that no text has it.
_CUT = "\ue0c7"


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation and all that the template is told of it.

    Args:
        where: What error messages begin with.
        arguments: What the template is told besides messages, as `template_arguments` reads it.
        today: The template may write the date of today.
    """

    messages: list[Message]
    where: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    today: bool = False

    def text(self, tokenizer: Any, *, upto: int | None = None, add_generation_prompt: bool = False) -> str:
        """The first messages, or all, as the template writes them.

        Text parts of a content are shown one after the other, as one string where the template reads strings.
        """
        given = self.messages[:upto]
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "arguments": self.arguments,
            "today": self.today,
        }
        text = rendered(tokenizer, [_joined(message) for message in given], self.where, **options)
        in_parts = [message for message in given if isinstance(message.get("content"), list)]
        wanted = [_joined(message)["content"].strip() for message in in_parts]
        if all(content in text for content in wanted):
            return text
        text = rendered(tokenizer, given, self.where, **options)
        parts = [part["text"].strip() for message in in_parts for part in message["content"]]
        if not all(part in text for part in parts) or any(str(message["content"]) in text for message in in_parts):
            raise InputError(
                f"{self.where}: the chat template does not show content that is a list of parts; give it as a string."
            )
        return text


def require_messages(messages: Any, where: str) -> None:
    """Raises InputError, which begins with `where`, unless `messages` is a list of roles with texts or tool calls."""
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: {messages!r:.60} must be a list of messages.")
    for message in messages:
        if not isinstance(message, dict) or "role" not in message or not {"content", "tool_calls"} & message.keys():
            raise InputError(f"{where}: {message!r:.60} must be a message, a dict with 'role' and 'content'.")
        role, content = message["role"], message.get("content")
        if not isinstance(role, str):
            raise InputError(f"{where}: the role {role!r:.60} must be a string.")
        if content is None and message.get("tool_calls"):
            continue
        if isinstance(content, list) and content:
            for part in content:
                if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                    raise InputError(f"{where}: {part!r:.60} is a part of a content; only text parts can be read.")
        elif not isinstance(content, str):
            raise InputError(f"{where}: the content {content!r:.60} must be a string, or a list of text parts.")


def prompt_tokens(tokenizer: Any, chats: Sequence[Chat]) -> list[list[int]]:
    """Each conversation so far and the beginning of the assistant's turn, which the model is to write."""
    jobs = {chat.where: partial(_prompt_text, tokenizer, chat) for chat in chats}
    return tokenized(tokenizer, [text for (text,) in _rendered(jobs)])


def _rendered(jobs: Mapping[str, Callable[[], list[str]]]) -> list[list[str]]:
    done = rendered_apart(jobs)
    return done + [job() for job in list(jobs.values())[len(done) :]]


def _prompt_text(tokenizer: Any, chat: Chat) -> list[str]:
    require_messages(chat.messages, chat.where)
    if chat.messages[-1]["role"] == "assistant":
        raise InputError(f"{chat.where}: the prompt ends with a turn of the assistant, and it is its turn again.")
    return [chat.text(tokenizer, add_generation_prompt=True)]


def answer_text(tokenizer: Any, chat: Chat, response: str, *, finished: bool) -> str:
    """The conversation with the assistant's response, which has no end if it was cut.

    What the template does not read of the chat's arguments is left out: they are meant for another one.
    """
    require_messages(chat.messages, chat.where)
    arguments = understood(tokenizer, chat.arguments, chat.where)
    answer = {"role": "assistant", "content": response if finished else response + _CUT}
    text = Chat(messages=[*chat.messages, answer], where=chat.where, arguments=arguments).text(tokenizer)
    if finished:
        return text
    if _CUT not in text:
        raise InputError(f"{chat.where}: the chat template does not show the end of a response that was cut.")
    return text[: text.rindex(_CUT)]


def whole_tokens(tokenizer: Any, chats: Sequence[Chat]) -> list[list[int]]:
    """Each conversation from beginning to end; what the template does not read of its arguments is left out."""
    jobs = {chat.where: partial(_whole_text, tokenizer, chat) for chat in chats}
    return tokenized(tokenizer, [text for (text,) in _rendered(jobs)])


def _whole_text(tokenizer: Any, chat: Chat) -> list[str]:
    require_messages(chat.messages, chat.where)
    arguments = understood(tokenizer, chat.arguments, chat.where)
    return [replace(chat, arguments=arguments).text(tokenizer)]


def tokenized(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """What a template wrote, which brings its own BOS if there is to be one."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return ids


def conversations(tokenizer: Any, chats: Sequence[Chat], num_given: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The tokens of each conversation, and the positions of those that the assistant chose.

    The template is rendered up to each of the assistant's turns and through it; where one text begins with the other,
    the difference is the turn, whatever the template looks like.

    Args:
        num_given: How many messages of each are not the assistant's to learn from.

    Raises:
        InputError: The template renders the beginning differently once more follows.
    """
    turns = [_turns(chat, given) for chat, given in zip(chats, num_given, strict=True)]
    jobs = {chat.where: partial(_renderings, tokenizer, chat, own) for chat, own in zip(chats, turns, strict=True)}
    return [
        _conversation(tokenizer, chat, own, texts)
        for chat, own, texts in zip(chats, turns, _rendered(jobs), strict=True)
    ]


def _conversation(tokenizer: Any, chat: Chat, turns: list[int], texts: list[str]) -> tuple[list[int], list[int]]:
    tokens, *rest = tokenized(tokenizer, texts)
    eos = tokenizer.eos_token_id
    actions: list[int] = []
    for turn, start, end in zip(turns, rest[::2], rest[1::2], strict=True):
        if end[: len(start)] != start or tokens[: len(end)] != end:
            raise InputError(
                f"{chat.where}: the chat template writes the messages before or up to message {turn} differently once "
                "more follows, so the turn's tokens cannot be told apart; use a template that only appends (some drop "
                "earlier reasoning, or put into the generation prompt what a finished turn lacks)."
            )
        if len(end) == len(start):
            raise InputError(f"{chat.where}: the chat template writes nothing for message {turn}.")
        stops = [position for position in range(len(start), len(end)) if tokens[position] == eos]
        # What a template writes behind the end of a turn, the model is never asked for.
        actions += range(len(start), stops[-1] + 1 if stops else len(end))
    if turns[-1] == len(chat.messages) - 1 and tokens[actions[-1]] != eos:
        tokens = [*tokens, eos]
        actions.append(len(tokens) - 1)
    return tokens[: actions[-1] + 1], actions


def _turns(chat: Chat, num_given: int) -> list[int]:
    """Which messages the assistant learns from."""
    require_messages(chat.messages, chat.where)
    turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant" and i >= num_given]
    if not turns or turns[0] == 0:
        raise InputError(
            f"{chat.where}: a conversation needs a turn of the assistant, after at least one other message."
        )
    return turns


def _renderings(tokenizer: Any, chat: Chat, turns: list[int]) -> list[str]:
    """The whole text, then for each turn what stands before it and what stands at its end."""
    texts = [chat.text(tokenizer)]
    for turn in turns:
        texts.append(chat.text(tokenizer, upto=turn, add_generation_prompt=True))
        texts.append(chat.text(tokenizer, upto=turn + 1))
    return texts


def require_prompt(prompt: Any, where: str) -> None:
    """Raises InputError, which begins with `where`, unless `prompt` is a text, or a list of what may be messages."""
    if not isinstance(prompt, str | list):
        raise InputError(f"{where}: the prompt is {prompt!r:.60}; it must be a string or a list of messages.")
    if isinstance(prompt, str) and _is_stored_conversation(prompt):
        raise InputError(
            f"{where}: the prompt {prompt!r:.60} is a conversation stored as text, which no template would render; "
            "store it as a list of messages, in a .jsonl or .parquet file."
        )


def _is_stored_conversation(text: str) -> bool:
    """Whether it is nothing but messages, as JSON or as Python shows them."""
    if not (text.lstrip()[:1] in ("[", "{") and "role" in text and "content" in text):
        return False
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = read(text.strip())
            messages = found if isinstance(found, list) else [found]
            return all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in messages)
    return False


def _joined(message: Message) -> Message:
    content = message.get("content")
    return message | {"content": "".join(part["text"] for part in content)} if isinstance(content, list) else message
