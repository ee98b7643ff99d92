// The dashboard: follows /api/events and shows what comes. No framework, no build step.
"use strict";

const HISTORY = 300; // seconds that the charts reach back
const MAX_PASSES = 160; // kept for the timeline
const SILENCE_MS = 5000; // without an event the link is taken for dead
const HIDDEN_MS = 30000; // a page that nobody sees stops asking after so long
const LENGTHS = 60; // seconds of draft lengths beside the present one
const RATE_S = 5; // over which bytes per second are taken
const MAX_RUNS = 600; // of a text
const HYSTERESIS = 0.02; // a plan that is better by less is not worth a change

/** Columns as the data of one SVG path: heights between 0 and 1, in a box of ``width`` x 26. */
function columns(heights, width) {
  const step = width / heights.length;
  return heights
    .map((height, i) => {
      const tall = Math.max(25 * height, 1);
      return `M${(i * step).toFixed(2)} 26v${-tall.toFixed(1)}h${(0.78 * step).toFixed(2)}v${tall.toFixed(1)}z`;
    })
    .join("");
}

// --- what is known -------------------------------------------------------------------------------

let about = null;
let sums = null;
let comparison = null;
let numPasses = 0;
let passRate = 0;
let passes = []; // [began_s, seconds, rows, own, accepted, rejected], the newest last
const devices = new Map(); // number -> {row, lengths, traffic}
const past = [[], [], [], [], []]; // at_s, goodput, sessions, rows, milliseconds

function remember([at, goodput, numSessions, rows, seconds]) {
  const last = past[0].at(-1);
  if (last !== undefined && at <= last) return;
  const points = [[at, goodput, numSessions, rows, 1000 * seconds]];
  if (at - last > 3) points.unshift([last + 1, null, null, null, null]); // nobody was watching
  for (const point of points) point.forEach((value, i) => past[i].push(value));
  while (past[0][0] < at - HISTORY) past.forEach((values) => values.shift());
}

function take(event) {
  if (event.kind === "loading") {
    tell("waiting", "the server is loading its model …");
    return;
  }
  if (event.kind === "all") {
    about = event.about;
    devices.clear();
    passes = [];
    comparison = null;
    event.history.forEach(remember);
    texts.clear();
    showAbout();
  }
  tell("live", "live");
  sums = event.sums;
  remember([event.at_s, sums.goodput_tokens_per_s, sums.num_sessions, sums.rows_mean, sums.seconds_mean]);
  event.left.forEach((gone) => devices.delete(gone));
  for (const values of event.devices) takeDevice(values);
  for (const device of devices.values()) follow(device, event.at_s);
  passRate = event.kind === "all" ? 0 : event.num_passes - numPasses;
  numPasses = event.num_passes;
  passes = passes.concat(event.passes).slice(-MAX_PASSES);
  if (event.comparison) comparison = event.comparison;
  if (event.texts) texts.take(event.texts);
  showAll();
}

function takeDevice(values) {
  const row = Object.fromEntries(about.row.map((name, i) => [name, values[i]]));
  const known = devices.get(row.device);
  if (known && known.row.num_committed_tokens <= row.num_committed_tokens) known.row = row;
  else devices.set(row.device, { row, lengths: [], traffic: [] });
}

/** What a device was granted of late, and how much it sent and got. */
function follow(device, at) {
  const { row, lengths, traffic } = device;
  lengths.push([row.draft_length, row.judged_length]);
  if (lengths.length > LENGTHS) lengths.shift();
  traffic.push([at, row.uplink_bytes, row.downlink_bytes]);
  while (traffic.length > 2 && traffic[0][0] < at - RATE_S) traffic.shift();
}

function perSecond({ traffic }, column) {
  const [first, last] = [traffic[0], traffic.at(-1)];
  return last[0] > first[0] ? (last[column] - first[column]) / (last[0] - first[0]) : 0;
}

// --- the link ------------------------------------------------------------------------------------

