"""Kernels that are started before anyone asks for their page."""

import asyncio
import os
from contextvars import ContextVar
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from voila.utils import ENV_VARIABLE
from voila.voila_kernel_manager import voila_kernel_manager_factory

from qviz.core.memory import available_memory

# A taken warm kernel is replaced after this: by then the page that took it has been drawn.
REFILL_DELAY_SECONDS = 3.0
# Below this much free memory no further kernel is warmed; pages then start cold, and work.
KEEP_FREE_BYTES = 1 << 30

# Kernels that were given to the page which is being sent in this context.
given: ContextVar[list[str] | None] = ContextVar("given", default=None)

_PreheatedKernels: Any = voila_kernel_manager_factory(AsyncMappingKernelManager, True, 0)


class WarmKernels(_PreheatedKernels):  # type: ignore[misc]
    """Voilà's pool of kernels that have already run their notebook, filled more carefully.

    Voilà warms every notebook that it finds, all at the same moment, and lets a visitor wait for a
    kernel that has not even been started. Here one kernel starts at a time, in the order of
    `pages`, memory permitting, and a visitor who comes before a page is warm gets a fresh kernel.
    """

    def __init__(self, *, pages: list[str], size: int, **kwargs: Any) -> None:
        self._pages: list[str] = []  # the parent fills pools while it is constructed: not yet
        self._size = size
        self._closing = False
        self._starting: asyncio.Task[Any] | None = None
        self._met: set[str] = set()  # kernels that a page has been connected to
        self._one_at_a_time = asyncio.Semaphore(1)
        super().__init__(**kwargs)
        self._pages = pages

    def warm_up(self, *pages: str) -> None:
        """Ask for warm kernels of these pages, or of all; they start one after the other."""
        for page in pages or self._pages:
            self.fill_if_needed(delay=0, notebook_name=page)

    def fill_if_needed(
        self,
        delay: float | None = None,
        notebook_name: str | None = None,
        extra_kernel_env_variables: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if notebook_name not in self._pages or self._closing:
            return
        pool = self._pools.setdefault(notebook_name, [])
        pool[:] = [entry for entry in pool if not failed(entry)]
        for _ in range(self._size - len(pool)):
            wait = REFILL_DELAY_SECONDS if delay is None else delay
            entry = asyncio.ensure_future(self._warm(notebook_name, wait))
            entry.add_done_callback(self._note)
            pool.append(entry)

    def _note(self, entry: "asyncio.Future[Any]") -> None:
        if failed(entry) and not entry.cancelled() and not self._closing:
            self.log.warning("A page stays cold: %s", entry.exception())

    async def _warm(self, page: str, delay: float) -> dict[str, Any]:
        await asyncio.sleep(delay)
        await self._one_at_a_time.acquire()
        self._starting = asyncio.current_task()
        try:
            self._check_room(page)
            content: dict[str, Any] = await self._initialize(
                page, None, path=os.path.dirname(page), env=self._environment()
            )
        except BaseException:
            self._one_at_a_time.release()
            raise
        # The next one starts when this one has run its cells, not when its process exists.
        content["task"].add_done_callback(lambda _: self._one_at_a_time.release())
        return content

    def _check_room(self, page: str) -> None:
        free = available_memory()
        if self._closing or (free is not None and free < KEEP_FREE_BYTES):
            raise RuntimeError(f"too little free memory to keep {page} ready")

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            ENV_VARIABLE.VOILA_BASE_URL: self.parent.base_url,
            ENV_VARIABLE.VOILA_SERVER_URL: self.parent.server_url,
            ENV_VARIABLE.VOILA_APP_PORT: str(self.parent.port),
            ENV_VARIABLE.VOILA_PREHEAT: "True",
        }

    def get_pool_size(self, notebook_name: str) -> int:
        """Kernels that a visitor can have now; those still waiting to be started do not count."""
        return sum(ready(entry) for entry in self._pools.get(notebook_name, []))

    async def get_rendered_notebook(self, notebook_name: str, **kwargs: Any) -> Any:
        pool = self._pools[notebook_name]
        pool.sort(key=lambda entry: not ready(entry))  # the parent takes the first
        found = await super().get_rendered_notebook(notebook_name, **kwargs)
        _note_given(found[2])
        return found

    async def start_kernel(self, *args: Any, **kwargs: Any) -> str:
        kernel: str = await super().start_kernel(*args, **kwargs)
        _note_given(kernel)
        return kernel

    def notify_connect(self, kernel_id: str) -> None:
        self._met.add(kernel_id)
        super().notify_connect(kernel_id)

    def remove_kernel(self, kernel_id: str) -> None:
        self._met.discard(kernel_id)
        super().remove_kernel(kernel_id)

    async def end_unless_met(self, kernel_id: str) -> None:
        """End a kernel whose page never connected: the visitor left while it was being prepared."""
        if kernel_id in self and kernel_id not in self._met:
            await self.shutdown_kernel(kernel_id, now=True)

    async def shutdown_all(self, *args: Any, **kwargs: Any) -> None:
        self._closing = True
        for pool in self._pools.values():
            for entry in pool:
                # The one that is being started may finish: cut short, its process would stay.
                if not entry.done() and entry is not self._starting:
                    entry.cancel()
            pool[:] = [entry for entry in pool if entry.done() or entry is self._starting]
        # Kernels hold nothing worth saving, and one interrupted while it starts prints a traceback
        # into the terminal.
        await super().shutdown_all(now=True)

    async def _async_shutdown_kernel(self, kernel_id: str, **kwargs: Any) -> None:
        try:
            await super()._async_shutdown_kernel(kernel_id, **kwargs)
        except HTTPError as error:
            # All are ended at once; one that was already ending is gone, as it should be.
            if not (self._closing and error.status_code == 404):
                raise


def _note_given(kernel_id: str) -> None:
    kernels = given.get()
    if kernels is not None:
        kernels.append(kernel_id)


def ready(entry: "asyncio.Future[Any]") -> bool:
    return entry.done() and not entry.cancelled() and entry.exception() is None


def failed(entry: "asyncio.Future[Any]") -> bool:
    return entry.done() and not ready(entry)
