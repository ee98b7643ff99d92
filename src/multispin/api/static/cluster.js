// The page of a directory: asks /api/cluster once a second and shows what it says.
"use strict";

const ASK_MS = 1000;
const ANSWER_MS = 4000; // a directory that takes longer is taken for gone
const HISTORY = 300; // answers that the charts reach back
const CONDITIONS = {
  ok: "serves",
  loading: "loads its model",
  engine_lost: "its engine restarts",
  draining: "is being drained",
  down: "no connection",
  other_model: "another model than its target’s",
};

const sum = (values) => values.reduce((total, value) => total + value, 0);

// --- the link ------------------------------------------------------------------------------------

async function ask() {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), ANSWER_MS);
  try {
    const answer = await fetch("/api/cluster", { signal: stop.signal, cache: "no-store" });
    if (answer.status === 401) location.reload(); // the token is no longer valid: ask for another
    if (!answer.ok) return null;
    return await answer.json();
  } catch (error) {
    if (!(error instanceof TypeError || error instanceof DOMException)) throw error; // not the link's
    return null;
  } finally {
    clearTimeout(timer);
  }
}

async function askOn() {
  for (;;) {
    await shown();
    const cluster = await ask();
    if (cluster === null) {
      await lost();
      continue;
    }
    tell("live", "live");
    show(cluster);
    await pause(ASK_MS);
  }
}

// --- now: four tiles -----------------------------------------------------------------------------

const past = { serving: [], sessions: [], goodput: [], verdict: [] };

/** A line of the last values, from 0 up, in a box of 100 x 100. */
function drawn(values) {
  const top = 1.1 * Math.max(...values) || 1;
  const at = (i) => ((100 * i) / Math.max(values.length - 1, 1)).toFixed(2);
  const points = values.map((value, i) => `${at(i)} ${(100 - (100 * value) / top).toFixed(2)}`);
  return `M${points.join("L")}`;
}

function chart(id) {
  const box = document.querySelector(`#${id} .chart`);
  if (!box.firstChild) {
    const area = svg("path", { class: "area" });
    const line = svg("path", { class: "line" });
    box.append(svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }, area, line));
  }
  const [area, line] = box.firstChild.children;
  const path = drawn(past[id]);
  set(line, "d", path);
  set(area, "d", `${path}V100H0z`);
  set(box, "aria-label", `of late between ${number(Math.min(...past[id]))} and ${number(Math.max(...past[id]))}`);
}

function tile(id, value, words, unit, detail) {
  past[id].push(value);
  if (past[id].length > HISTORY) past[id].shift();
  write(document.querySelector(`#${id} .value`), words);
  if (unit) write(document.querySelector(`#${id} small`), unit);
  write(document.querySelector(`#${id} .detail`), detail);
  chart(id);
}

function showTiles({ replicas, num_sessions, goodput_tokens_per_s }) {
  const serving = replicas.filter((replica) => replica.condition === "ok");
  const detail = Object.entries(CONDITIONS)
    .map(([condition, words]) => [replicas.filter((replica) => replica.condition === condition).length, words])
    .filter(([num, words]) => num && words !== CONDITIONS.ok)
    .map(([num, words]) => `${num}: ${words}`);
  tile("serving", serving.length, plain.format(serving.length), `of ${plain.format(replicas.length)} serve`, detail.join(", ") || "all that are listed");
  const places = sum(serving.map((replica) => replica.max_sessions));
  const taken = places ? `${percent(num_sessions / places)} of the places` : "nobody serves";
  tile("sessions", num_sessions, plain.format(num_sessions), `of ${plain.format(places)}`, taken);
  tile("goodput", goodput_tokens_per_s, number(goodput_tokens_per_s), "", `${number(serving.length ? goodput_tokens_per_s / serving.length : 0)} at a replica`);
  const busy = serving.filter((replica) => replica.num_sessions);
  const weight = sum(busy.map((replica) => replica.num_sessions));
  const verdict = weight ? sum(busy.map((r) => r.num_sessions * r.s_per_verdict)) / weight : 0;
  tile("verdict", 1000 * verdict, weight ? milli(verdict) : NONE, "", `${count(sum(replicas.map((r) => r.num_rows_waiting)), "row")} waiting for a pass`);
}

