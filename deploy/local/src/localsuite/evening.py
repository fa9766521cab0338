"""Plays the evening: runs the game, causes the incidents, records what there is to see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from localsuite.game.feed import GameSample, StoryTurn, parse_line
from localsuite.incidents import cause_incidents
from localsuite.observe.picture import SuitePicture
from localsuite.observe.recording import Recording
from localsuite.ports import Ports
from localsuite.supervision.child import ChildProcess, ChildSpec, describe_exit, last_lines
from localsuite.timing import Evening
from localsuite.view.live import View

__all__ = ["play_evening"]

_RECORD_SECONDS = 0.5
# After the last player has left, until capacity has come down: production seconds.
_AFTERMATH_SECONDS = 420.0


@dataclass(slots=True)
class _GameResult:
    finished: bool = False


async def play_evening(
    evening: Evening,
    game: ChildSpec,
    *,
    ports: Ports,
    picture: SuitePicture,
    recording: Recording,
    view: View,
) -> bool:
    """Plays to the end of the aftermath; True when the game told the fate of every request."""

    def tell(kind: str) -> Callable[[str], None]:
        return lambda text: view.remark(picture.remark(kind, text))

    child = await ChildProcess.start(game)
    picture.begin_evening()
    result = _GameResult()
    try:
        async with asyncio.TaskGroup() as group:
            recorder = group.create_task(_record(evening, picture, recording))
            incidents = group.create_task(
                cause_incidents(
                    evening, picture, f"http://{ports.address('aws')}", tell("incident")
                )
            )
            await _listen(child, picture, view, result, tell("game"))
            incidents.cancel()
            if not result.finished:
                returncode = await child.wait()
                tell("service")(f"the game {describe_exit(returncode)} before its end")
                for line in last_lines(game.log_file, count=4):
                    tell("service")(f"  {line}")
            await asyncio.sleep(evening.shortened(_AFTERMATH_SECONDS))
            recorder.cancel()
    finally:
        await asyncio.shield(child.stop(grace_seconds=2.0))
    return result.finished


async def _listen(
    child: ChildProcess,
    picture: SuitePicture,
    view: View,
    result: _GameResult,
    tell: Callable[[str], None],
) -> None:
    while line := await child.output.readline():
        try:
            kind, told = parse_line(line.decode())
        except ValueError as error:
            tell(str(error))
            continue
        if isinstance(told, GameSample):
            if picture.game is None:
                # The evening's clock is the game's, whose process took a moment to start.
                picture.begin_evening()
            picture.game = told
            result.finished = result.finished or kind == "finished"
        elif isinstance(told, StoryTurn):
            picture.story.append(told)
            view.story(told)
        else:
            tell(told)


async def _record(evening: Evening, picture: SuitePicture, recording: Recording) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            picture.phase = evening.phase(picture.evening_seconds)
            if picture.game is not None:
                recording.take(picture)
            await asyncio.sleep(_RECORD_SECONDS)
