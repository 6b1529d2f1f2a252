"""The report's pictures: inline SVG without a library, coloured by the page's CSS classes, each with a title.

Bars and strips are placed in per cent of their width, so that they stay sharp and undistorted at any; text stays text.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from pipelines.report.text import Range, percent, plain

Pair = tuple[float, float]

WIDTH, HEIGHT = 430.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 16.0, 14.0, 46.0
LETTER = 6.8
"""Mean width of a letter of the scatter's labels, in its own units."""
LONGEST = 24
"""Letters of a label beyond which it is cut; the whole name is in the point's own title."""
NARROW = 230.0
"""Least width, in pixels, at which a histogram is shown."""


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] to [start, end]; what lies outside is drawn on the edge."""

    low: float
    high: float
    start: float = 0.0
    end: float = 100.0

    def at(self, value: float) -> float:
        """Position of `value`, clamped to the ends."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def domain(values: Iterable[float], pad: float = 0.06) -> Pair:
    """The smallest range that holds the values and zero, with a little air; never empty."""
    found = [0.0, *values]
    low, high = min(found), max(found)
    if low == high:
        return -1.0, 1.0
    air = pad * (high - low)
    return (low - air if low < 0 else low - air / 2), (high + air if high > 0 else high + air / 2)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within [low, high], a step of 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def svg(title: str, body: Sequence[str], *, size: str, kind: str, description: str = "") -> Markup:
    """An SVG element with its title and description; `body` is markup already, the rest is escaped here."""
    words = Markup("<title>{}</title>").format(title) + (
        Markup("<desc>{}</desc>").format(description) if description else ""
    )
    return Markup(f'<svg class="{kind}" {size} role="img">') + words + Markup("".join(body)) + Markup("</svg>")


def _line(x1: str, y1: str, x2: str, y2: str, kind: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}"/>'


def _rect(x: float, y: float, width: float, height: float, tone: str, inside: str) -> str:
    """A filled rectangle; x and width in per cent, y and height in pixels."""
    place = f'x="{_pc(x)}" y="{y:.1f}" width="{_pc(width)}" height="{height:.1f}"'
    return f'<rect {place} class="fill {tone}">{inside}</rect>'


def _pc(value: float) -> str:
    return f"{value:.2f}%"


def interval_bar(found: Range, scale: Scale, title: str, tone: str, bound: float | None = None) -> Markup:
    """A row of a forest plot, 100% x 38: zero, margin (dashed), interval, estimate; arrows where it goes on outside."""
    upright = [(0.0, "zero")] + ([] if bound is None else [(bound, "bound")])
    body = [_line(_pc(scale.at(x)), "0", _pc(scale.at(x)), "38", kind) for x, kind in upright if scale.holds(x)]
    if found.low is not None and found.high is not None:
        body.append(_line(_pc(scale.at(found.low)), "19", _pc(scale.at(found.high)), "19", f"whisker {tone}"))
        for end in (found.low, found.high):
            if scale.holds(end):
                body.append(_line(_pc(scale.at(end)), "15", _pc(scale.at(end)), "23", f"whisker {tone}"))
        if found.low < scale.low:
            body.append(f'<svg x="0" overflow="visible"><path d="M7 14 L1 19 L7 24" class="arrow {tone}"/></svg>')
        if found.high > scale.high:
            body.append(f'<svg x="100%" overflow="visible"><path d="M-7 14 L-1 19 L-7 24" class="arrow {tone}"/></svg>')
    if found.value is not None and scale.holds(found.value):
        body.append(f'<circle cx="{_pc(scale.at(found.value))}" cy="19" r="4.5" class="dot {tone}"/>')
    return svg(title, body, size='width="100%" height="38"', kind="bar")


def axis(scale: Scale, show: Callable[[float], str], title: str) -> Markup:
    """The scale beneath a forest plot, 100% x 22; labels at the edges turn inwards."""
    body = []
    for tick in ticks(scale.low, scale.high):
        x = scale.at(tick)
        anchor = "start" if x < 8 else "end" if x > 92 else "middle"
        body.append(_line(_pc(x), "0", _pc(x), "4", "tick"))
        body.append(f'<text x="{_pc(x)}" y="17" text-anchor="{anchor}">{escape(show(tick))}</text>')
    return svg(title, body, size='width="100%" height="22"', kind="axis")


@dataclass(frozen=True)
class Part:
    """One part of a whole."""

    label: str
    count: float
    tone: str


LEAST = 0.4
"""Least width of a part that is not empty, in per cent: a handful of rows among a million must still be seen."""


