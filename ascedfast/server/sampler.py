# SPDX-License-Identifier: MIT
"""Steps the rows of all requests together, one network evaluation a step; requests join and leave between steps."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ascedfast.config import MODES, AscedConfig, Mode
from ascedfast.report import RowReport
from ascedfast.server.model import Course, RowModel
from ascedfast.serving_rows import RowBatch

logger = logging.getLogger("ascedfast.server")


@dataclass(frozen=True)
class Drawn:
    """One image of a request: its state at the end [C, H, W] and what was found; both on the device."""

    x: Tensor
    report: RowReport | None


class Listener(Protocol):
    """Who ordered. Called from the thread that steps: must return at once."""

    def progressed(self, step: int) -> None:
        """All images of the order have taken that many steps."""

    def finished(self, images: list[Drawn]) -> None:
        """The order is done."""

    def failed(self, error: Exception) -> None:
        """It will not be: ValueError for settings that do not fit the run, else a fault of the server."""


@dataclass(eq=False)
class Order:
    """The images that one request asks for. config: None where nothing is watched."""

    seed: int
    n: int
    steps: int
    config: AscedConfig | None
    exact: bool
    listener: Listener


@dataclass(eq=False)
class _Row:
    order: Order
    draw: int
    course: Course
    watched: int | None
    k: int = 0


class _Groups:
    """Which rows go which way; made anew when rows join or leave, so that a step uploads nothing.

    alone: evaluated one by one. together: int64 on the device, the others; None for all. watched: ids of the watched
    rows. watched_at: int64 on the device, where they are; None for all.
    """

    def __init__(self, rows: Sequence[_Row], device: torch.device) -> None:
        def where(chosen: list[int]) -> Tensor | None:
            return None if len(chosen) == len(rows) else torch.tensor(chosen, dtype=torch.int64, device=device)

        self.alone = [i for i, row in enumerate(rows) if row.order.exact]
        self.together = where([i for i, row in enumerate(rows) if not row.order.exact])
        self.watched = [row.watched for row in rows if row.watched is not None]
        self.watched_at = where([i for i, row in enumerate(rows) if row.watched is not None])


class Sampler:
    """Rows of one model. ``order`` and ``cancel`` may be called from any thread, ``step`` from one.

    Args:
        max_rows: rows that are stepped at once; further orders wait, first come first served.
        told: called after each step with its seconds and its number of rows.
        max_steps: of the longest run. modes: of the treatment; on a GPU both cost memory (``RowBatch``).
    """

    def __init__(
        self,
        model: RowModel,
        max_rows: int,
        told: Callable[[float, int], None] = lambda seconds, rows: None,
        *,
        max_steps: int = 250,
        modes: Sequence[Mode] = MODES,
    ) -> None:
        self._model, self._max_rows, self._told = model, max_rows, told
        self._limits = {"max_steps": max_steps, "max_maps": max_steps, "modes": modes}
        self._waiting: deque[Order] = deque()
        self._cancelled: set[Order] = set()
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        model = self._model
        self._watch = RowBatch(self._max_rows, model.shape, model.device, model.dtype, **self._limits)
        self._rows: list[_Row] = []
        self._groups = _Groups([], model.device)
        self._x = torch.empty(0, *self._model.shape, dtype=self._model.dtype, device=self._model.device)

    @property
    def waiting(self) -> int:
        """Images whose orders have not begun."""
        with self._lock:
            return sum(order.n for order in self._waiting)

    @property
    def running(self) -> int:
        """Images that are being stepped."""
        return len(self._rows)

    def order(self, order: Order) -> None:
        """Queue an order. Raises: ValueError for more images than fit at once."""
        if order.n > self._max_rows:
            raise ValueError(f"n is {order.n}, at most {self._max_rows} images are stepped at once: ask for fewer")
        with self._lock:
            self._waiting.append(order)

    def cancel(self, order: Order) -> None:
        """Forget an order: its rows are gone before the next step. One that is done, or unknown, is let be."""
        with self._lock:
            self._cancelled.add(order)

    @torch.inference_mode()
    def step(self) -> bool:
        """One solver step of every row. False: there was none to step."""
        self._drop_cancelled()
        self._begin_orders()
        if not self._rows:
            return False
        started = time.perf_counter()
        try:
            self._step_rows()
        except Exception as error:  # whatever a network does: the orders in it fail, the server goes on
            logger.exception("a step of %d rows failed", len(self._rows))
            orders = {row.order for row in self._rows}
            self._reset()
            for order in orders:
                order.listener.failed(RuntimeError(f"the step failed: {type(error).__name__}"))
            return True
        self._told(time.perf_counter() - started, len(self._rows))
        self._tell_progress()
        self._hand_out()
        return True

    def _drop_cancelled(self) -> None:
        with self._lock:
            gone, self._cancelled = self._cancelled, set()
            if gone:
                self._waiting = deque(order for order in self._waiting if order not in gone)
        self._leave([i for i, row in enumerate(self._rows) if row.order in gone])

    def _begin_orders(self) -> None:
        states = []
        while order := self._next_order():
            rows: list[_Row] = []
            try:
                course = self._model.course(order.steps)
                for draw in range(order.n):
                    rows.append(_Row(order, draw, course, self._add(order, draw, course)))
                states.append(self._model.noise(order.seed, order.n))
            except Exception as error:  # this order's alone: the others go on
                for row in rows:
                    if row.watched is not None:
                        self._watch.remove(row.watched)
                order.listener.failed(_refusal(order, error))
                continue
            self._rows += rows
        if states:
            self._x = torch.cat([self._x, *states])
            self._groups = _Groups(self._rows, self._model.device)

    def give_up(self) -> None:
        """Fail every order. For the end of the thread that steps."""
        with self._lock:
            orders = {*self._waiting, *(row.order for row in self._rows)}
            self._waiting.clear()
        for order in orders:
            order.listener.failed(RuntimeError("the thread that steps has ended"))

    def _next_order(self) -> Order | None:
        with self._lock:
            if self._waiting and len(self._rows) + self._waiting[0].n <= self._max_rows:
                return self._waiting.popleft()
        return None

    def _add(self, order: Order, draw: int, course: Course) -> int | None:
        if order.config is None:
            return None
        return self._watch.add(order.config, order.seed, course.schedule, draw=draw)

    def _step_rows(self) -> None:
        rows, x, groups = self._rows, self._x, self._groups
        places = [(row.course, row.k) for row in rows]
        m = self._model.predict(x, places, groups.alone, groups.together)
        at, ids = groups.watched_at, groups.watched
        if ids:
            self._watch.observe(ids, *((x, m) if at is None else (x[at], m[at])))
        self._x = self._model.step(x, m, places)
        for row in rows:
            row.k += 1
        if ids and at is None:
            self._watch.correct_(ids, self._x)
        elif ids:
            states = self._x[at]
            if self._watch.correct_(ids, states):
                self._x[at] = states

    def _tell_progress(self) -> None:
        for order, k in {row.order: row.k for row in self._rows}.items():
            order.listener.progressed(k)

    def _hand_out(self) -> None:
        done = [i for i, row in enumerate(self._rows) if row.k == row.order.steps]
        finished: dict[Order, list[Drawn]] = {}
        for i in done:  # the images of an order begin together, so they end together, in the order of their draws
            row = self._rows[i]
            report = None if row.watched is None else self._watch.remove(row.watched)
            row.watched = None
            finished.setdefault(row.order, []).append(Drawn(self._x[i].clone(), report))
        self._leave(done)
        for order, images in finished.items():
            order.listener.finished(images)

    def _leave(self, gone: list[int]) -> None:
        if not gone:
            return
        for i in gone:
            if self._rows[i].watched is not None:
                self._watch.remove(self._rows[i].watched)
        staying = sorted(set(range(len(self._rows))) - set(gone))
        self._rows = [self._rows[i] for i in staying]
        self._x = self._x[staying]
        self._groups = _Groups(self._rows, self._model.device)


def _refusal(order: Order, error: Exception) -> Exception:
    if isinstance(error, ValueError):
        return error
    logger.error("an order of %d images of %d steps could not begin", order.n, order.steps, exc_info=error)
    return RuntimeError(f"the request could not begin: {type(error).__name__}")