/** Calls ``stop`` once nobody has seen the page for a while. */
function whenHidden(stop) {
  let timer = 0;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(stop, HIDDEN_MS);
  };
  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", look);
  };
}

async function listen() {
  const stop = new AbortController();
  const heed = whenHidden(() => stop.abort());
  let silence = setTimeout(() => stop.abort(), SILENCE_MS);
  try {
    const answer = await fetch("/api/events", { signal: stop.signal, cache: "no-store" });
    if (answer.status === 401) location.reload(); // the token is no longer valid: ask for another
    if (!answer.ok) return;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let unread = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(() => stop.abort(), SILENCE_MS);
      const events = (unread + value).split("\n\n");
      unread = events.pop();
      for (const event of events) {
        if (event !== "data: [DONE]") take(JSON.parse(event.slice("data: ".length)));
      }
    }
  } finally {
    clearTimeout(silence);
    heed();
  }
}

async function listenOn() {
  for (;;) {
    await shown();
    try {
      await listen();
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof DOMException)) throw error; // not the link's
    }
    await lost();
  }
}

// --- now: four charts ----------------------------------------------------------------------------

const TILES = [
  { id: "goodput", column: 1, what: "tokens per second", show: number },
  { id: "sessions", column: 2, what: "sessions", show: (n) => (n == null ? NONE : plain.format(n)) },
  { id: "rows", column: 3, what: "rows in a batch", show: number },
  { id: "verification", column: 4, what: "milliseconds of a pass", show: number },
];
let charts = [];
let pointed = null; // index into the past, under the pointer

function drawCharts() {
  charts.forEach((chart) => chart.destroy());
  charts = TILES.map((tile) => {
    const box = document.querySelector(`#${tile.id} .chart`);
    return new uPlot(chartOptions(box), [past[0], past[tile.column]], box);
  });
}

function chartOptions(box) {
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: colour("soft"), font, ticks: { show: false }, grid: { stroke: colour("line"), width: 1 } };
  const minutes = (_, times) => times.map((s) => clock.format(1000 * s).slice(0, 5));
  return {
    width: box.clientWidth,
    height: box.clientHeight,
    legend: { show: false },
    padding: [8, 8, 0, 0],
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: "now" }, points: { size: 6 } },
    scales: {
      x: { range: (_, first, last) => [Math.min(first, last - 60), last] },
      y: { range: (_, low, high) => [0, high > 0 ? 1.1 * high : 1] },
    },
    axes: [
      { ...axis, size: 20, gap: 3, space: 70, grid: { show: false }, values: minutes, incrs: [60, 120, 300] },
      { ...axis, size: box.clientWidth < 240 ? 34 : 42, gap: 4, space: 22 },
    ],
    series: [{}, { stroke: colour("accent"), fill: colour("accent-wash"), width: 1.6, points: { show: false } }],
    hooks: {
      setCursor: [
        (chart) => {
          const at = chart.cursor.idx ?? null;
          if (at !== pointed) {
            pointed = at;
            showTiles();
          }
        },
      ],
    },
  };
}

function showTiles() {
  const at = pointed ?? past[0].length - 1;
  for (const tile of TILES) {
    write(document.querySelector(`#${tile.id} .value`), tile.show(past[tile.column][at]));
  }
  const when = pointed == null ? null : `at ${clock.format(1000 * past[0][at])}`;
  const details = {
    goodput: `${percent(sums.acceptance)} of drafted tokens accepted`,
    sessions: sums.num_alone ? `${plain.format(sums.num_alone)} of them without a drafter` : count(devices.size, "device"),
    rows: passRate ? `${count(passRate, "batch").replace(/batchs$/, "batches")} per second` : "no batches",
    verification: `the model is busy ${percent(Math.min(sums.busy_share, 1))} of the time`,
  };
  for (const [id, text] of Object.entries(details)) {
    write(document.querySelector(`#${id} .detail`), when ?? text);
  }
}

