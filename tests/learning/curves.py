"""Runs that figure 17 shows and no test judges: every method on Acrobot and Pendulum, with CartPole's settings.

`make learning-curves` makes those that are missing in runs/learning, ten seeds each, two side by side. Where a method
has settings of its own for the problem, it is run with these.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from recipes.settings.control import PRESETS, preset
from tests.learning.results import result_of

SEEDS = 10
# For each problem: what CartPole's settings are changed by, and the methods that cannot act there.
PROBLEMS = {
    "Acrobot-v1": (("--steps", "100000", "--eval-every-steps", "10240"), ("sac",)),
    "Pendulum-v1": (
        ("--steps", "200000", "--eval-every-steps", "20480", "--collect.normalise-rewards"),
        ("q_actor_critic", "discrete_sac", "replay_actor_critic"),
    ),
}
# In their place for methods that replay, whose half a gradient step for every step takes ten times as long as acting.
FEWER = ("--steps", "40000", "--eval-every-steps", "4096")


def commands() -> dict[str, tuple[str, ...]]:
    """By the name of the run."""
    found = {}
    for env_id, (changes, others) in PROBLEMS.items():
        for name in sorted({name for name, _ in PRESETS}):
            if name in others:
                continue
            command: tuple[str, ...] = ("recipes/cartpole.py", "--method", name, "--env-id", env_id)
            if (name, env_id) not in PRESETS:
                method = preset(name, env_id).method
                command += (*(FEWER if method.replays else changes), "--evaluate.episodes", "20")
                if env_id == "Pendulum-v1" and hasattr(method, "gamma"):
                    # One swing: a whole episode's return tells little about one action.
                    command += ("--method.gamma", "0.95")
            found[f"{env_id.partition('-')[0].lower()}-{name}"] = command
    return found


def main() -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(result_of, name, seed, *command)
            for seed in range(SEEDS)
            for name, command in commands().items()
        ]
        for run in runs:
            run.result()


if __name__ == "__main__":
    main()
