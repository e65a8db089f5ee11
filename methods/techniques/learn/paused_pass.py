"""A function that can pause in the middle and be resumed: a thread used as a coroutine."""

import threading
from collections.abc import Callable
from typing import Any

import torch


class _Abandoned(BaseException):
    """Unwinds the stack of a pass whose remainder nobody needs."""


class PausedPass:
    """A forward pass in a thread of its own, which runs only between ``resume`` and its next pause.

    Args:
        forward: runs the pass; somewhere inside it ``pause`` is called.

    Attributes:
        paused_with: value that the pass paused with.
        finished: names that the owner of the pass adds as their modules return.
        thread: the thread.
    """

    def __init__(self, forward: Callable[[], Any]) -> None:
        self.paused_with: Any = None
        self.finished: set[str] = set()
        self._forward = forward
        self._error: BaseException | None = None
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = self._done = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad():
                    self._forward()
        except _Abandoned:
            pass
        except BaseException as error:  # raised again by the call of resume
            self._error = error
        self._done = True
        self._paused.release()

    def resume(self) -> None:
        """Run to the next pause or to the end; raises what the pass raised."""
        self._go.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def pause(self, value: Any) -> None:
        """Wait for the next ``resume``; to be called in the thread of the pass."""
        self.paused_with = value
        self._paused.release()
        self._go.acquire()
        self.paused_with = None
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """End the pass where it is."""
        if not self._done:
            self._abandoned = True
            self._go.release()
            self.thread.join()
