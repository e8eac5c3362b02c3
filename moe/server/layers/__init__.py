"""Classes of experts, and what makes new ones."""