def stacked(parts: Sequence[Part], title: str, height: int = 34) -> Markup:
    """Parts of a whole side by side, widths in proportion to their counts but for LEAST, which the widest gives up."""
    whole = sum(part.count for part in parts)
    widths = [max(100 * part.count / whole, LEAST) if part.count > 0 else 0.0 for part in parts]
    if widths:
        widths[widths.index(max(widths))] -= sum(widths) - 100 if whole else 0.0
    body, x = [], 0.0
    for part, width in zip(parts, widths, strict=True):
        if width:
            tip = escape(f"{part.label}: {plain(part.count)} ({percent(part.count / whole, 1)})")
            body.append(_rect(x, 0, width, height, part.tone, f"<title>{tip}</title>"))
        x += width
    words = "; ".join(f"{part.label} {plain(part.count)}" for part in parts)
    return svg(title, body, size=f'width="100%" height="{height}"', kind="stack", description=words)


@dataclass(frozen=True)
class Column:
    """One bar: its height, what it says when pointed at, its colour."""

    height: float
    tip: str
    tone: str = "neutral"


def columns(bars: Sequence[Column], title: str, height: int = 96, edges: Sequence[str] = ()) -> Markup:
    """Bars of equal width from zero, the highest filling the picture; under them the edges that find room."""
    most = max((bar.height for bar in bars), default=0.0) or 1.0
    step = 100 / max(len(bars), 1)
    body = [_line("0", str(height), "100%", str(height), "base")]
    for i, bar in enumerate(bars):
        tall = max((height - 4) * bar.height / most, 1.0) if bar.height else 0.0
        tip = f"<title>{escape(bar.tip)}</title>"
        body.append(_rect(i * step + step * 0.06, height - tall, step * 0.88, tall, bar.tone, tip))
    free = -1.0
    for i, edge in enumerate(edges):
        x, half = i * step, 100 * (len(edge) * LETTER / 2 + 3) / NARROW
        anchor = "start" if i == 0 else "end" if i == len(bars) else "middle"
        left = x if anchor == "start" else x - 2 * half if anchor == "end" else x - half
        if left >= free:
            body.append(f'<text x="{_pc(x)}" y="{height + 15}" text-anchor="{anchor}">{escape(edge)}</text>')
            free = left + 2 * half
    return svg(title, body, size=f'width="100%" height="{height + (20 if edges else 0)}"', kind="columns")


