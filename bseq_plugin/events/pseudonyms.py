"""Keyed pseudonyms of user ids: who has the key can find a user again, who has a run or a store alone can't.

A plain hash would not do: whoever has a list of customers hashes it and compares.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.events import USER, Events

MIN_KEY_BYTES = 16
N_DIGITS = 32  # 128 bits: two of 10^12 users share a pseudonym with a chance of 10^-15


@dataclass(frozen=True)
class Pseudonymiser:
    """HMAC-SHA256 (RFC 2104) of a user id under a secret key, its first 32 hexadecimal digits.

    The number 7 and the text "7" are one user. Nothing that is written anywhere holds the key; lost, the pseudonyms
    can't be made again, and histories of old and new logs no longer meet.

    Attributes:
        key: at least 16 bytes. Raises UsageError otherwise.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.key, bytes) or len(self.key) < MIN_KEY_BYTES:
            raise UsageError(
                f"the key of pseudonyms has to be bytes, at least {MIN_KEY_BYTES}: head -c 32 /dev/urandom > key"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Pseudonymiser:
        """Take the file's bytes as the key, as they are but for a line end. Raises UsageError."""
        try:
            key = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"the key file {str(path)!r} can't be read: {error.strerror}") from error
        return cls(key.rstrip(b"\r\n"))

    def pseudonym(self, user_id: object) -> str:
        """Return the pseudonym of one id."""
        return hmac.new(self.key, str(user_id).encode(), hashlib.sha256).hexdigest()[:N_DIGITS]

    def pseudonyms(self, user_ids: pd.Series) -> pd.Series:
        """Return the pseudonyms of a column of ids, each computed once."""
        codes, ids = pd.factorize(user_ids)
        names = pd.Series([self.pseudonym(one) for one in ids.tolist()], dtype="str")
        if not names.is_unique:
            raise SchemaError(
                "two user ids have one pseudonym: the log writes one user in two ways (7 and '7'); make them one"
            )
        return names.take(codes).set_axis(user_ids.index)

    def events(self, events: Events) -> Events:
        """Return the same log with pseudonyms for user ids."""
        return replace(events, frame=events.frame.assign(**{USER: self.pseudonyms(events.frame[USER])}))