function showCharts() {
  TILES.forEach((tile, i) => {
    charts[i].setData([past[0], past[tile.column]]);
    const values = past[tile.column].filter((value) => value != null);
    const range = values.length ? `between ${number(Math.min(...values))} and ${number(Math.max(...values))}` : "";
    set(document.querySelector(`#${tile.id} .chart`), "aria-label", `${tile.what} of the last minutes: ${range}`);
  });
  showTiles();
}

// --- recent batches ------------------------------------------------------------------------------

const PARTS = ["accepted", "rejected", "own", "prompt"];
let chosen = null; // began_s of the batch that somebody looks at
let spans = []; // of the batches that are drawn: {pass, left, right}

function parts([, , rows, own, accepted, rejected]) {
  return { accepted, rejected, own, prompt: Math.max(rows - own - accepted - rejected, 0) };
}

/** Where each batch lies, in seconds from the first; a long idle time is cut short. */
function laidOut(drawn) {
  const busy = drawn.reduce((sum, pass) => sum + pass[1], 0);
  const longest = (3 * busy) / drawn.length;
  let at = 0;
  return drawn.map((pass, i) => {
    const before = drawn[i - 1];
    const idle = before ? Math.max(pass[0] - before[0] - before[1], 0) : 0;
    at += Math.min(idle, longest);
    const begin = at;
    at += pass[1];
    return { pass, begin, end: at, isCut: idle > longest };
  });
}

function drawTimeline() {
  const canvas = $("timeline").firstElementChild;
  const { clientWidth: width, clientHeight: height } = $("timeline");
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  spans = [];
  if (!passes.length) return;
  const drawn = passes.slice(-Math.max(20, Math.min(MAX_PASSES, Math.floor(width / 7))));
  const laid = laidOut(drawn);
  const box = { left: 34, right: width - 4, top: 8, bottom: height - 22 };
  const perSecond = (box.right - box.left) / laid.at(-1).end;
  const most = highest(drawn);
  drawGrid(pen, box, most, perSecond);
  const perRow = (box.bottom - box.top) / most;
  for (const { pass, begin, end, isCut } of laid) {
    const left = box.left + begin * perSecond;
    const right = Math.max(box.left + end * perSecond, left + 1);
    spans.push({ pass, left, right });
    drawBatch(pen, pass, left, right, box, perRow);
    if (isCut) drawCut(pen, left, box);
  }
}

/** The top of the axis: prompts take many rows, and may stick out of it. */
function highest(drawn) {
  const judged = Math.max(...drawn.map(([, , , own, accepted, rejected]) => own + accepted + rejected));
  return ceiling(judged > 0 ? 1.15 * judged : Math.max(...drawn.map((pass) => pass[2])));
}

function drawBatch(pen, pass, left, right, box, perRow) {
  const gap = right - left > 4 ? 1 : 0;
  let bottom = box.bottom;
  for (const [part, rows] of Object.entries(parts(pass))) {
    if (!rows) continue;
    const top = Math.max(bottom - rows * perRow, box.top);
    pen.fillStyle = colour(part);
    pen.fillRect(left, top, right - left - gap, bottom - top);
    bottom = top;
  }
  if (pass[2] * perRow > box.bottom - box.top) pen.clearRect(left, box.top + 4, right - left, 2); // it goes on
  if (pass[0] === chosen) {
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 1.5;
    pen.strokeRect(left - 1, bottom - 2, right - left + 1, box.bottom - bottom + 3);
  }
}

function drawCut(pen, right, box) {
  pen.strokeStyle = colour("soft");
  pen.lineWidth = 1;
  pen.setLineDash([2, 3]);
  pen.beginPath();
  pen.moveTo(right - 2, box.top);
  pen.lineTo(right - 2, box.bottom);
  pen.stroke();
  pen.setLineDash([]);
}

/** The next number of 1, 2, 4, 5, 10 … */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= value);
}

