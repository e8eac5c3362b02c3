"""Experts of other peers as torch modules."""
