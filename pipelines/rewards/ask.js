"use strict";

// Hours of a row of the timeline, and the heights of its lanes in pixels.
const DAY = 24;
const MINUTE = 1 / 60;
const LANE = { done: 17, visits: 14, bars: 24, active: 5 };
const SIDES = ["left", "right"];
const SVG = "http://www.w3.org/2000/svg";

const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const store = "tactful-ask-" + data.key;
let answers = [];
let opened = performance.now();
let keeps = true;
let saved = true;

// What is kept between visits. A browser may forbid it to a page without a server.

function keep() {
  saved = false;
  try {
    localStorage.setItem(store, JSON.stringify(answers));
  } catch {
    keeps = false;
  }
}

function restore() {
  let text = "[]";
  try {
    text = localStorage.getItem(store) ?? text;
    localStorage.setItem(store, text);
  } catch {
    keeps = false;
  }
  answers = whole(text);
}

// The answers that a text holds, none where it is not what this page wrote.
function whole(text) {
  const answer = (each) => ["left", "right", "tie"].includes(each?.answer) && Number.isFinite(each.seconds);
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) && found.length <= data.pairs.length && found.every(answer) ? found : [];
  } catch {
    return [];
  }
}

// Drawing. Every text is set as text, every shape as an attribute.

function element(parent, tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  parent.append(made);
  return made;
}