function drawGrid(pen, box, top, perSecond) {
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  pen.fillStyle = colour("soft");
  pen.strokeStyle = colour("line");
  pen.lineWidth = 1;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const rows of top > 1 ? [0, top / 2, top] : [0, top]) {
    const y = Math.round(box.bottom - ((box.bottom - box.top) * rows) / top) + 0.5;
    pen.beginPath();
    pen.moveTo(box.left, y);
    pen.lineTo(box.right, y);
    pen.stroke();
    pen.fillText(String(rows), box.left - 6, y);
  }
  // How long a length is.
  const seconds = ceiling((90 / perSecond) * 1e6) / 1e6;
  const y = box.bottom + 11;
  const left = box.right - seconds * perSecond;
  pen.strokeStyle = colour("soft");
  pen.strokeRect(left, y, seconds * perSecond, 0);
  pen.fillText(seconds >= 1 ? `${seconds} s` : seconds >= 0.001 ? `${1000 * seconds} ms` : `${Math.round(1e6 * seconds)} µs`, left - 6, y);
}

function showBatch() {
  const slider = $("timeline");
  const at = passes.findIndex((pass) => pass[0] === chosen);
  if (at < 0) chosen = null;
  const pass = chosen == null ? passes.at(-1) : passes[at];
  if (!pass) return;
  const kinds = Object.entries(parts(pass)).filter(([, rows]) => rows);
  const names = { own: "the server’s own", accepted: "accepted", rejected: "rejected", prompt: "of prompts" };
  const words = kinds.map(([part, rows]) => `${plain.format(rows)} ${names[part]}`).join(", ");
  const text = `${count(pass[2], "row")} in ${milli(pass[1])} ms: ${words}`;
  write($("batch"), chosen == null ? `The latest: ${text}.` : `${text}.`);
  set(slider, "aria-valuemax", passes.length);
  set(slider, "aria-valuenow", at < 0 ? passes.length : at + 1);
  set(slider, "aria-valuetext", text);
}

function choose(pass) {
  chosen = pass ? pass[0] : null;
  drawTimeline();
  showBatch();
}

function stepTimeline(event) {
  const at = chosen == null ? passes.length - 1 : passes.findIndex((pass) => pass[0] === chosen);
  const steps = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: passes.length - 1 };
  if (event.key === "Escape") choose(null);
  if (!(event.key in steps) || !passes.length) return;
  event.preventDefault();
  choose(passes[Math.min(Math.max(steps[event.key], 0), passes.length - 1)]);
}

function pointTimeline(event) {
  const x = event.clientX - $("timeline").getBoundingClientRect().left;
  const near = spans.find(({ left, right }) => x >= left - 1 && x <= right + 1);
  if (near && near.pass[0] !== chosen) choose(near.pass);
}

// --- plans ---------------------------------------------------------------------------------------

function showPlans() {
  const body = document.querySelector("#plans tbody");
  const note = $("plans-note");
  if (!comparison?.devices.length) {
    body.replaceChildren();
    write(note, "No device drafts now.");
    return;
  }
  const plans = comparison.plans;
  const most = Math.max(...plans.map((plan) => plan.goodput_tokens_per_s));
  const longest = Math.max(1, ...plans.flatMap((plan) => plan.lengths));
  while (body.rows.length > plans.length) body.lastElementChild.remove();
  while (body.rows.length < plans.length) body.append(planRow());
  plans.forEach((plan, i) => fillPlan(body.rows[i], plan, plans[0], most, longest));
  const word = about.mode === "window" ? "windows" : "draft lengths";
  write($("plan-lengths"), `${word} by device`);
  write(note, `Expected by the model of mode ${about.mode} for the ${word} that each policy would choose, from the ` +
    `controller’s present estimates of ${count(comparison.devices.length, "drafting session")}. ` +
    `Measured now: ${number(sums.goodput_tokens_per_s)} tokens/s.`);
}

