"""Prompts and a reward as what a language model is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import require_learns_from
from rlhf.errors import InputError
from rlhf.lm.answering import Answering
from rlhf.lm.collect import CollectResponses, PromptCollector, require_prompts
from rlhf.lm.data import Data, Prompt, hold_out, load_data, prompt_rows
from rlhf.lm.endpoint import Endpoint, Judge
from rlhf.lm.engine import Engine, Sampling, require_engine
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.load import model_sums
from rlhf.lm.memory import require_memory
from rlhf.lm.policy import CausalLM
from rlhf.lm.relevance import Relevance
from rlhf.lm.responses import try_rewards
from rlhf.lm.reward_model import RewardModel, named_reward
from rlhf.lm.rewards import Rewards
from rlhf.lm.settings import Calling, OnError
from rlhf.optimize import Optimize
from rlhf.runs.evaluate import Evaluation
from rlhf.settings import Count, CountOrNone, Size, checked, made
from rlhf.sources import code_sums, held_sums, rows_sums
from rlhf.task import CollectorTask, Here

Source = str | Path | Sequence[Mapping[str, Any]] | Data
Reward = Callable[..., Any] | str
_OWN = (
    *("data", "reward", "max_new_tokens", "held_out", "reward_weights", "allow_none", "reward_timeout"),
    *("on_reward_error", "stop_strings", "engine"),
)


class Prompts(CollectorTask):
    """Prompts that the policy answers, and functions that pay for the answers.

    Args:
        data: A list of dicts, a .jsonl, .json, .csv or .parquet file, or a data set of the hub; with a column `prompt`
            (strings, or lists of chat messages) or `messages`.
        reward: A function that names what it needs (prompts, responses, ..., any column of the data) and returns one
            number a response, or one list of numbers, one a token; path/to/file.py:function; the folder or hub id of a
            reward model; or several of them.
        max_new_tokens: Longest response.
        held_out: So many rows are never trained on and evaluated on instead; or data of their own to evaluate on.
        reward_weights: One for each function; none given: each counts 1.
        allow_none: A function may return None for a response, on which it has no say; a response on which none has one
            is left out of loss and statistics.
        reward_timeout: Seconds that a function has for one call; 0 is no limit.
        on_reward_error: After an error or a timeout of a function: stop; retry a few times, then stop; or skip it for
            the responses at hand, as if it had returned None (in training only: an evaluation retries).
        stop_strings: Texts that end a response, beside the model's own end.
        engine: What answers; None is our decoder.
        collecting: Fields of CollectResponses: prompts_per_rollout, responses_per_prompt, ...

    Raises:
        InputError: The data or the reward cannot be used; or there is no such setting.
    """

    shared_state = True

    @checked
    def __init__(
        self,
        data: Source,
        reward: Reward | Sequence[Reward],
        *,
        max_new_tokens: Count,
        held_out: CountOrNone | Source = 16,
        reward_weights: Sequence[float] = (),
        allow_none: bool = False,
        reward_timeout: Size = 0.0,
        on_reward_error: OnError = "stop",
        stop_strings: str | tuple[str, ...] = (),
        engine: Engine | None = None,
        **collecting: Any,
    ) -> None:
        self.config = made(CollectResponses, collecting, beside=_OWN)
        self.group_size, self.lag = self.config.responses_per_prompt, self.config.lag
        given: list[Any] = list(reward) if isinstance(reward, list | tuple) else [reward]
        functions = [named_reward(one) if isinstance(one, str) else one for one in given]
        calling = Calling(timeout=reward_timeout, on_error=on_reward_error)
        self.rewards = Rewards(functions, list(reward_weights) or None, allow_none=allow_none, calling=calling)
        # As they are before anything calls them: what they count as they go is no other reward.
        self._held = {name: held_sums(f"reward {name}", function) for name, function in self.rewards.functions.items()}
        self.data = loaded(data)
        self.held_out = held_out if isinstance(held_out, int) else loaded(held_out)
        stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        self.sampling = Sampling(max_new_tokens=max_new_tokens, stop_strings=stops)
        if self.config.overlong_tokens > max_new_tokens:
            raise InputError(
                f"overlong_tokens is {self.config.overlong_tokens} and max_new_tokens {max_new_tokens}; the last of a "
                "response cannot be more than it may have."
            )
        self.engine = engine
        if engine is not None:
            require_engine(engine)
            self.rounding = float(engine.rounding)
        self._rows: tuple[list[Prompt], list[Prompt]] | None = None
        self._read_with: tuple[Any, int | None] = (None, None)
        self._evaluator: ResponseEvaluator | None = None

    def read(self, tokenizer: Any, *, context: int | None) -> None:
        """Tokenizes the prompts, so that what is wrong with them shows before a model is loaded.

        Args:
            context: The most tokens the model can take; None where there is no limit.

        Raises:
            InputError: A prompt is missing, empty or too long, or a reward asks for what the data do not have, or does
                not answer two rows as it must.
        """

        def prompts(data: Data) -> list[Prompt]:
            return prompt_rows(data, tokenizer, max_new_tokens=self.sampling.max_new_tokens, context=context)

        self._read_with = (tokenizer, context)
        apart = [] if isinstance(self.held_out, int) else prompts(self.held_out)
        self._rows = prompts(self.data), apart
        for data in (self.data,) if isinstance(self.held_out, int) else (self.data, self.held_out):
            self.rewards.require_columns(data.reward_columns)
            self.rewards.require_rows(data.name, data.rows)
        try_rewards(self.rewards, self._rows[0][:2], tokenizer)
        if isinstance(self.held_out, int) and not 0 < self.held_out < len(self._rows[0]):
            raise InputError(
                f"held_out is {self.held_out} and there are {len(self._rows[0])} prompts; hold out at least one to "
                "evaluate on, and leave some to train on."
            )

    def split(self, seed: int) -> tuple[list[Prompt], list[Prompt]]:
        """Prompts to train on, and prompts to evaluate on."""
        assert self._rows is not None, "read() comes first"
        rows, apart = self._rows
        if not isinstance(self.held_out, int):
            return rows, apart
        parts = hold_out(len(rows), num_held_out=self.held_out, seed=seed)
        training, evaluated = ([rows[row] for row in part.tolist()] for part in parts)
        return training, evaluated

    def require_size(self, accelerator: Accelerator) -> None:
        """Refuses what no rollout can be drawn from: too few prompts, or a number that processes cannot share."""
        require_prompts(self.split(0)[0], self.config, accelerator)

    def require(self, policy: Any, method: Method, settings: Optimize, accelerator: Accelerator) -> None:
        require_learns_from(method, "rewards")
        self.require_measurable(policy, accelerator)
        kept = 1 if method.rows == "groups" else self.group_size
        rows = self.config.prompts_per_rollout * kept
        optimize.require_rows(rows, max(settings.minibatches, method.num_parts))
        require_memory(policy, needs_reference=method.needs_reference, accelerator=accelerator)

    def require_measurable(self, policy: Any, accelerator: Accelerator) -> None:
        """Refuses prompts that this policy cannot answer, or too few of them."""
        self._read_for(policy)
        policy.require_precision(accelerator.mixed_precision)
        self.require_size(accelerator)

    def _read_for(self, policy: Any) -> None:
        require_tokenizer(policy)
        if self._rows is None or not same_tokens(self._read_with, (policy.tokenizer, policy.context)):
            self.read(policy.tokenizer, context=policy.context)

    def prepare(self, policy: Any, here: Here) -> None:
        """With a method that charges for the KL, the policy as it is now is the reference."""
        self._read_for(policy)
        policy.compute_in(here.accelerator.mixed_precision)
        # Of several tasks with the same policy, the first one's serves all.
        if here.method.needs_reference and not policy.at_reference():
            policy.make_reference()
        training, evaluated = self.split(here.seed)
        where: dict[str, Any] = {
            "sampling": replace(self.sampling, stop_tokens=policy.stop_tokens),
            "seed": here.seed,
            "accelerator": here.accelerator,
            "micro_batch_cost": here.settings.micro_batch_cost,
            "use_reference": here.method.needs_reference,
            "engine": self.engine,
            "answering": self.answering_of(policy, here),
        }
        self._evaluator = ResponseEvaluator(evaluated, policy.tokenizer, self.rewards, **where)
        self.collector = PromptCollector(training, policy.tokenizer, self.rewards, config=self.config, **where)

    def answering_of(self, policy: Any, here: Here) -> Answering | None:
        """How prompts are answered; None: in one turn."""
        return None

    def at_reference(self, policy: Any) -> bool:
        return policy.at_reference()

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        """The held-out prompts, answered once sampled and once greedily."""
        assert self._evaluator is not None
        return self._evaluator(policy)

    def inputs(self) -> dict[str, str]:
        sums = data_sums(self.data, self.held_out)
        for name, function in self.rewards.functions.items():
            sums |= code_sums(f"reward {name}", function) | self._held[name]
            if isinstance(function, Endpoint | Judge):
                sums |= {f"reward {name}: {what}": value for what, value in function.inputs().items()}
            if isinstance(function, RewardModel | Relevance):
                sums |= model_sums(function.source, what=f"reward {name}")
        return sums | ({} if self.engine is None else code_sums("engine", self.engine))

    def describe(self) -> dict[str, Any]:
        return {
            "data": self.data.name,
            "rows": len(self.data.rows),
            "held_out": self.held_out if isinstance(self.held_out, int) else self.held_out.name,
            "rewards": list(self.rewards.functions),
            "reward_weights": self.rewards.weights,
            "allow_none": self.rewards.allow_none,
            "on_reward_error": self.rewards.calling.on_error,
            "engine": type(self.engine).__name__ + str(getattr(self.engine, "describe", dict)() or ""),
            "max_new_tokens": self.sampling.max_new_tokens,
            "stop_strings": list(self.sampling.stop_strings),
            "collect": asdict(self.config),
        }


def require_tokenizer(policy: Any) -> None:
    """Refuses what is no language model, or one without a tokenizer."""
    if not isinstance(policy, CausalLM):
        raise InputError(
            f"the policy is {type(policy).__name__}, which is no language model; take rlhf.load_policy(...)."
        )
    if policy.tokenizer is None:
        raise InputError("the policy has no tokenizer; load it with rlhf.load_policy, or set policy.tokenizer.")


def same_tokens(one: tuple[Any, int | None], other: tuple[Any, int | None]) -> bool:
    """Whether two tokenizers and contexts make the same of a text."""
    (first, context), (second, other_context) = one, other
    if context != other_context:
        return False
    return first is second or (first.get_vocab() == second.get_vocab() and first.chat_template == second.chat_template)


def data_sums(data: Data, held_out: int | Data) -> dict[str, str]:
    """Of the rows as they were read, by which other data of the same name and size are told apart."""
    apart = {} if isinstance(held_out, int) else rows_sums("held-out data", held_out.name, held_out.rows)
    return rows_sums("data", data.name, data.rows) | apart


def loaded(data: Source) -> Data:
    """Rows, wherever they come from."""
    if not isinstance(data, Data | str | Path | Sequence):
        raise InputError(f"data is {data!r:.60}; give a list of dicts, a file, or the name of a data set of the hub.")
    return data if isinstance(data, Data) else load_data(data)
