import asyncio
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

import bench_remote


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_each_answer_comes_later(delay: float) -> None:
    """Two questions on one connection: its handshake and each answer, whatever its size."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while question := await reader.readline():
                writer.write(question * 1000)
        finally:
            writer.close()

    async def ask() -> float:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        port = server.sockets[0].getsockname()[1]
        proxy = asyncio.ensure_future(bench_remote.serve_delayed(port, delay, told.set_result))
        start = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", await told)
        for number in range(2):
            question = f"{number}\n".encode()
            writer.write(question)
            assert await reader.readexactly(1000 * len(question))
        taken = time.perf_counter() - start
        writer.close()
        await writer.wait_closed()
        proxy.cancel()
        server.close()
        return taken

    taken = asyncio.run(ask())
    assert taken >= 3 * delay
    if delay == 0:
        assert taken < 2  # on a busy machine


def test_a_synthetic_manifest_opens(tmp_path: Path) -> None:
    bench_remote.write_manifest(tmp_path, 7, per_shard=3)
    figures = bench_remote.open_manifest(tmp_path)
    assert figures["episodes"] == 7 and figures["open_seconds"] > 0