function planRow() {
  const [fill, fillTo] = bar();
  const strip = svg("svg", { class: "strip", preserveAspectRatio: "none", role: "img" }, svg("path"));
  const row = element("tr", { role: "row" },
    element("td", { role: "rowheader" }),
    element("td", { role: "cell" }, element("div", { class: "bar" }, element("b"), fill)),
    element("td", { role: "cell", class: "number" }),
    element("td", { role: "cell" }, element("div", { class: "lengths-of" }, strip, element("small"))));
  row.fillTo = fillTo;
  return row;
}

function fillPlan(row, plan, inForce, most, longest) {
  const isInForce = plan === inForce;
  const [name, goodput, against, lengths] = row.cells;
  row.className = isInForce ? "force" : "";
  write(name, isInForce ? "in force" : plan.policy);
  const trouble = !plan.fits ? "needs more uplink" : plan.harms ? "slows a device down" : "";
  const remark = isInForce ? about.policy ?? "each device decides" : trouble;
  if (remark) name.append(element("small", { class: isInForce ? "" : "harms" }, remark));
  write(goodput.querySelector("b"), number(plan.goodput_tokens_per_s));
  row.fillTo(plan.goodput_tokens_per_s / most);
  const gain = plan.goodput_tokens_per_s / inForce.goodput_tokens_per_s - 1;
  const sign = Math.abs(gain) < 0.0005 ? "±" : gain > 0 ? "+" : "−";
  write(against, isInForce ? "" : `${sign}${Math.abs(100 * gain).toFixed(1)} %`);
  against.classList.toggle("better", !isInForce && gain > HYSTERESIS && !trouble);
  const width = Math.max(plan.lengths.length, 12);
  const [strip, small] = lengths.firstElementChild.children;
  set(strip, "viewBox", `0 0 ${width} 26`);
  set(strip.firstElementChild, "d", columns(plan.lengths.map((length) => length / longest), plan.lengths.length));
  const few = plan.lengths.length <= 8 && plan.lengths.join(", ");
  const mean = plan.lengths.reduce((a, b) => a + b, 0) / plan.lengths.length;
  const [low, high] = [Math.min(...plan.lengths), Math.max(...plan.lengths)];
  const words = low === high ? `all ${low}` : few || `${low} to ${high}, mean ${fine.format(mean)}`;
  set(strip, "aria-label", words);
  write(small, words);
}

// --- devices -------------------------------------------------------------------------------------

const COLUMNS = [
  { label: "device", sort: (d) => d.row.device, make: deviceCell },
  { label: "tokens/s", number: true, sort: (d) => -d.row.goodput_tokens_per_s, make: () => twoLines((d) => [number(d.row.goodput_tokens_per_s), `${plain.format(d.row.num_committed_tokens)} in all`]) },
  { label: "accepted", title: "accepted, by position", wide: true, sort: (d) => -(d.row.acceptance ?? -1), make: positionsCell },
  { label: "draft length", wide: true, sort: (d) => -d.row.draft_length, make: lengthCell },
  { label: "uplink share", sort: (d) => -(d.row.bandwidth_share ?? -1), make: shareCell },
  { label: "round trip", number: true, sort: (d) => -(d.row.round_trip_s ?? -1), make: () => twoLines((d) => [`${milli(d.row.round_trip_s)} ms`, `drafts in ${milli(d.row.draft_s_per_token)} ms`]) },
  { label: "up", number: true, sort: (d) => -d.row.uplink_bytes, make: () => twoLines((d) => [`${bytes(perSecond(d, 1))}/s`, bytes(d.row.uplink_bytes)]) },
  { label: "down", number: true, sort: (d) => -d.row.downlink_bytes, make: () => twoLines((d) => [`${bytes(perSecond(d, 2))}/s`, bytes(d.row.downlink_bytes)]) },
];
let sortedBy = 0;
const deviceRows = new Map(); // number -> its <tr>

/** A cell: its content, and what fills it. */
function twoLines(words) {
  const [text, small] = [document.createTextNode(""), element("small")];
  return [[element("div", {}, text, small)], (device) => {
    const [above, below] = words(device);
    write(text, above);
    write(small, below);
  }];
}

