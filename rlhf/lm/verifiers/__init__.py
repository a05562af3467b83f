"""Rewards that a program checks: instructions, answers to mathematics, JSON, length, patterns; and prompts for them."""
