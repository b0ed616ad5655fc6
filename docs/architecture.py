"""Draws the rooms of the package from its imports: `python docs/architecture.py`.

A room stands one floor below the lowest room that imports it; an arrow leads to each room that is
imported and not already reached through another one.
"""

import ast
from html import escape
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "agent_kit"
PICTURE = PROJECT / "nbs/images/architecture.svg"
ROOMS = {
    "cli": "the commands",
    "deploy": "to Databricks Apps",
    "agent": "YOURS: agent, tools, scorers",
    "chat": "the panel in a notebook",
    "evaluate": "cases, scorers, statistics",
    "server": "HTTP, streams, the page",
    "runs": "one answer, from start to end",
    "store": "what is remembered",
    "loop": "model, tools, model, …",
    "tools": "functions, Python, MCP",
    "sandbox": "runs untrusted Python",
    "models": "what a model is asked",
    "tracing": "traces, on to MLflow",
    "context": "who asks",
    "databricks": "the workspace",
    "settings": "settings.ini",
    "redaction": "hides secrets",
    "protocol": "requests, items, events",
}
WIDTH, HEIGHT, GAP, RISE, MARGIN = 200, 46, 26, 92, 20


def imported_rooms() -> dict[str, set[str]]:
    """Return the rooms that each room imports, anywhere in its modules."""
    imports: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ROOMS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                above = ("agent_kit", *parts[:-1])[: len(parts) - node.level + 1]
                base = ".".join((*(above if node.level else ()), *filter(None, [node.module])))
                names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
                found = {n.split(".")[1] for n in names if n.startswith("agent_kit.")}
                imports[parts[0]] |= found & ROOMS.keys() - {parts[0]}
    # `server.chat()` imports the chat when it is called: the one way up.
    imports["server"].discard("chat")
    # The agent takes its names from the package, which takes them from the rooms.
    imports["agent"] |= {"server", "loop", "evaluate"}
    return imports


def reachable(room: str, imports: dict[str, set[str]]) -> set[str]:
    """Return every room below a room."""
    return imports[room].union(*(reachable(below, imports) for below in imports[room]))


def arrows(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports that no other path implies."""
    return [
        (room, below)
        for room, found in imports.items()
        for below in found
        if not any(below in reachable(other, imports) for other in found - {below})
    ]


def places(imports: dict[str, set[str]]) -> dict[str, tuple[float, float]]:
    """Return the upper left corner of each room's box: each floor is ordered by what is above."""
    floors: dict[str, int] = {}
    for room in ROOMS:
        above = [floors[other] for other in floors if room in imports[other]]
        floors[room] = 1 + max(above, default=-1)
    lines = arrows(imports)
    corners: dict[str, tuple[float, float]] = {}
    widest = max(list(floors.values()).count(floor) for floor in floors.values())
    for floor in range(max(floors.values()) + 1):
        row = [room for room in ROOMS if floors[room] == floor]
        if floor:
            above = {room: [corners[a][0] for a, b in lines if b == room] for room in row}
            row.sort(key=lambda room: sum(above[room]) / len(above[room]))
        left = MARGIN + (widest - len(row)) * (WIDTH + GAP) / 2
        for column, room in enumerate(row):
            corners[room] = (left + column * (WIDTH + GAP), MARGIN + floor * RISE)
    return corners


def picture() -> str:
    """Return the drawing as SVG."""
    imports = imported_rooms()
    corners = places(imports)
    width = max(x for x, _ in corners.values()) + WIDTH + MARGIN
    height = max(y for _, y in corners.values()) + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        'font-family="system-ui, sans-serif" text-anchor="middle">',
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#889"/></marker>',
    ]
    for upper, lower in sorted(arrows(imports)):
        (x1, y1), (x2, y2) = corners[upper], corners[lower]
        start, end, bend = y1 + HEIGHT, y2, min(40, (y2 - y1 - HEIGHT) / 2)
        x1, x2 = x1 + WIDTH / 2, x2 + WIDTH / 2
        path = f"M{x1:g} {start:g} C{x1:g} {start + bend:g} {x2:g} {end - bend:g} {x2:g} {end:g}"
        lines.append(f'<path d="{path}" fill="none" stroke="#889" marker-end="url(#tip)"/>')
    for room, (x, y) in sorted(corners.items()):
        fill, edge = ("#e6f4ea", "#2f7d46") if room == "agent" else ("#f4f6fb", "#5566aa")
        middle = x + WIDTH / 2
        lines += [
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}" '
            f'stroke="{edge}"/>',
            f'<text x="{middle:g}" y="{y + 19:g}" font-size="15" font-weight="600">{room}</text>',
            f'<text x="{middle:g}" y="{y + 36:g}" font-size="12" fill="#445">'
            f"{escape(ROOMS[room])}</text>",
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