function deviceCell() {
  const [name, drafter, small] = [element("b"), element("span"), element("small")];
  return [[element("div", { class: "device" }, name, element("div", {}, drafter, small))], ({ row }) => {
    write(name, String(row.device));
    write(drafter, row.drafter);
    set(drafter, "title", row.drafter);
    write(small, row.num_sessions ? count(row.num_sessions, "session") : "idle");
  }];
}

function positionsCell() {
  const share = element("b");
  const chart = svg("svg", { class: "positions", viewBox: "0 0 132 26", role: "img" }, svg("path"));
  return [[element("div", { class: "both" }, share, chart)], ({ row }) => {
    write(share, percent(row.acceptance));
    const shares = row.positions;
    set(chart.firstElementChild, "d", shares.length ? columns(shares.map((p) => p / 100), Math.min(132, 11 * shares.length)) : "");
    set(chart, "aria-label", shares.length ? `by position: ${shares.join(", ")} percent` : "nothing drafted of late");
  }];
}

function lengthCell() {
  const [length, granted, judged] = [element("b"), svg("path"), svg("path", { class: "judged" })];
  const [small, ground] = [element("small"), svg("path", { class: "ground", d: "M0 25.5H96" })];
  const chart = svg("svg", { class: "lengths", viewBox: "0 0 96 26", "aria-hidden": "true" }, ground, judged, granted);
  return [[element("div", { class: "both" }, element("div", {}, length, small), chart)], ({ row, lengths }) => {
    write(length, String(row.draft_length));
    write(small, `judged ${number(row.judged_length)}`);
    const most = Math.max(8, ...lengths.map(([grant]) => grant));
    set(granted, "d", lengthLine(lengths.map(([grant]) => grant), most));
    set(judged, "d", lengthLine(lengths.map(([, mean]) => mean ?? 0), most));
  }];
}

/** The newest at the right. */
function lengthLine(values, most) {
  const step = 96 / (LENGTHS - 1);
  const first = LENGTHS - values.length;
  const points = values.map((value, i) => `${((first + i) * step).toFixed(1)} ${(25 - (24 * value) / most).toFixed(1)}`);
  return `M${points.join("L")}`;
}

function shareCell() {
  const share = document.createTextNode("");
  const [fill, fillTo] = bar();
  return [[element("div", { class: "share" }, share, fill)], ({ row }) => {
    write(share, percent(row.bandwidth_share));
    fillTo(row.bandwidth_share ?? 0);
  }];
}

function deviceRow() {
  const row = element("tr", { role: "row" });
  const fills = COLUMNS.map((column) => {
    const [content, fill] = column.make();
    const kind = `${column.number ? "number" : ""} ${column.wide ? "wide" : ""}`.trim();
    row.append(element("td", { role: "cell", "data-label": column.label, class: kind }, ...content));
    return fill;
  });
  row.fill = (device) => fills.forEach((fill) => fill(device));
  return row;
}

function showDevices() {
  const body = document.querySelector("#devices tbody");
  for (const [number, row] of deviceRows) {
    if (!devices.has(number)) {
      row.remove();
      deviceRows.delete(number);
    }
  }
  for (const [number, device] of devices) {
    if (!deviceRows.has(number)) deviceRows.set(number, deviceRow());
    deviceRows.get(number).fill(device);
  }
  const key = COLUMNS[sortedBy].sort;
  const order = [...devices.values()].sort((a, b) => key(a) - key(b) || a.row.device - b.row.device);
  order.forEach(({ row }, i) => {
    const element = deviceRows.get(row.device);
    if (body.children[i] !== element) body.insertBefore(element, body.children[i] ?? null);
  });
  write(document.querySelector("#devices .count"), devices.size ? `(${plain.format(devices.size)})` : "");
  $("no-devices").hidden = devices.size > 0;
  document.querySelector("#devices table").hidden = devices.size === 0;
}

