"""Errors caused by invalid input or environment, as opposed to bugs."""

from __future__ import annotations


class UserError(Exception):
    """Invalid input or environment: the message gives the key or file, its value and what is valid.

    The commands print the message without a traceback and exit with code 2.
    """


class SharedError(UserError):
    """A UserError raised on all ranks at the same point; only rank 0 reports it."""


class ToldByMain(Exception):
    """Raised on the other ranks when rank 0 failed; rank 0 raised and reported the error."""
