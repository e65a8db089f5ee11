"""Who votes: a random token in the voter's browser, and in the log a salted hash of it."""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_KNOWN = 10_000
"""Judges whose recent requests are counted; the one that was silent for longest is forgotten."""


class Identities:
    """Makes and checks tokens. A token proves itself: nothing about it is stored."""

    def __init__(self, secret: str, salt: str) -> None:
        """Use the secrets of one log.

        Args:
            secret: signs tokens.
            salt: hashes judges; with another arena's salt the same token is another judge.
        """
        self._secret, self._salt = secret.encode(), salt.encode()

    def fresh(self) -> str:
        """A new token, 96 hex digits."""
        nonce = secrets.token_hex(16)
        return nonce + self._signature(nonce)

    def judge(self, token: str) -> str | None:
        """The judge of a token, 16 hex digits; None for a token that was not made here."""
        nonce, signature = token[:32], token[32:]
        if not token.isascii() or not hmac.compare_digest(signature, self._signature(nonce)):
            return None
        return hmac.new(self._salt, nonce.encode(), hashlib.sha256).hexdigest()[:16]

    def _signature(self, nonce: str) -> str:
        return hmac.new(self._secret, nonce.encode(), hashlib.sha256).hexdigest()


class Pace:
    """At most so many requests a minute from each, in a bucket that fills steadily."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_minute / 60.0, clock
        self._most = max(per_minute / 4.0, 1.0)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, who: str) -> float:
        """Take one turn; returns 0, or the seconds until there is one (then none is taken)."""
        now = self._clock()
        left, at = self._left.pop(who, (self._most, now))
        left = min(self._most, left + (now - at) * self._rate)
        short = max(0.0, 1.0 - left)
        self._left[who] = (left if short else left - 1.0, now)
        while len(self._left) > MOST_KNOWN:
            self._left.popitem(last=False)
        return short / self._rate