function sortBy(index) {
  sortedBy = index;
  document.querySelectorAll("#devices th").forEach((head, i) => {
    if (i === index) head.setAttribute("aria-sort", i === 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  });
  $("sort").value = String(index);
  showDevices();
}

function makeDevices() {
  const head = document.querySelector("#devices thead tr");
  COLUMNS.forEach((column, i) => {
    const button = element("button", { type: "button" }, column.title ?? column.label);
    button.addEventListener("click", () => sortBy(i));
    head.append(element("th", { role: "columnheader", scope: "col", class: column.number ? "number" : "" }, button));
    $("sort").append(element("option", { value: String(i) }, column.label));
  });
  $("sort").addEventListener("change", () => sortBy(Number($("sort").value)));
  sortBy(0);
}

// --- texts ---------------------------------------------------------------------------------------

const texts = {
  cards: new Map(), // number -> {card, title, body}

  clear() {
    this.cards.forEach(({ card }) => card.remove());
    this.cards.clear();
  },

  take({ kept, news }) {
    for (const [number, { card }] of this.cards) {
      if (!kept.includes(number)) {
        card.remove();
        this.cards.delete(number);
      }
    }
    for (const text of news) {
      if (!this.cards.has(text.number)) this.cards.set(text.number, this.make(text));
      this.add(this.cards.get(text.number), text);
    }
    document.querySelector("#texts .legend").hidden = false;
    write($("texts-note"), "Nothing has been written since the server was started.");
  },

  make(text) {
    const [title, state] = [element("span"), element("span")];
    const body = element("pre", { tabindex: "0", "aria-label": `text of device ${text.device}` });
    const card = element("article", { class: "text" }, element("h3", {}, title, state), body);
    document.querySelector(".texts").prepend(card);
    return { card, title, state, body };
  },

  add({ title, state, body }, text) {
    const isAtEnd = body.scrollTop + body.clientHeight >= body.scrollHeight - 20;
    for (const [kind, words] of text.runs) {
      const last = body.lastElementChild;
      if (last && last.dataset.kind === kind && (kind === "accepted" || kind === "alone")) last.append(words);
      else body.append(element("span", { "data-kind": kind }, words));
    }
    while (body.children.length > MAX_RUNS) body.firstElementChild.remove();
    if (isAtEnd) body.scrollTop = body.scrollHeight;
    write(title, `device ${text.device}, session ${text.session}`);
    write(state, `${count(text.num_tokens, "token")}${text.finish ? `, ended (${text.finish})` : ""}`);
  },
};

// --- everything ----------------------------------------------------------------------------------

function showAbout() {
  write($("target"), about.target);
  set($("target"), "title", about.target);
  write($("mode"), about.mode);
  write($("policy"), about.policy ?? "each device decides");
  const word = about.mode === "window" ? "window" : "draft length";
  const at = COLUMNS.findIndex((column) => column.make === lengthCell);
  COLUMNS[at].label = word;
  write(document.querySelectorAll("#devices th button")[at], word);
  write($("sort").options[at], word);
}

function showAll() {
  if (document.hidden) return;
  showCharts();
  drawTimeline();
  showBatch();
  showPlans();
  showDevices();
  write($("totals"), `${count(sums.num_committed_tokens, "token")} committed and ${count(sums.num_errors, "error")} since the server was started`);
  document.title = `${number(sums.goodput_tokens_per_s)} tokens/s · multispin`;
}

makeDevices();
drawCharts();
$("timeline").addEventListener("keydown", stepTimeline);
$("timeline").addEventListener("pointermove", pointTimeline);
$("timeline").addEventListener("pointerdown", pointTimeline);
$("timeline").addEventListener("pointerleave", () => choose(null));
$("timeline").addEventListener("blur", () => choose(null));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawCharts();
  drawTimeline();
});
new ResizeObserver(() => {
  charts.forEach((chart) => {
    const { clientWidth, clientHeight } = chart.root.parentElement;
    chart.setSize({ width: clientWidth, height: clientHeight });
  });
  drawTimeline();
}).observe($("now"));
listenOn();
