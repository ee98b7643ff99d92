// What all pages share: words and numbers, elements, and whether there are news.
"use strict";

const RETRY_MS = 1000;

const $ = (id) => document.getElementById(id);

// --- words and numbers ---------------------------------------------------------------------------

const NONE = "–";
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

const number = (x) => (x == null ? NONE : Math.abs(x) < 100 ? fine.format(x) : plain.format(x));
const percent = (x) => (x == null ? NONE : `${Math.round(100 * x)} %`);
const milli = (s) => (s == null ? NONE : number(1000 * s));
const count = (n, noun) => `${plain.format(n)} ${noun}${n === 1 ? "" : "s"}`;

function bytes(n) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (n < 1000) return `${unit === "B" || n >= 100 ? plain.format(n) : fine.format(n)} ${unit}`;
    n /= 1000;
  }
  return `${fine.format(n)} TB`;
}

// --- elements ------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Touch the page only where something changes. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function set(node, attribute, value) {
  if (node.getAttribute(attribute) !== String(value)) node.setAttribute(attribute, value);
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

/** A bar that is filled to a share between 0 and 1. */
function bar() {
  const fill = svg("rect", { class: "fill", width: 0, height: 6 });
  const track = svg("rect", { class: "track", width: 100, height: 6 });
  const made = svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, track, fill);
  return [made, (share) => set(fill, "width", (100 * Math.min(Math.max(share, 0), 1)).toFixed(1))];
}

// --- the link ------------------------------------------------------------------------------------

let heardAt = null;

function tell(state, words) {
  if (state === "live") heardAt = new Date();
  document.body.dataset.state = state;
  $("status").dataset.state = state;
  write($("status"), words);
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function shown() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((done) => document.addEventListener("visibilitychange", done, { once: true })).then(shown);
}

/** There is no answer; whoever asks waits, and tries again. */
async function lost() {
  const since = heardAt ? `no news since ${clock.format(heardAt)}` : "no answer yet";
  tell("lost", `${since}, trying again …`);
  await pause(RETRY_MS);
}
