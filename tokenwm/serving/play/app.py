"""The application (ASGI) of a page to play in: three files and a websocket."""

import logging
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tokenwm.serving.metrics import Metrics
from tokenwm.serving.play.player import Player
from tokenwm.serving.play.stage import PlayLimits, Stage

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FILES = {
    "/": ("play.html", "text/html"),
    "/play.css": ("play.css", "text/css"),
    "/play.js": ("play.js", "text/javascript"),
    "/drawing.js": ("drawing.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
TRY_AGAIN_LATER = 1013


class PlayService:
    """A page, the players on it and the stage that they share.

    Args:
        stage: The stage.

    Attributes:
        players: Those who play now.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.metrics = stage, Metrics()
        self.players: set[Player] = set()

    @property
    def limits(self) -> PlayLimits:
        """Limits of the stage."""
        return self.stage.limits

    def app(self) -> Starlette:
        """Return the routes; :class:`~tokenwm.serving.app.Guard` goes in front."""
        files = [Route(path, self._file) for path in FILES]
        return Starlette(
            routes=[*files, Route("/health", self._health), WebSocketRoute("/play", self._play)]
        )

    def close(self, grace: float = 0.0) -> None:
        """Stop; see :meth:`Stage.close`."""
        self.stage.close(grace)

    async def _file(self, request: Request) -> Response:
        name, kind = FILES[request.scope["path"]]
        return Response((FOLDER / name).read_bytes(), media_type=kind, headers=HEADERS)

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "players": len(self.players)})

    async def _play(self, socket: WebSocket) -> None:
        await socket.accept()
        if len(self.players) >= self.limits.max_players:
            reason = f"{len(self.players)} people play already; try again later"
            return await socket.close(TRY_AGAIN_LATER, reason)
        player = Player(self.stage, socket)
        self.players.add(player)
        try:
            await player.play()
        except Exception:
            logger.exception("a player's world broke")
            await socket.close(1011, "internal error; see the server's log")
        finally:
            self.players.discard(player)
