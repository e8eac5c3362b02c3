"""Experts that this peer serves to others."""
