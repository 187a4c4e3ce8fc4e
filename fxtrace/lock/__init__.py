"""Lockfiles: what every tensor of a model is made of, as text to review, and a check that tells what moved since."""

from fxtrace.lock.lockfile import Lock, Locked, dumps, loads
from fxtrace.lock.locking import Checked, Move, check_lock, make_lock, write_lock

__all__ = ["Checked", "Lock", "Locked", "Move", "check_lock", "dumps", "loads", "make_lock", "write_lock"]
