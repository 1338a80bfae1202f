"""The scheduler: admits requests, makes up the rows of each step from all of them, and hands out the results.

There is no thread of its own: whichever caller is waiting runs the next step for everybody.  So generations started by
several Python threads, or the prompts of one list, share every step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from cpuinfer.errors import Cancelled, ContextFull
from cpuinfer.loader import PAGE_TOKENS
from cpuinfer.request import NO_SEQUENCE, Feed, Request

if TYPE_CHECKING:
    from cpuinfer import _core


class Engine:
    """Steps the sequences of one native session."""

    def __init__(self, session: _core.Session, *, batch: int, context: int, cache_pages: int) -> None:
        self._session = session
        self._batch = batch
        self._context = context
        self._free_pages = cache_pages
        self._changed = threading.Condition()
        self._stepping = False
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []

    def submit(self, request: Request) -> None:
        """Queue a request.  Raises ContextFull when its prompt does not fit."""
        if len(request.prompt) > self._context:
            raise ContextFull(
                f"the prompt has {len(request.prompt)} tokens and does not fit the context of {self._context}: "
                "shorten it or load the model with a larger context"
            )
        request.pages = -(-request.most_tokens // PAGE_TOKENS)
        with self._changed:
            self._waiting.append(request)

    def advance(self, request: Request) -> None:
        """Return once the request has something to take.  Raises what ended it, if an error did."""
        self._run_until(request, lambda: request.ready)

    def finish(self, request: Request) -> None:
        """Return once the request is done.  Raises what ended it, if an error did."""
        self._run_until(request, lambda: request.done)

    def _run_until(self, request: Request, reached: Callable[[], bool]) -> None:
        """Run steps for everybody, or wait while another thread does."""
        while True:
            with self._changed:
                while self._stepping and not reached():
                    self._changed.wait()
                if reached():
                    break
                self._stepping = True
                self._reap()
                work = self._compose()
            try:
                self._step(work)
            finally:
                with self._changed:
                    self._stepping = False
                    self._reap()
                    self._changed.notify_all()
        if request.error is not None:
            raise request.error

    def drop(self, request: Request) -> None:
        """The caller no longer waits: free what the request holds, now or after the step that runs."""
        with self._changed:
            request.dropped = True
            if not self._stepping:
                self._reap()

    def cancel(self) -> None:
        """End every request there is; the step that runs is abandoned.  May be called from any thread."""
        with self._changed:
            for request in (*self._waiting, *self._active):
                request.cancelled = True
            self._session.cancel()

    def _compose(self) -> list[tuple[Request, Feed]]:
        """The next step: one row for each answer under way, the rest of the batch for prompts, first come first served.

        Called with the lock held.
        """
        while self._waiting and self._waiting[0].pages <= self._free_pages and len(self._active) < self._batch:
            request = self._waiting.popleft()
            self._free_pages -= request.pages
            request.sequence = self._session.open(request.sampler)
            self._active.append(request)
            request.begin()
        room = self._batch
        work = []
        for request in sorted(self._active, key=lambda active: active.fed < len(active.prompt)):
            if room == 0:
                break
            feed = request.next_feed(room)
            room -= len(feed.tokens)
            work.append((request, feed))
        return work

    def _step(self, work: list[tuple[Request, Feed]]) -> None:
        if not work:
            return
        feeds = [(request.sequence, feed.tokens, feed.want, feed.targets) for request, feed in work]
        try:
            results = self._session.step(feeds)
        except Cancelled:
            return  # the requests meant are marked; the others are fed again
        except Exception as error:
            for request, _ in work:
                request.fail(error)
            return
        for (request, feed), result in zip(work, results, strict=True):
            if isinstance(result, Exception):
                request.fail(result)
            else:
                request.receive(feed, result)

    def _reap(self) -> None:
        """Take out what is cancelled, done or dropped.  Called with the lock held and no step running."""
        for request in (*self._waiting, *self._active):
            if request.cancelled and not request.done:
                request.finish_cancelled()
        self._waiting = deque(request for request in self._waiting if not (request.done or request.dropped))
        for request in self._active:
            if (request.done or request.dropped) and request.sequence != NO_SEQUENCE:
                self._session.close(request.sequence)
                self._free_pages += request.pages
                request.sequence = NO_SEQUENCE
        self._active = [request for request in self._active if request.sequence != NO_SEQUENCE]
