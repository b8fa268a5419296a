"""One player: what its page says is done, steps are taken in time, and pictures sent as it looks.

Everything that touches the model runs on the model's thread, one call after another, so players
take turns. Nothing is queued: a player waits for its own step before it asks for the next, and a
page that has not shown the last pictures gets only the newest later.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from tokenwm.errors import TokenwmError
from tokenwm.serving.play.beginnings import begin_at_picture, png, read_picture
from tokenwm.serving.play.messages import pack, read_actions, read_message, read_upload
from tokenwm.serving.play.recording import write_played
from tokenwm.serving.play.session import Session
from tokenwm.serving.play.stage import Stage

T = TypeVar("T")

UNSEEN = 2
"""Messages that may be on their way to a page; of what comes meanwhile only the last is sent."""
ORDERS = 8
"""Orders of a page that may wait for the model; then it is not listened to."""
RATE_STEPS = 10
"""Steps over which the imagined steps per second are counted."""

GOING_AWAY = 1001

Shown = tuple[dict[str, Any], tuple[bytes, ...]]
"""Header and pictures of a message."""


class Player:
    """A player, from the opening of its socket to the end.

    Args:
        stage: Model and data, shared by all players.
        socket: Its websocket, accepted.
    """

    def __init__(self, stage: Stage, socket: WebSocket) -> None:
        self.stage, self.socket = stage, socket
        self.session = Session(stage.model, stage.controls, stage.sampling, stage.limits.max_steps)
        self.held: list[list[float]] = []
        self.act_number = 0
        self.is_playing = self.follows = False
        self._has_news = asyncio.Event()  # something was decided that the clock should know
        self._can_show = asyncio.Event()
        self._newest: Shown | None = None  # what is still to be sent
        self._last: Shown | None = None
        self._orders: asyncio.Queue[bytes | Mapping[str, Any]] = asyncio.Queue(ORDERS)
        self._sent = self._shown = 0
        self._is_fresh = False
        self._last_word = time.monotonic()
        self._took: deque[float] = deque(maxlen=RATE_STEPS)

    async def play(self) -> None:
        """Play until the socket closes."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._welcome()
            works = (self._listen, self._obey, self._keep_time, self._show)
            tasks = [asyncio.create_task(work()) for work in works]
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        except WebSocketDisconnect:
            pass
        finally:
            for task in tasks:
                task.cancel()
            if tasks:  # gather would turn whoever cancels this one into a cancellation of its own
                await asyncio.wait(tasks)
                for task in tasks:
                    if not task.cancelled():
                        task.exception()  # has been looked at, and is no warning

    async def _welcome(self) -> None:
        await self.socket.send_bytes(pack(*self.stage.welcome))
        if self.stage.starts:
            key, step = self.stage.starts[0]
            await self._do({"type": "begin", "episode": key, "step": step})

    async def _listen(self) -> None:
        """Read on whatever the model does: a page that waits for its turn must stay alive."""
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                if message.get("bytes") is not None:
                    self._check_size(len(message["bytes"]))
                    await self._orders.put(message["bytes"])
                    continue
                order = read_message(message["text"])
                if order["type"] != "shown":  # which a page says by itself
                    self._last_word = time.monotonic()
                if not self._did(order):
                    await self._orders.put(order)
            except TokenwmError as error:
                await self._say(error)

    async def _obey(self) -> None:
        """Do what needs the model, one order after another."""
        while True:
            order = await self._orders.get()
            try:
                if isinstance(order, bytes):
                    await self._upload(order)
                else:
                    await self._do(order)
            except TokenwmError as error:
                await self._say(error)

    def _did(self, message: Mapping[str, Any]) -> bool:
        """Do what needs no model; False if it is something else."""
        match message["type"]:
            case "shown":
                self._shown = max(self._shown, min(message["number"], self._sent))
                self._can_show.set()
            case "act":
                actions = read_actions(message["actions"])
                for action in actions:
                    self.stage.controls.check(action)
                self._is_fresh |= actions != self.held
                self.held, self.act_number = actions, message["number"]
                self._has_news.set()
            case "play":
                self._took.clear()
                self._decide(is_playing=message["on"])
            case "follow":
                self._decide(follows=message["on"])
            case _:
                return False
        return True

    def _decide(self, *, is_playing: bool | None = None, follows: bool | None = None) -> None:
        """Change what the clock does, and tell the page."""
        self.is_playing = self.is_playing if is_playing is None else is_playing
        self.follows = self.follows if follows is None else follows
        self._has_news.set()
        if self._last is not None:
            header, pictures = self._last
            self._publish(
                ({**header, "playing": self.is_playing, "follows": self.follows}, pictures)
            )

    async def _do(self, message: Mapping[str, Any]) -> None:
        session = self.session
        if not session.history and message["type"] not in ("begin", "look"):
            raise TokenwmError("begin at a recorded step, or upload a picture, first")
        match message["type"]:
            case "step":
                self.is_playing = False
                await self._step()
            case "look":
                place = message["episode"], message["step"]
                picture = await self._on_model(lambda: png(self.stage.looked_at(*place)))
                await self.socket.send_bytes(pack({"type": "look"}, [picture]))
            case "save":
                await self._save()
            case "begin":
                self.is_playing = False
                place = message["episode"], message["step"]
                await self._change(lambda: session.begin(self.stage.begin(*place)), rests=True)
            case "back":
                self.is_playing = False
                await self._change(lambda: session.go_back(message["to"]))
            case "luck":
                await self._change(lambda: setattr(session, "seed", message["seed"]))
            case "compare" if message["on"]:
                await self._change(session.compare)
            case "compare":
                await self._change(lambda: self._keep(message["keep"]))

    def _keep(self, row: int) -> None:
        """Go on with one of the futures, and with its action."""
        self.session.keep(row)
        self.held = [self.held[min(row, len(self.held) - 1)]]

    def _check_size(self, num_bytes: int) -> None:
        most = self.stage.limits.max_upload_bytes
        if num_bytes > most:
            raise TokenwmError(f"the picture has {num_bytes} bytes; at most {most} are read")

    async def _upload(self, content: bytes) -> None:
        state, file = read_upload(content)
        model, now = self.stage.model, self.session.beginning
        size = model.tokenizer.image_size
        picture = await asyncio.to_thread(read_picture, file, size)
        others = self.stage.blank if now is None else now.frames
        given = None if model.vocabulary.state is None else state
        self.is_playing = False
        await self._change(
            lambda: self.session.begin(begin_at_picture(model, picture, others, given)),
            rests=True,
        )

    async def _save(self) -> None:
        stage, session, out = self.stage, self.session, self.stage.out
        if out is None or session.beginning is None:
            raise TokenwmError("nothing is saved here; start with --out DIR, and begin somewhere")
        beginning, history, row = session.beginning, list(session.history), session.followed_row
        temperature = stage.sampling.temperature
        path = await self._on_thread(
            stage.saver,  # nobody's world waits for it
            lambda: write_played(
                out, stage.model, stage.controls, beginning, history, row, temperature
            ),
        )
        await self.socket.send_bytes(pack({"type": "saved", "path": str(path)}, []))

    async def _change(self, change: Callable[[], object], *, rests: bool = False) -> None:
        """Change the session, and show it; ``rests``: the robot stands still at first."""

        def changed() -> Shown:
            change()
            if rests and self.session.beginning is not None:
                self.held = [self.stage.controls.rest(self.session.beginning.state)]
            # An action for each future, whatever was undone or begun to be compared.
            last = len(self.held) - 1
            self.held = [self.held[min(row, last)] for row in range(self.session.num_rows)]
            return self._present()

        shown = await self._on_model(changed)
        self._has_news.set()
        self._publish(shown)

    async def _keep_time(self) -> None:
        """Take a step in each period: at once when the action changes, else at the period's end.

        So a key need not wait for the clock, and the world is no faster for it.
        """
        period = 1.0 / self.stage.model.control_rate
        opens = time.monotonic() - period
        while True:
            self._has_news.clear()
            now = time.monotonic()
            due = opens if self._is_fresh else opens + period
            runs = self.is_playing and bool(self.session.history)
            if not runs or now < due:
                wait = max(0.0, due - now) if runs else None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._has_news.wait(), wait)
                continue
            if now - self._last_word > self.stage.limits.idle_seconds:
                await self._rest("nobody steered for a while: paused")
                continue
            opens = max(opens + period, now - period)
            try:
                await self._step()
            except TokenwmError as error:
                await self._rest(error)

    async def _rest(self, why: object) -> None:
        self._decide(is_playing=False)
        await self._say(why)

    async def _step(self) -> None:
        held, number = None if self.follows else list(self.held), self.act_number
        self._is_fresh = False

        def stepped() -> Shown:
            self.session.step(held)
            self._took.append(time.monotonic())
            return self._present()

        header, pictures = await self._on_model(stepped)
        self._publish(({**header, "act": number}, pictures))

    def _present(self) -> Shown:
        """The moment as it is to be shown; on the model's thread."""
        session = self.session
        if not session.history:
            return {"type": "frame", "step": -1}, ()
        moment, beginning, step = session.history[-1], session.beginning, session.step_number
        assert beginning is not None
        truth = None if beginning.key is None else self.stage.truth(beginning, step)
        took, actions = list(self._took), moment.actions  # the page may start it anew meanwhile
        header = {
            "type": "frame",
            "step": step,
            "episode": beginning.key,
            "first_step": beginning.step,
            "playing": self.is_playing,
            "follows": self.follows,
            "can_follow": session.done() is not None,
            "futures": session.num_rows,
            "seed": session.seed,
            "held": self.held,
            "taken": None if actions is None else [self.stage.controls.first(a) for a in actions],
            "rate": (len(took) - 1) / max(1e-9, took[-1] - took[0]) if len(took) > 1 else None,
            "truth": truth is not None,
            **moment.numbers,
        }
        return header, moment.pictures if truth is None else (*moment.pictures, truth)

    def _publish(self, shown: Shown) -> None:
        self._newest = self._last = shown
        self._can_show.set()

    async def _show(self) -> None:
        while True:
            await self._can_show.wait()
            self._can_show.clear()
            if self._newest is not None and self._sent - self._shown < UNSEEN:
                (header, pictures), self._newest = self._newest, None
                self._sent += 1
                await self.socket.send_bytes(pack({**header, "number": self._sent}, pictures))

    async def _say(self, what: object) -> None:
        await self.socket.send_bytes(pack({"type": "note", "text": str(what)}, []))

    async def _on_model(self, work: Callable[[], T]) -> T:
        return await self._on_thread(self.stage.worker, work)

    async def _on_thread(self, thread: Executor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        except (RuntimeError, asyncio.CancelledError):
            if not self.stage.is_closed:
                raise
            raise WebSocketDisconnect(GOING_AWAY) from None
