"""`verify`: hold every mirror of a mounted group against its image, now and all of it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aimfuse.cli.arguments import GroupArgument, JsonOption, StateOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.cli.progress import shown_progress
from aimfuse.errors import MirrorDiffers, Unavailable
from aimfuse.units import MIB, format_bytes

if TYPE_CHECKING:
    from aimfuse.manager.verify import Difference, Mirror, Report, Verdict

WHY = "it differs from the image"
REWRITTEN_BYTES_MAX = 256 * MIB
"""What is mended by writing it again; more comes as a copy, to one mirror and not through all."""


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("verify")(verify)


def verify(
    image: GroupArgument,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Take the image for right where they differ."),
    ] = False,
    dest: Annotated[
        list[str] | None,
        typer.Option("--dest", metavar="NAME", help="This destination only; may be repeated."),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option("--volume", metavar="NAME", help="This volume only; may be repeated."),
    ] = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every byte of the mirrors with the image, while both are in use.

    Where they differ nobody can tell which is right: look before --repair. It writes again what
    the image holds there; the mirror's history keeps what it held. Of more than 256 MiB a mirror
    gets a copy, which ends its history. Exit 17 if they differ, 20 if one is away.
    """
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.manager.target import find_source  # noqa: PLC0415
        from aimfuse.manager.verify import verify as compare  # noqa: PLC0415
        from aimfuse.manager.verify import whole_volumes  # noqa: PLC0415

        state_dir = find_source(image, state)
        with shown_progress() as report:
            parts = whole_volumes(state_dir, volume or [])
            verdict = compare(state_dir, parts, dest or [], report)
            repaired = [one for one in verdict.mirrors if repair and one.differences]
            if repaired:
                verdict.mirrors = _after_repair(state_dir, verdict, repaired, report)
        if as_json:
            typer.echo(json.dumps(_as_json(verdict, repaired), indent=2))
        else:
            _show(verdict, repaired)
        _judge(verdict, image)


def _after_repair(
    state_dir: Path, verdict: "Verdict", wrong: "list[Mirror]", report: "Report"
) -> "list[Mirror]":
    """Mend what differs in each mirror that is *wrong*, and compare that again."""
    from aimfuse.config import load  # noqa: PLC0415 - as above
    from aimfuse.coordinator.request import Range, Request, write_request  # noqa: PLC0415
    from aimfuse.disk import Disk  # noqa: PLC0415
    from aimfuse.manager.copying import follow  # noqa: PLC0415
    from aimfuse.manager.verify import Part, rewrite  # noqa: PLC0415
    from aimfuse.manager.verify import verify as compare  # noqa: PLC0415

    config = load(state_dir)
    after = {one.name: one for one in verdict.mirrors}
    for one in wrong:
        found = one.differences
        parts = [Part(each.volume, each.offset, each.offset + each.length) for each in found]
        if sum(each.length for each in found) <= REWRITTEN_BYTES_MAX:
            rewrite(state_dir, parts, report)
        else:
            ranges = tuple(Range(each.volume, each.offset, each.length) for each in found)
            request = Request(is_whole=False, ranges=ranges, why=WHY)
            write_request(Disk(), config.destination_dir(one.name), request)
            follow(state_dir, one.name, report)
        (after[one.name],) = compare(state_dir, parts, [one.name], report).mirrors
    return list(after.values())


def _as_json(verdict: "Verdict", repaired: "list[Mirror]") -> dict[str, Any]:
    mended = {one.name: [asdict(each) for each in one.differences] for one in repaired}
    return {
        "ok": not (verdict.unreadable or any(map(_is_wrong, verdict.mirrors))),
        "volumes": verdict.volumes,
        "read_bytes": verdict.read_bytes,
        "unreadable": [
            {"volume": one.volume, "offset": one.offset, "length": one.end - one.offset}
            for one in verdict.unreadable
        ],
        "destinations": [
            {
                "name": one.name,
                "compared": not one.problem,
                "problem": one.problem or None,
                "differences": [asdict(each) for each in one.differences],
                "repaired": mended.get(one.name, []),
            }
            for one in verdict.mirrors
        ],
    }


def _is_wrong(mirror: "Mirror") -> bool:
    return bool(mirror.problem or mirror.differences)


def _show(verdict: "Verdict", repaired: "list[Mirror]") -> None:
    from aimfuse.manager.layout import safe  # noqa: PLC0415 - as above

    many = "1 volume" if len(verdict.volumes) == 1 else f"{len(verdict.volumes)} volumes"
    typer.echo(f"Hashed {many}, {format_bytes(verdict.read_bytes)} of data.")
    for part in verdict.unreadable:
        where = f"{safe(part.volume)}:{part.offset}+{part.end - part.offset}"
        typer.echo(f"The image cannot be read at {where}.")
    for mirror in repaired:
        for one in mirror.differences:
            typer.echo(f"{safe(mirror.name)}: {_place(one)} differed, and was mended.")
    for mirror in verdict.mirrors:
        for one in mirror.differences:
            typer.echo(f"{safe(mirror.name)}: {_place(one)} differs.")
        if mirror.problem:
            typer.echo(f"{safe(mirror.name)}: not compared: {safe(mirror.problem)}")
        elif not mirror.differences:
            typer.echo(f"{safe(mirror.name)}: the same.")


def _place(one: "Difference") -> str:
    """Return where it is, as `aimfuse sync --range` takes it, and at which record."""
    from aimfuse.manager.layout import safe  # noqa: PLC0415 - as above

    return f"{safe(one.volume)}:{one.offset}+{one.length} (at {one.epoch}:{one.seq})"


def _judge(verdict: "Verdict", image: Path) -> None:
    """End with the code of the worst that was found."""
    wrong = [one.name for one in verdict.mirrors if one.differences]
    if verdict.unreadable:
        raise MirrorDiffers(
            "the image cannot be read everywhere",
            hint="Look at its disk. What cannot be read may still be right in a mirror.",
        )
    if wrong:
        raise MirrorDiffers(
            f"{', '.join(wrong)} and the image differ",
            hint="Find out which of them is right. If it is the image: "
            f"`aimfuse verify {image} --repair`.",
        )
    away = [one.name for one in verdict.mirrors if one.problem]
    if away:
        raise Unavailable(
            f"not compared: {', '.join(away)}", hint="Run it again once they can be reached."
        )
