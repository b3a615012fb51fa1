"""Lowerings that Inductor has for its own devices only."""

from __future__ import annotations


def register() -> None:
    pass
