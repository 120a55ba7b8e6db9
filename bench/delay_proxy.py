"""A TCP proxy on this machine that adds a round trip, so that a page is measured as from afar."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager


@contextmanager
def delaying_proxy(target_port: int, round_trip: float) -> Iterator[int]:
    """Forward 127.0.0.1:(yielded port) to target_port, each way `round_trip / 2` seconds late.

    Throughput is not limited: every piece of data waits the same time, in order.
    """
    loop = asyncio.new_event_loop()
    started = threading.Event()
    ports: list[int] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        task = loop.create_task(deliver())
        try:
            while data := await reader.read(1 << 16):
                queue.put_nowait((loop.time() + round_trip / 2, data))
        except ConnectionError:
            pass  # the browser closed the page: the end of the stream, like an empty read
        queue.put_nowait((loop.time() + round_trip / 2, b""))
        await task

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target_port)
        await asyncio.gather(
            pump(reader, inner_writer), pump(inner_reader, writer), return_exceptions=True
        )

    async def main(serve: Callable[..., Awaitable[asyncio.Server]]) -> None:
        server = await serve(connect, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(main(asyncio.start_server))
        loop.run_forever()
        open_ends = asyncio.all_tasks(loop)  # pages that are closed while data is on its way
        for task in open_ends:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*open_ends, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
