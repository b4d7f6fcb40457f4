# SPDX-License-Identifier: MIT
"""The thread that steps a sampler as long as there are rows, and sleeps when there are none."""

import logging
import threading

from ascedfast.server.sampler import Order, Sampler

logger = logging.getLogger("ascedfast.server")


class Stepper:
    """Runs from when it is made until ``stop``."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._work, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="stepper", daemon=True)
        self._thread.start()

    def order(self, order: Order) -> None:
        """As the sampler's."""
        self._sampler.order(order)
        self._work.set()
        if not self.is_alive:
            self._sampler.give_up()

    def cancel(self, order: Order) -> None:
        """As the sampler's."""
        self._sampler.cancel(order)
        self._work.set()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Return when the step that is being run has ended."""
        self._stopped.set()
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._work.clear()  # before looking: an order that comes meanwhile wakes the coming wait
                if not self._sampler.step():
                    self._work.wait()
        except Exception:  # Ray Serve replaces the replica; nobody waits for that
            logger.exception("the thread that steps has ended")
            self._sampler.give_up()