function shape(parent, tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

// Where each lane begins, from the top of a row.
const lanes = [];
let height = LANE.done;
for (const each of data.components) {
  if (LANE[each.as]) {
    lanes.push({ ...each, top: height });
    height += LANE[each.as];
  }
}

const share = (hours) => `${(100 * hours) / DAY}%`;

// [from, to) in hours since the first row's midnight, cut where rows end: [row, from, to] within each row.
function* pieces(from, to) {
  const end = Math.min(to, data.rows * DAY);
  for (let row = Math.floor(from / DAY); row * DAY < end; row += 1) {
    yield [row, Math.max(from - row * DAY, 0), Math.min(end - row * DAY, DAY)];
  }
}

function timeline(box, week) {
  box.replaceChildren();
  const rows = [];
  for (let row = 0; row < data.rows; row += 1) {
    const line = element(box, "div", "", "row");
    element(line, "span", week.days[row], "day");
    const picture = shape(line, "svg", { width: "100%", height });
    rows.push(picture);
    shape(picture, "rect", { class: "paper", width: "100%", height });
  }
  for (const [row, from, to] of [...pieces(0, week.start), ...pieces(week.start + data.hours, data.rows * DAY)]) {
    shape(rows[row], "rect", { class: "outside", x: share(from), width: share(to - from), height });
  }
  for (const picture of rows) {
    for (const hour of [6, 12, 18]) {
      shape(picture, "line", { class: "grid", x1: share(hour), x2: share(hour), y2: height });
    }
  }
  for (const fact of week.facts) done(rows, week.start, fact);
  for (const fact of week.facts) earned(rows, week.start, fact);
  const scale = element(box, "div", "", "row");
  element(scale, "span");
  const ends = element(scale, "div", "", "scale");
  for (const hour of [0, 6, 12, 18, 24]) element(ends, "span", data.clock ? String(hour).padStart(2, "0") : `${hour} h`);
}

// The first lane: what was decided, and switching off.
function done(rows, start, fact) {
  const at = start + fact.hours;
  const row = Math.floor(at / DAY);
  if (row >= data.rows) return;
  const x = share(at % DAY);
  const y = LANE.done / 2;
  const picture = rows[row];
  if (fact.off) {
    for (const [each, from, to] of pieces(at, start + fact.until)) {
      shape(rows[each], "line", { class: "off", x1: share(from), x2: share(to), y1: y, y2: y });
    }
  }
  if (fact.acted) {
    shape(picture, "circle", { class: fact.earned.clicks ? "sent clicked" : "sent", cx: x, cy: y, r: 5 });
  } else if (!fact.silent) {
    shape(picture, "line", { class: "held", x1: x, x2: x, y1: y - 5, y2: y + 5 });
    if (fact.earned.clicks) shape(picture, "circle", { class: "late", cx: x, cy: y, r: 3 });
  }
  if (fact.earned.disables || fact.closed) {
    const mark = shape(picture, "svg", { x, y: y - 5, overflow: "visible" });
    shape(mark, "path", { class: "ended", d: "M3 0 L13 10 M13 0 L3 10" });
  }
}

// The other lanes: what was earned in the interval after the decision.
function earned(rows, start, fact) {
  const at = start + fact.hours;
  for (const lane of lanes) {
    const value = fact.earned[lane.name];
    if (!value) continue;
    const bottom = lane.top + LANE[lane.as];
    if (lane.as === "bars") {
      const tall = Math.max((Math.abs(value) / lane.most) * (LANE.bars - 4), 1);
      const row = rows[Math.floor(at / DAY)];
      const box = { x: share(at % DAY), width: 6, y: bottom - tall, height: tall, transform: "translate(-3 0)" };
      if (row) shape(row, "rect", { class: value < 0 ? "bar less" : "bar", ...box });
      continue;
    }
    const alpha = lane.as === "active" ? Math.min((value * DAY) / Math.max(fact.until - fact.hours, MINUTE), 1) : 1;
    for (const [row, from, to] of pieces(at, start + fact.until)) {
      const tall = lane.as === "active" ? 3 : 10;
      const box = { class: lane.as, x: share(from), width: share(to - from), y: bottom - tall - 1, height: tall };
      shape(rows[row], "rect", { ...box, opacity: alpha });
    }
    const room = pieces(at, start + fact.until).next().value;
    if (lane.as === "visits" && room && value > 1 && room[2] - room[1] >= 3) {
      shape(rows[room[0]], "text", { class: "count", x: share(room[1]), dx: 3, y: bottom - 2 }, String(value));
    }
  }
}

function words(list, week) {
  list.replaceChildren();
  for (const fact of week.facts) {
    const line = element(list, "li");
    element(line, "b", fact.when);
    line.append(` ${fact.told}`);
  }
}

function totals(left, right) {
  by("totals").replaceChildren();
  data.components.forEach((component, place) => {
    const row = element(by("totals"), "tr");
    const cell = (week, side) => {
      const found = element(row, "td", "", side);
      element(found, "span", week.totals[place].text);
      const track = element(found, "div", "", "track");
      track.setAttribute("aria-hidden", "true");
      const bar = element(track, "div", "", week.totals[place].value < 0 ? "fill less" : "fill");
      bar.style.width = `${component.widest ? (100 * Math.abs(week.totals[place].value)) / component.widest : 0}%`;
    };
    cell(left, "left");
    element(row, "th", component.title).scope = "row";
    cell(right, "right");
  });
}

function key() {
  for (const sign of data.signs) {
    const line = element(by("key"), "li");
    const picture = shape(line, "svg", { width: 18, height: 14, "aria-hidden": "true" });
    for (const [tag, attributes] of sign.shapes) shape(picture, tag, attributes);
    line.append(sign.text);
  }
}

// The course of the questions.

function show(move) {
  const place = answers.length;
  const asking = place < data.pairs.length;
  by("asking").hidden = by("choices").hidden = !asking;
  by("done").hidden = asking;
  by("bar").value = place;
  by("undo").disabled = place === 0;
  by("save").disabled = place === 0;
  by("kept").textContent = keeps ? "" : "This browser keeps nothing for this page: save before you close it.";
  by("title").textContent = asking ? `Pair ${place + 1} of ${data.pairs.length}: which went better?` : "All pairs are answered";
  if (asking) {
    const pair = data.pairs[place];
    SIDES.forEach((side, at) => {
      const week = data.weeks[pair.weeks[at]];
      by(`${side}-span`).textContent = week.span;
      timeline(by(`${side}-timeline`), week);
      words(by(`${side}-words`), week);
    });
    totals(data.weeks[pair.weeks[0]], data.weeks[pair.weeks[1]]);
  } else {
    sum();
  }
  // Whoever reads with the ears hears the new question; whoever types is not left on a button that space would press.
  if (move) {
    window.scrollTo(0, 0);
    by("title").focus({ preventScroll: true });
  }
  opened = performance.now();
}

function sum() {
  const count = (side) => answers.filter((each) => each.answer === side).length;
  by("counts").textContent = `Left ${count("left")}, tie ${count("tie")}, right ${count("right")}.`;
  const turned = { left: "right", right: "left", tie: "tie" };
  const again = data.pairs.flatMap((pair, place) => (pair.repeats === null ? [] : [[place, pair.repeats]]));
  const same = again.filter(([place, first]) => answers[place].answer === turned[answers[first].answer]).length;
  by("consistency").textContent = again.length
    ? `${again.length} of the pairs came twice with their sides swapped; the answer was the same on ${same}.`
    : "";
}

const SAID = { left: "Left was better.", right: "Right was better.", tie: "A tie." };

function choose(side) {
  if (answers.length >= data.pairs.length) return;
  answers.push({ answer: side, seconds: Math.round((performance.now() - opened) / 100) / 10 });
  keep();
  by("said").textContent = SAID[side];
  show(true);
}

function undo() {
  if (!answers.length) return;
  answers.pop();
  keep();
  by("said").textContent = "Taken back.";
  show(true);
}

function save() {
  if (!answers.length) return;
  const lines = answers.map(({ answer, seconds }, place) => {
    const [left, right] = data.pairs[place].weeks.map((week) => data.weeks[week].id);
    return JSON.stringify({ left, right, answer, rater: data.rater, seconds, again: data.pairs[place].repeats !== null });
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "application/x-ndjson" }));
  link.download = data.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  saved = true;
  by("said").textContent = `${answers.length} of ${data.pairs.length} answers saved.`;
}

const KEYS = {
  ArrowLeft: () => choose("left"),
  ArrowRight: () => choose("right"),
  ArrowDown: () => choose("tie"),
  " ": () => choose("tie"),
  u: undo,
  Backspace: undo,
  s: save,
};

document.addEventListener("keydown", (event) => {
  // A key held down is one answer, and a browser's own shortcuts stay its own.
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.closest("button, summary")) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

for (const side of ["left", "tie", "right"]) by(`choose-${side}`).addEventListener("click", () => choose(side));
by("undo").addEventListener("click", undo);
by("save").addEventListener("click", save);
SIDES.forEach((side, at) => {
  by(`${side}-details`).addEventListener("toggle", (event) => {
    by(`${SIDES[1 - at]}-details`).open = event.target.open;
  });
});
window.addEventListener("beforeunload", (event) => {
  if (!keeps && !saved) event.preventDefault();
});

restore();
key();
show(false);
if (answers.length) by("said").textContent = `${answers.length} answers of an earlier visit are here.`;