// --- tables --------------------------------------------------------------------------------------

const rows = { replicas: new Map(), cells: new Map() };

/** A row for each of the ``items``, in their order; ``make`` makes one, ``fill`` says what is new. */
function showRows(section, items, name, make, fill) {
  const known = rows[section];
  const body = document.querySelector(`#${section} tbody`);
  const names = new Set(items.map(name));
  for (const [gone, row] of known) {
    if (!names.has(gone)) {
      row.remove();
      known.delete(gone);
    }
  }
  items.forEach((item, i) => {
    const row = known.get(name(item)) ?? make(item);
    known.set(name(item), row);
    if (body.children[i] !== row) body.insertBefore(row, body.children[i] ?? null);
    fill(row, item);
  });
}

function cell(label, attributes = {}, ...children) {
  return element("td", { role: "cell", "data-label": label, ...attributes }, ...children);
}

const numberCell = (label) => cell(label, { class: "number figure" });

function replicaRow() {
  const [track, fill] = bar();
  const name = element("td", { role: "rowheader", class: "replica wide" }, element("b"), element("small"));
  const sessions = cell("sessions", { class: "wide" }, element("div", { class: "bar" }, element("b"), track));
  const figures = ["tokens/s", "rows waiting", "pass, ms", "verdict, ms", "tokens"].map(numberCell);
  const condition = cell("condition", {}, element("span", { class: "condition" }));
  const row = element("tr", { role: "row" }, name, cell("target"), condition, sessions, ...figures);
  row.fill = fill;
  return row;
}

function fillReplica(row, replica) {
  const [name, target, condition, sessions, goodput, waiting, pass, verdict, tokens] = row.children;
  const isThere = replica.condition !== "down";
  set(row, "data-condition", replica.condition);
  write(name.children[0], replica.name);
  write(name.children[1], replica.server);
  write(target, replica.target);
  write(condition.firstChild, CONDITIONS[replica.condition] ?? replica.condition);
  write(sessions.querySelector("b"), isThere ? `${replica.num_sessions} of ${replica.max_sessions}` : NONE);
  row.fill(replica.max_sessions ? replica.num_sessions / replica.max_sessions : 0);
  write(goodput, isThere ? number(replica.goodput_tokens_per_s) : NONE);
  write(waiting, isThere ? plain.format(replica.num_rows_waiting) : NONE);
  write(pass, replica.num_committed_tokens ? milli(replica.pass_s) : NONE);
  write(verdict, replica.s_per_verdict ? milli(replica.s_per_verdict) : NONE);
  write(tokens, isThere ? plain.format(replica.num_committed_tokens) : NONE);
}

function cellRow() {
  const name = element("td", { role: "rowheader" });
  const figures = ["devices that draft", "budget"].map(numberCell);
  return element("tr", { role: "row" }, name, ...figures, cell("of it at", { class: "wide" }));
}

function fillCell(row, { cell: name, num_devices, budget, budgets }) {
  const [title, devices, whole, shares] = row.children;
  write(title, name || "(no name)");
  write(devices, plain.format(num_devices));
  write(whole, budget ? plain.format(budget) : NONE);
  const parts = Object.entries(budgets).filter(([, share]) => share);
  write(shares, parts.map(([replica, share]) => `${replica} ${percent(share / budget)}`).join(", ") || NONE);
}

// --- everything ----------------------------------------------------------------------------------

function show(cluster) {
  write($("targets"), cluster.targets.map((target) => target.name).join(", "));
  showTiles(cluster);
  showRows("replicas", cluster.replicas, (replica) => replica.name, replicaRow, fillReplica);
  $("no-replicas").hidden = cluster.replicas.length > 0;
  const cells = cluster.cells.filter((one) => one.cell || one.budget);
  $("cells").hidden = !cells.length;
  showRows("cells", cells, (one) => one.cell, cellRow, fillCell);
  write($("totals"), `${count(cluster.num_committed_tokens, "token")} committed since the replicas were started`);
  document.title = `${number(cluster.goodput_tokens_per_s)} tokens/s · multispin`;
}

askOn();
