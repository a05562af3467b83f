"""Conversations as tokens, by the tokenizer's own chat template."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError

from rlhf.errors import InputError

Message = dict[str, Any]


def require_messages(messages: Any, where: str) -> None:
    """Raises InputError, which begins with `where`, unless `messages` is a list of role and content."""
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: {messages!r:.60} must be a list of messages.")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise InputError(f"{where}: {message!r:.60} must be a message, a dict with 'role' and 'content'.")


def prompt_tokens(tokenizer: Any, messages: list[Message], where: str) -> list[int]:
    """The conversation so far and the beginning of the assistant's turn, which the model is to write."""
    require_messages(messages, where)
    if messages[-1]["role"] == "assistant":
        raise InputError(f"{where}: the prompt ends with a turn of the assistant, and it is its turn again.")
    return _render(tokenizer, messages, where, add_generation_prompt=True)


def conversation(
    tokenizer: Any, messages: list[Message], where: str, *, num_given: int = 0
) -> tuple[list[int], list[int]]:
    """The tokens of a conversation, and the positions of those that the assistant chose.

    The template is rendered up to each of the assistant's turns and through it; where one text begins with the other,
    the difference is the turn, whatever the template looks like.

    Args:
        num_given: The first messages, which are not the assistant's to learn from.

    Raises:
        InputError: The template renders the beginning differently once more follows.
    """
    require_messages(messages, where)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= num_given]
    if not turns or turns[0] == 0:
        raise InputError(f"{where}: a conversation needs a turn of the assistant, after at least one other message.")
    tokens = _render(tokenizer, messages, where, add_generation_prompt=False)
    eos = tokenizer.eos_token_id
    actions: list[int] = []
    for turn in turns:
        start = _render(tokenizer, messages[:turn], where, add_generation_prompt=True)
        end = _render(tokenizer, messages[: turn + 1], where, add_generation_prompt=False)
        if end[: len(start)] != start or tokens[: len(end)] != end:
            raise InputError(
                f"{where}: the chat template writes the messages before or up to message {turn} differently once more "
                "follows, so the turn's tokens cannot be told apart; use a template that only appends (some drop "
                "earlier reasoning, or put into the generation prompt what a finished turn lacks)."
            )
        stops = [position for position in range(len(start), len(end)) if tokens[position] == eos]
        # What a template writes behind the end of a turn, the model is never asked for.
        actions += range(len(start), stops[-1] + 1 if stops else len(end))
    if turns[-1] == len(messages) - 1 and tokens[actions[-1]] != eos:
        tokens = [*tokens, eos]
        actions.append(len(tokens) - 1)
    return tokens[: actions[-1] + 1], actions


def _render(tokenizer: Any, messages: list[Message], where: str, *, add_generation_prompt: bool) -> list[int]:
    if tokenizer.chat_template is None:
        raise InputError(
            f"{where}: messages need a chat template, and the tokenizer of {tokenizer.name_or_path or 'the model'} has "
            "none; set tokenizer.chat_template, or write the data as prompt and completion strings."
        )
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        raise InputError(f"{where}: the chat template refuses the conversation: {error}.") from error
