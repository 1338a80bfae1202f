"""The scheduler: admits requests, makes up the rows of each step from all of them, and hands out the results.

There is no thread of its own: whichever caller is waiting runs the next step for everybody.  So generations started by
several Python threads, or the prompts of one list, share every step.

A signal handler may raise in the caller at almost any moment (Ctrl-C does).  So the list of requests is the only state,
what is admitted is read off it, and a step that nobody could take the results of shows in the native session's lengths.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from cpuinfer.describe import PAGE_TOKENS
from cpuinfer.errors import Cancelled, ContextFull, InvalidRequest
from cpuinfer.request import NO_SEQUENCE, Feed, Request

if TYPE_CHECKING:
    from cpuinfer import _core

PATIENCE = 1.0
"""Seconds after which a waiting caller looks again: one that is interrupted may end without waking the others."""


class Engine:
    """Steps the sequences of one native session."""

    def __init__(self, session: _core.Session, *, batch: int, context: int, cache_pages: int) -> None:
        self._session = session
        self._batch = batch
        self._context = context
        self._cache_pages = cache_pages
        self._process = os.getpid()
        # Re-entrant: a signal handler may cancel, and the collector may close a stream, while the lock is held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._stepping = False
        self._requests: list[Request] = []

    @property
    def _forked(self) -> bool:
        """Whether this is the child of a fork, where the lock may be held by a thread that is not here."""
        return os.getpid() != self._process

    def submit(self, request: Request) -> None:
        """Queue a request.  Raises ContextFull when its prompt does not fit."""
        self._check_process()
        if len(request.prompt) > self._context:
            raise ContextFull(
                f"the prompt has {len(request.prompt)} tokens and does not fit the context of {self._context}: "
                "shorten it, or open the model with a larger context (-c)",
                tokens=len(request.prompt),
            )
        request.pages = -(-request.most_tokens // PAGE_TOKENS)
        with self._lock:
            self._requests.append(request)

    def advance(self, request: Request) -> None:
        """Return once the request has something to take.  Raises what ended it, if an error did."""
        self._run_until(request, lambda: request.ready)

    def finish(self, request: Request) -> None:
        """Return once the request is done.  Raises what ended it, if an error did."""
        self._run_until(request, lambda: request.done)

    def _run_until(self, request: Request, reached: Callable[[], bool]) -> None:
        """Run steps for everybody, or wait while another thread does."""
        self._check_process()
        while True:
            claimed = False
            try:
                with self._lock:
                    if reached():
                        break
                    if self._stepping:
                        self._changed.wait(PATIENCE)
                        continue
                    # No call may come between these two, nor before `_stepping` is reset: there a signal could raise.
                    self._stepping = claimed = True
                    self._reap()
                    work = self._compose()
                self._step(work)
            finally:
                if claimed:
                    self._stepping = False
                    self._settle()
        if request.error is not None:
            raise request.error

    def drop(self, *requests: Request) -> None:
        """The caller no longer waits: free what the requests hold, now or after the step that runs."""
        for request in requests:
            request.dropped = True
        self._settle()

    def _check_process(self) -> None:
        if self._forked:
            raise InvalidRequest(
                "this model was loaded before a fork and its threads live in the parent process: load it in the child"
            )

    def _settle(self) -> None:
        if self._forked:
            return
        with self._lock:
            if not self._stepping:
                self._reap()
            self._changed.notify_all()

    def cancel(self) -> None:
        """End every request there is; the step that runs is abandoned.  May be called from any thread."""
        if self._forked:
            return
        with self._lock:
            for request in self._requests:
                request.cancelled = True
            self._session.cancel()

    def _compose(self) -> list[tuple[Request, Feed]]:
        """The next step: one row for each answer under way, the rest of the batch for prompts, first come first served.

        Called with the lock held.
        """
        self._admit()
        active = [request for request in self._requests if request.sequence != NO_SEQUENCE]
        room = self._batch
        work = []
        for request in sorted(active, key=lambda request: request.fed < len(request.prompt)):
            if room == 0:
                break
            if request.fed == 0 and (reusable := request.reusable):
                # Not as it is admitted: by now another request may have computed the same beginning.
                request.fed = request.reused = self._session.reuse(request.sequence, reusable)
            feed = request.next_feed(_feed_end(request, min(room, request.most_feed)))
            if feed.tokens:
                room -= len(feed.tokens)
                work.append((request, feed))
        return work

    def _admit(self) -> None:
        """Open sequences in the order of the requests, as far as batch and cache have room."""
        places, pages = self._batch, self._cache_pages
        for request in self._requests:
            places, pages = places - 1, pages - request.pages
            if places < 0 or pages < 0:
                break
            if request.sequence == NO_SEQUENCE:
                request.begin()
                request.sequence = self._session.open(request.sampler)

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
                request.fed += len(feed.tokens)

    def _reap(self) -> None:
        """Take out what is cancelled, done or dropped.  Called with the lock held and no step running."""
        for request in self._requests:
            if request.cancelled and not request.done:
                request.finish_cancelled()
            sequence = request.sequence
            if sequence == NO_SEQUENCE:
                continue
            if not request.done and self._session.length(sequence) != request.fed:
                request.fail(Cancelled("a signal interrupted another caller while it took the results of a step"))
            if request.done or request.dropped:
                request.sequence = NO_SEQUENCE  # first, so that nothing can close it twice
                self._session.close(sequence)
        self._requests = [
            request
            for request in self._requests
            if request.sequence != NO_SEQUENCE or not (request.done or request.dropped)
        ]


def _feed_end(request: Request, room: int) -> int:
    """Up to where `room` more tokens of a prompt reach: its end, or that of a page, be it none.

    Tile units compute whole pages.  Where a prompt is cut depends on what else runs, and its results must not.
    """
    end = min(request.fed + room, len(request.prompt))
    return end if end == len(request.prompt) else end - end % PAGE_TOKENS
