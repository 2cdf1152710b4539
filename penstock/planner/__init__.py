"""Computes the number of processes for a load from measured costs."""
