"""Errors that are the user's to mend, as opposed to faults of the program."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: the message names the thing, its value and what would be right.

    The commands print it as one line and exit with code 2.
    """


class SharedError(UserError):
    """One that every process of a run has at the same point; the main one tells it."""


class ToldByMain(Exception):
    """This is one of several processes; the main one stopped and has said why."""
