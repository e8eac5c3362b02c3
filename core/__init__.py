"""hivemind: train one PyTorch model on many computers that come and go, with no master.

Public names are loaded on first use (PEP 562), so that ``import hivemind`` is cheap and torch is loaded only where
it is needed.
"""
