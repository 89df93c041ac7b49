"""Attacks: the suite (foolbox), noise levels, threat models, and the cache of static attacked sets."""
