"""Tests of gandefense.reproduce."""