def curve(points: Sequence[Pair], title: str, description: str) -> Markup:
    """A line through (x, y), stretched to its box; the caller prints the ends of both axes."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    flat = min(ys) == max(ys)
    across = Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, 0, 100)
    up = Scale(min(ys) - 1, max(ys) + 1, 38, 2) if flat else Scale(min(ys), max(ys), 38, 2)
    path = " ".join(f"{across.at(x):.2f},{up.at(y):.2f}" for x, y in points)
    size = 'viewBox="0 0 100 40" preserveAspectRatio="none" width="100%" height="84"'
    return svg(title, [f'<polyline points="{path}" class="curve"/>'], size=size, kind="curves", description=description)


def strip(shares: Sequence[tuple[float, str]], largest: float, title: str) -> Markup:
    """Rollout shares along 0 to 100%: what is certified is filled, each share tried is a mark in its tone."""
    body = ['<rect x="0" y="10" width="100%" height="12" rx="6" class="fill track"/>']
    if largest > 0:
        body.append(f'<rect x="0" y="10" width="{_pc(100 * largest)}" height="12" rx="6" class="fill good"/>')
    for share, tone in shares:
        x = 100 * share
        anchor = "end" if x > 94 else "middle"
        body.append(_line(_pc(x), "6", _pc(x), "26", f"mark {tone}"))
        body.append(f'<text x="{_pc(x)}" y="42" text-anchor="{anchor}">{percent(share)}</text>')
    body.append('<text x="0" y="42" text-anchor="start">0%</text>')
    return svg(title, body, size='width="100%" height="48"', kind="strip")


def calibration(
    bins: Sequence[tuple[float, float, float]],
    title: str,
    names: tuple[str, str, str] = ("stated propensity", "observed frequency", "rows"),
) -> Markup:
    """Predicted against observed frequency, both 0 to 1; a disc's area grows with its rows, the diagonal is perfect.

    `names` are those of both axes, and of what is counted.
    """
    side, left, right, bottom = 340.0, 52.0, 20.0, 42.0
    across, up = Scale(0, 1, left, side - right), Scale(0, 1, side - bottom, 12)
    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = across.at(tick), up.at(tick)
        body.append(_line(f"{left:.1f}", f"{y:.1f}", f"{side - right:.1f}", f"{y:.1f}", "grid"))
        body.append(f'<text x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{percent(tick)}</text>')
        body.append(f'<text x="{x:.1f}" y="{side - bottom + 17:.1f}" text-anchor="middle">{percent(tick)}</text>')
    body.append(_line(f"{across.at(0):.1f}", f"{up.at(0):.1f}", f"{across.at(1):.1f}", f"{up.at(1):.1f}", "diagonal"))
    most = max((n for _, _, n in bins), default=1.0) or 1.0
    for predicted, observed, n in bins:
        radius = max(9 * math.sqrt(n / most), 2.5)
        tip = escape(f"stated {percent(predicted, 1)}, observed {percent(observed, 1)}, {plain(n)} {names[2]}")
        place = f'cx="{across.at(predicted):.1f}" cy="{up.at(observed):.1f}" r="{radius:.1f}"'
        body.append(f'<circle {place} class="disc accent"><title>{tip}</title></circle>')
    middle = (left + side - right) / 2
    body.append(f'<text x="{middle:.1f}" y="{side - 4:.1f}" text-anchor="middle" class="name">{names[0]}</text>')
    turn = f'transform="translate(11 {(side - bottom + 12) / 2:.1f}) rotate(-90)"'
    body.append(f'<text {turn} text-anchor="middle" class="name">{names[1]}</text>')
    return svg(title, body, size=f'viewBox="0 0 {side:.0f} {side:.0f}"', kind="square")


@dataclass(frozen=True)
class Point:
    """A policy in the scatter: its place with intervals, and its true place where known."""

    label: str
    """Not written where empty."""
    x: Range
    y: Range
    tone: str
    tip: str
    truth: Pair | None = None
    size: float = 5.0
    """Radius of its dot."""
    thin: bool = False
    """One of many: its intervals are thin and labels may cross them, its own label needs a free place."""


@dataclass
class _Space:
    """Rectangles already taken, so that labels find a free place."""

    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def overlap(self, box: tuple[float, float, float, float]) -> float:
        x0, y0, x1, y1 = box
        return sum(
            max(min(x1, a1) - max(x0, a0), 0) * max(min(y1, b1) - max(y0, b0), 0) for a0, b0, a1, b1 in self.taken
        )

    def place(self, x: float, y: float, text: str, must: bool = True) -> tuple[float, float, str] | None:
        """(x, y, anchor) of a label beside (x, y): the first place that overlaps nothing, else the least bad; or none
        where it need not be."""
        width = LETTER * len(text)
        near, far = ((10, 4), (8, -10), (8, 18)), ((8, -26), (8, 34), (8, -42), (8, 50), (30, -58), (30, 66))
        choices = [
            (x + side * dx, y + dy, "start" if side > 0 else "end")
            for dx, dy in ((*near, *far) if must else near)
            for side in (1, -1)
        ]

        def cost(choice: tuple[float, float, str]) -> float:
            cx, cy, anchor = choice
            x0 = cx if anchor == "start" else cx - width
            box = (x0, cy - 11, x0 + width, cy + 3)
            outside = (
                max(LEFT - x0, 0)
                + max(x0 + width - WIDTH, 0)
                + max(TOP - box[1], 0)
                + max(box[3] - (HEIGHT - BOTTOM), 0)
            )
            return self.overlap(box) + 1000 * outside

        best = min(choices, key=cost)
        if not must and cost(best) > 0:
            return None
        x0 = best[0] if best[2] == "start" else best[0] - width
        self.taken.append((x0, best[1] - 11, x0 + width, best[1] + 3))
        return best


def scatter(
    points: Sequence[Point],
    x_title: str,
    y_title: str,
    show: tuple[Callable[[float], str], Callable[[float], str]],
    title: str,
    joined: Sequence[Pair] = (),
) -> Markup:
    """Policies as differences from the logging policy, which is the crossing of the two axes at zero.

    A line runs through `joined`.
    """
    across = Scale(*_reach([p.x for p in points], [p.truth[0] for p in points if p.truth]), LEFT, WIDTH - RIGHT)
    up = Scale(*_reach([p.y for p in points], [p.truth[1] for p in points if p.truth]), HEIGHT - BOTTOM, TOP)
    body = _frame(across, up, x_title, y_title, show)
    space = _Space()
    origin = across.at(0), up.at(0)
    space.taken.append((origin[0] - 6, origin[1] - 6, origin[0] + 6, origin[1] + 6))
    if len(joined) > 1:
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in joined)
        body.append(f'<polyline points="{path}" class="front"/>')
    for point in points:
        body += _cross(point, across, up, space)
    body.append(f'<circle cx="{origin[0]:.1f}" cy="{origin[1]:.1f}" r="5" class="dot ink"/>')
    named = [(origin[0], origin[1], "Logging policy", "ink", True)]
    named += [
        (across.at(p.x.value or 0), up.at(p.y.value or 0), p.label, p.tone, not p.thin) for p in points if p.label
    ]
    for x, y, label, tone, must in named:
        label = label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
        place = space.place(x, y, label, must)
        if place is None:
            continue
        lx, ly, anchor = place
        body.append(
            f'<text x="{lx:.1f}" y="{ly:.1f}" text-anchor="{anchor}" class="label {tone}">{escape(label)}</text>'
        )
    words = "; ".join(p.tip for p in points)
    return svg(title, body, size=f'viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}"', kind="scatter", description=words)


def _reach(ranges: Sequence[Range], truths: Sequence[float]) -> Pair:
    """A domain that holds every estimate and truth; an interval may stretch it by half as much again, no further."""
    values = [r.value for r in ranges if r.value is not None] + list(truths)
    low, high = domain(values, pad=0.12)
    ends = [end for r in ranges for end in (r.low, r.high) if end is not None]
    room = 0.5 * (high - low)
    lowest, highest = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    air = 0.03 * (highest - lowest)
    return lowest - air, highest + air


def _frame(
    across: Scale, up: Scale, x_title: str, y_title: str, show: tuple[Callable[[float], str], Callable[[float], str]]
) -> list[str]:
    """Grid, zero lines, tick labels and axis titles of the scatter."""
    body = []
    for tick in ticks(across.low, across.high, 5):
        x = f"{across.at(tick):.1f}"
        body.append(_line(x, f"{TOP:.1f}", x, f"{HEIGHT - BOTTOM:.1f}", "zero" if tick == 0 else "grid"))
        body.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 17:.1f}" text-anchor="middle">{escape(show[0](tick))}</text>')
    for tick in ticks(up.low, up.high, 5):
        y = up.at(tick)
        body.append(
            _line(f"{LEFT:.1f}", f"{y:.1f}", f"{WIDTH - RIGHT:.1f}", f"{y:.1f}", "zero" if tick == 0 else "grid")
        )
        body.append(f'<text x="{LEFT - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(show[1](tick))}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    body.append(
        f'<text x="{middle:.1f}" y="{HEIGHT - 6:.1f}" text-anchor="middle" class="name">{escape(x_title)}</text>'
    )
    turn = f'transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)"'
    body.append(f'<text {turn} text-anchor="middle" class="name">{escape(y_title)}</text>')
    return body


def _cross(point: Point, across: Scale, up: Scale, space: _Space) -> list[str]:
    """The interval cross, the dot and the hollow diamond of the truth; what they cover is taken."""
    if point.x.value is None or point.y.value is None:
        return []
    x, y = across.at(point.x.value), up.at(point.y.value)
    body, boxes = [], []
    kind = f"whisker {point.tone}{' thin' if point.thin else ''}"
    if point.x.low is not None and point.x.high is not None:
        x0, x1 = across.at(point.x.low), across.at(point.x.high)
        body.append(_line(f"{x0:.1f}", f"{y:.1f}", f"{x1:.1f}", f"{y:.1f}", kind))
        boxes.append((x0, y - 1.5, x1, y + 1.5))
    if point.y.low is not None and point.y.high is not None:
        y0, y1 = up.at(point.y.high), up.at(point.y.low)
        body.append(_line(f"{x:.1f}", f"{y0:.1f}", f"{x:.1f}", f"{y1:.1f}", kind))
        boxes.append((x - 1.5, y0, x + 1.5, y1))
    if not point.thin:
        space.taken += boxes
    if point.truth:
        tx, ty = across.at(point.truth[0]), up.at(point.truth[1])
        diamond = f"M{tx:.1f} {ty - 6:.1f} l6 6 l-6 6 l-6 -6 z"
        body.append(
            f'<path d="{diamond}" class="truth {point.tone}"><title>{escape(point.label)}: true value</title></path>'
        )
        space.taken.append((tx - 6, ty - 6, tx + 6, ty + 6))
    tip, room = escape(point.tip), point.size + 1
    dot = f"dot {point.tone}{' thin' if point.thin else ''}"
    body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{point.size:g}" class="{dot}"><title>{tip}</title></circle>')
    space.taken.append((x - room, y - room, x + room, y + room))
    return body
