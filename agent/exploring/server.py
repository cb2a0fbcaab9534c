"""The ASGI application: one page, its few files, and one socket.

Nothing that comes over the network names a file: the page's files are read once, and episodes are named here. Whoever
asks must be on this machine, or know the key; a page of another origin cannot ask through a browser that is.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from agent.exploring.messages import Head, pack, parse
from agent.exploring.session import Session
from agent.exploring.studio import Studio, Studios
from agent.launch.command import expected_errors, one_line

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
LOOPBACK = ("127.0.0.1", "::1", "localhost")
INBOX = 16  # messages that wait for one viewer; what comes faster is dropped
REFUSED, FULL, TOO_FAST, TAKEN_OVER = 4403, 4429, 4408, 4409  # codes with which a socket is closed
MAX_DROPPED = 1000  # messages, after which a viewer is no person
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Door:
    """Who may come in. host: where the server listens. key: empty on loopback, where nobody else can ask."""

    host: str
    key: str = ""

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and len(self.key) < 16:
            raise ValueError(f"host={self.host} can be reached from elsewhere: it needs a key of at least 16 letters")

    def refuses(self, asked: HTTPConnection) -> str:
        """Why not; empty for whoever may. The host's name is checked because another page's name may lead here too."""
        host = asked.headers.get("host", "")
        if self.host in LOOPBACK and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return "this server answers to 127.0.0.1 and localhost alone"
        origin = asked.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "another site's page may not ask this server"
        given = asked.query_params.get("key", "")
        if self.key and not hmac.compare_digest(given.encode(), self.key.encode()):
            return "the address lacks the key that the command printed"
        return ""


def application(studios: Studios, door: Door) -> Starlette:
    """The server of these worlds."""
    viewers = studios.config.viewers
    files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in KINDS}
    # By the viewer's name. Whose connection is lost comes back to his moments; the one who is away longest, the first
    # without a socket, makes room for another.
    sessions: dict[str, Session] = {}
    connected: dict[str, WebSocket] = {}

    async def page(request: Request) -> Response:
        refused = door.refuses(request)
        return PlainTextResponse(refused, 403) if refused else file(files, "index.html")

    async def part(request: Request) -> Response:
        return file(files, request.path_params["name"])

    async def socket(websocket: WebSocket) -> None:
        refused = door.refuses(websocket)
        await websocket.accept()  # a refusal without it has no words in a browser
        if refused:
            await websocket.close(REFUSED, refused)
            return
        session = sessions.get(websocket.query_params.get("session", ""))
        studio = None
        if session is None and len(connected) < viewers:  # nothing is built for whoever is turned away
            studio = await chosen(websocket, studios)
        if session is None:
            away = [name for name in sessions if name not in connected]
            if studio is None or len(connected) >= viewers:
                await websocket.close(FULL, f"{len(connected)} people explore here already: close another tab")
                return
            if len(sessions) >= viewers:
                del sessions[away[0]]
            session = Session(studio, websocket.send_bytes, secrets.token_urlsafe(16), studios.choices)
        elif session.name in connected:  # the old connection is dead, and nobody has noticed yet
            await connected[session.name].close(TAKEN_OVER, "this page came back by another connection")
        session.send = websocket.send_bytes
        sessions[session.name], connected[session.name] = session, websocket
        try:
            await serve(websocket, session)
        finally:
            if connected.get(session.name) is websocket:
                del connected[session.name], sessions[session.name]
                if session.timeline is not None:
                    sessions[session.name] = session  # the last of those that are away

    return Starlette(routes=[Route("/", page), Route("/{name}", part), WebSocketRoute("/socket", socket)])


def file(files: Mapping[str, bytes], name: str) -> Response:
    """One of the page's files."""
    if name not in files:
        return PlainTextResponse("there is no such page", 404, HEADERS)
    return Response(files[name], 200, HEADERS, KINDS[Path(name).suffix])


async def chosen(websocket: WebSocket, studios: Studios) -> Studio:
    """What the page's address asks for; the first, and a message, where that cannot be had."""
    asked = websocket.query_params
    try:
        return await studios.get(asked.get("task", ""), asked.get("checkpoint", ""))
    except expected_errors() as error:
        await complain(websocket, one_line(error))
        return studios.first


async def serve(websocket: WebSocket, session: Session) -> None:
    """Carry out what a page asks for, one after the other, until it goes."""
    inbox: asyncio.Queue[tuple[Head, int]] = asyncio.Queue(INBOX)
    working = asyncio.create_task(work(websocket, session, inbox))
    dropped = 0
    try:
        while not working.done():
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                command = parse(message.get("text") or "")
                if command["do"] == "stop":
                    session.stop()
                else:
                    inbox.put_nowait((command, session.stops))
            except ValueError as error:
                await complain(websocket, str(error))
            except asyncio.QueueFull:
                dropped += 1
                if dropped > MAX_DROPPED:
                    await websocket.close(TOO_FAST, "messages come faster than they can be carried out")
                    return
                if dropped % INBOX == 1:
                    await complain(websocket, "messages come faster than they can be carried out: some were dropped")
    except (WebSocketDisconnect, RuntimeError):  # the page went while it was being told something
        return
    finally:
        session.stop()  # what is under way in a thread ends after its present step, and nobody is told
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)  # what fails now fails because nobody listens


async def work(websocket: WebSocket, session: Session, inbox: asyncio.Queue[tuple[Head, int]]) -> None:
    """Carry out the commands of an inbox. Whatever goes wrong becomes a message on the page."""
    with suppress(WebSocketDisconnect):
        await session.greet()
        while True:
            message, since = await inbox.get()
            try:
                await session.handle(message, since)
            except WebSocketDisconnect:
                raise
            except Exception as error:  # noqa: BLE001  the server outlives every command
                if not isinstance(error, expected_errors()):
                    traceback.print_exception(error, file=sys.stderr)
                    await complain(websocket, "something is wrong with the server: its terminal says what")
                else:
                    await complain(websocket, one_line(error))
            await websocket.send_bytes(pack({"tell": "done", "n": reply_to(message)}))


def reply_to(message: Head) -> int | None:
    """The number that the page gave its message, to know when it is done."""
    number = message.get("n")
    return number if isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**53 else None


async def complain(websocket: WebSocket, text: str) -> None:
    """Say on the page what went wrong."""
    await websocket.send_bytes(pack({"tell": "error", "text": text}))
