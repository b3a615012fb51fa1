"""Operators that carry the tokens of a mixture of experts to the experts' ranks and back."""
