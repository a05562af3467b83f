"""The short course: what is known of policy gradients, in figures, exact MDPs, bounds and little worlds.

    python -m theory              # draws the figures, from the root of the repository

Importing it registers the worlds with gymnasium; `--env-id theory:theory/Chain-v0` names one to a recipe.
"""

import gymnasium

gymnasium.register("theory/Chain-v0", entry_point="theory.worlds.chain:Chain")
gymnasium.register("theory/AliasedGrid-v0", entry_point="theory.worlds.aliased_grid:AliasedGrid", max_episode_steps=50)
gymnasium.register("theory/RockPaperScissors-v0", entry_point="theory.worlds.rock_paper_scissors:RockPaperScissors")
gymnasium.register("theory/Road-v0", entry_point="theory.worlds.road:Road", max_episode_steps=100)
