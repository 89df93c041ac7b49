"""Attacks: the suite over foolbox and pyautoattack, noise levels, threat models, and the cache of static attacked sets."""
