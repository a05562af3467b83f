"""Gymnasium environments on which a claim can be computed exactly: each is also a table, `mdp`."""
