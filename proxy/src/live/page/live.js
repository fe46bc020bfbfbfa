"use strict";
// The live page. Everything that comes from requests is put in place with textContent, and
// characters that would be invisible, or turn text around, are spelled out.

const MAX_ROWS = 200;
const $ = (id) => document.getElementById(id);

// Controls, invisible characters, directions, line separators, lone surrogates.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb]|[\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}]|\p{Cs}/u;

/** Requests by key, oldest first. */
const requests = new Map();
/** What came while the page was paused. */
const held = new Map();
const shown = { rows: [], chosen: null, open: null, fresh: new Set() };
let paused = false;
let born = "";
let lostBefore = 0;
let lost = 0;
let drawing = false;

// Small parts of pages.

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  add(element, ...children);
  return element;
}

function add(element, ...children) {
  for (const child of children) {
    if (child === null || child === undefined || child === "") continue;
    if (child instanceof Node) element.append(child);
    else plain(element, String(child));
  }
}

/** Text, with what cannot be seen spelled out. */
function plain(element, text) {
  let rest = text;
  while (rest) {
    const at = rest.search(HIDDEN);
    if (at < 0) break;
    if (at > 0) element.append(document.createTextNode(rest.slice(0, at)));
    const point = rest.codePointAt(at);
    const spelled = document.createElement("span");
    spelled.className = "esc";
    spelled.textContent = "\\u{" + point.toString(16) + "}";
    element.append(spelled);
    rest = rest.slice(at + (point > 0xffff ? 2 : 1));
  }
  if (rest) element.append(document.createTextNode(rest));
}

/** A value as the proxy tells it: text, masked, cut, or with bytes that are no text. */
function value(of, limit = Infinity) {
  const element = make("span");
  if (typeof of === "string") {
    add(element, of.slice(0, limit));
  } else if (of && "masked" in of) {
    const masked = make("span", "masked", `masked, ${of.masked} bytes #${of.mark}`);
    masked.title = "The same #mark is the same value";
    element.append(masked);
  } else if (of) {
    for (const piece of of.text ?? []) {
      if (typeof piece === "string") add(element, piece.slice(0, limit));
      else add(element, make("span", "esc", piece.hex.replace(/../g, "\\x$&")));
    }
    if (of.of) add(element, make("span", "more", ` … cut, ${bytes(of.of)}`));
  }
  return element;
}

/** The same as mere text, to search in. */
function textOf(of) {
  if (typeof of === "string") return of;
  if (!of || "masked" in of) return "";
  return (of.text ?? []).map((piece) => (typeof piece === "string" ? piece : "")).join("");
}

function took(micros) {
  if (micros === null || micros === undefined) return "";
  if (micros < 1000) return `${micros} µs`;
  if (micros < 10_000) return `${(micros / 1000).toFixed(2)} ms`;
  if (micros < 1_000_000) return `${(micros / 1000).toFixed(1)} ms`;
  return `${(micros / 1_000_000).toFixed(2)} s`;
}

function bytes(count) {
  if (count < 1024) return `${count} B`;
  if (count < 1024 * 1024) return `${(count / 1024).toFixed(1)} KiB`;
  return `${(count / 1024 / 1024).toFixed(1)} MiB`;
}

function clock(millis) {
  const at = new Date(millis);
  const two = (n) => String(n).padStart(2, "0");
  const three = String(at.getMilliseconds()).padStart(3, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${three}`;
}

// What is known.

const calls = (request) => request.calls ?? [];

function matches(request) {
  const route = $("f-route").value;
  if (route && textOf(request.route) !== route) return false;
  const filter = $("f-filter").value;
  if (filter && !calls(request).some((call) => textOf(call.filter) === filter)) return false;
  if (!hasStatus(request, $("f-status").value)) return false;
  const text = $("f-text").value.trim().toLowerCase();
  if (!text) return true;
  request.words ??= words(request).toLowerCase();
  return text.split(/\s+/).every((word) => request.words.includes(word));
}

function hasStatus(request, wanted) {
  switch (wanted) {
    case "": return true;
    case "running": return request.state === "running";
    case "flag": return (request.flags ?? []).length > 0 || request.cut_off === true;
    case "policy": return calls(request).some((call) => call.result === "answered");
    case "failed": return calls(request).some((call) => call.failed);
    case "changed": return calls(request).some((call) => call.request.length + call.response.length > 0);
    default: return Math.floor((request.status ?? 0) / 100) === Number(wanted);
  }
}

function words(request) {
  const all = [request.method, request.host, request.path, request.route, request.cluster, request.details].map(textOf);
  all.push(request.client, String(request.status ?? ""));
  for (const flag of request.flags ?? []) all.push(...flag);
  for (const fields of [request.sent, request.went, request.answered, request.returned, request.trailers]) {
    for (const [name, of] of fields ?? []) all.push(`${name}: ${textOf(of)}`);
  }
  for (const call of calls(request)) {
    all.push(textOf(call.filter), call.kind, call.phase, call.result);
    for (const [, name, old, now] of [...call.request, ...call.response]) {
      all.push(name, ...old.map(textOf), ...now.map(textOf));
    }
  }
  return all.join("\n");
}

function put(request) {
  const known = requests.get(request.key);
  requests.delete(request.key);
  if (!known) shown.fresh.add(request.key);
  requests.set(request.key, request);
  while (requests.size > MAX_ROWS) requests.delete(requests.keys().next().value);
}

function receive(request) {
  if (paused) {
    held.set(request.key, request);
    if (held.size > MAX_ROWS) held.delete(held.keys().next().value);
    state();
    return;
  }
  put(request);
  draw();
}

// The list.

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawRows();
  });
}

function drawRows() {
  options();
  const all = [...requests.values()].sort((a, b) => b.at - a.at || b.n - a.n);
  const visible = all.filter(matches);
  const widest = Math.max(1, ...visible.map((request) => request.duration ?? 0));
  const scale = $("scale").checked ? widest : 0;
  const rows = $("rows");
  const old = new Map([...rows.children].map((row) => [row.dataset.key, row]));
  const drawn = visible.map((request) => {
    const sign = `${request.state} ${scale}`;
    const row = old.get(request.key);
    if (row && row.dataset.sign === sign) return row;
    return rowOf(request, scale, sign);
  });
  // Nothing moves for who is reading: only what differs is touched.
  drawn.forEach((row, at) => {
    if (rows.children[at] !== row) rows.insertBefore(row, rows.children[at] ?? null);
  });
  while (rows.children.length > drawn.length) rows.lastChild.remove();
  shown.rows = visible.map((request) => request.key);
  shown.fresh.clear();
  choose(shown.chosen, false);
  $("empty").hidden = visible.length > 0;
  $("empty").textContent = requests.size > 0
    ? "No request matches the filters."
    : "Nothing yet. Requests through the proxy appear here as they come.";
  $("count").textContent = visible.length === requests.size
    ? `${requests.size}` : `${visible.length} of ${requests.size}`;
  if (shown.open && requests.has(shown.open.key) && requests.get(shown.open.key) !== shown.open) {
    open(shown.open.key, false);
  }
}

function rowOf(request, scale, sign) {
  const row = make("div", "row");
  row.dataset.key = request.key;
  row.dataset.sign = sign;
  row.id = `r-${request.key}`;
  row.setAttribute("role", "option");
  row.setAttribute("aria-selected", "false");
  if (request.state === "running") row.classList.add("running");
  if (request.bodies) row.classList.add("tapped");
  if (shown.fresh.has(request.key)) row.classList.add("fresh");
  const what = make("span", "what", make("b", "", value(request.method, 20)), " ",
    make("i", "", value(request.host, 100)), value(request.path, 300));
  what.title = `${textOf(request.method)} ${textOf(request.host)}${textOf(request.path)}`.slice(0, 300).replace(new RegExp(HIDDEN, "gu"), "?");
  add(row, make("span", "time", clock(request.at)), what,
    make("span", "route", value(request.route, 100)), statusOf(request),
    make("span", "took", request.state === "running" ? "…" : took(request.duration)),
    barOf(request, scale));
  row.addEventListener("click", () => { choose(request.key, true); open(request.key, false); });
  return row;
}

function statusOf(request) {
  if (request.state === "running") return make("span", "status", "on its way");
  const status = request.status ?? 0;
  const element = make("span", "status", make("span", `s${Math.floor(status / 100)}`, status || "none"));
  const flags = (request.flags ?? []).map(([short]) => short);
  if (request.cut_off) flags.push("cut off");
  if (flags.length) add(element, " ", make("small", "", flags.join(" ")));
  return element;
}

/** The parts of a request's time: kind, begin, end, and what happened. */
function parts(request) {
  const all = [];
  for (const attempt of request.attempts ?? []) {
    const bad = attempt.status === null || attempt.status >= 500;
    all.push({ kind: "upstream", begun: attempt.begun, ended: attempt.answered ?? attempt.ended, bad, attempt });
  }
  if (request.responded !== null && request.responded !== undefined) {
    all.push({ kind: "body", begun: request.responded, ended: request.duration, bad: request.cut_off });
  }
  for (const call of calls(request)) {
    all.push({ kind: call.kind, begun: call.begun, ended: call.ended, bad: call.failed, stop: call.result === "answered", call });
  }
  return all;
}

function segment(part, whole) {
  const element = make("span", part.kind);
  if (part.bad) element.classList.add("bad");
  if (part.stop) element.classList.add("stop");
  const begin = Math.min(100, (part.begun / whole) * 100);
  element.style.left = `${begin}%`;
  element.style.width = `${Math.min(100 - begin, ((part.ended - part.begun) / whole) * 100)}%`;
  element.title = `${labelOf(part)}: ${took(part.ended - part.begun)}`;
  return element;
}

function labelOf(part) {
  if (part.call) {
    const name = textOf(part.call.filter).replace(new RegExp(HIDDEN, "gu"), "?");
    return `${name} ${part.call.phase}${part.call.count > 1 ? ` ×${part.call.count}` : ""}`;
  }
  return part.attempt ? `upstream ${part.attempt.endpoint}` : "response body";
}

function barOf(request, scale) {
  const bar = make("span", "bar");
  const duration = request.duration ?? 0;
  const whole = Math.max(1, scale || duration);
  const all = make("span", "whole");
  all.style.width = `${Math.min(100, (duration / whole) * 100)}%`;
  add(bar, all);
  if (request.state !== "running") for (const part of parts(request)) add(bar, segment(part, whole));
  return bar;
}

function options() {
  const routes = new Set();
  const filters = new Set();
  for (const request of requests.values()) {
    const route = textOf(request.route);
    if (route) routes.add(route);
    for (const call of calls(request)) filters.add(textOf(call.filter));
  }
  fill($("f-route"), routes);
  fill($("f-filter"), filters);
  fill($("routes"), routes);
}

/** Adds the choices that there are to those that were. */
function fill(list, names) {
  const known = new Set([...list.children].map((option) => option.value));
  for (const name of [...names].sort()) {
    if (known.has(name) || list.children.length > MAX_ROWS) continue;
    const option = make("option", "", name.slice(0, 80));
    option.value = name;
    list.append(option);
  }
}

function choose(key, scroll) {
  shown.chosen = key;
  const rows = $("rows");
  rows.removeAttribute("aria-activedescendant");
  for (const row of rows.children) {
    const chosen = row.dataset.key === key;
    if (row.getAttribute("aria-selected") !== String(chosen)) row.setAttribute("aria-selected", String(chosen));
    if (!chosen) continue;
    rows.setAttribute("aria-activedescendant", row.id);
    if (scroll) row.scrollIntoView({ block: "nearest" });
  }
}

function move(by) {
  const at = shown.rows.indexOf(shown.chosen);
  const next = at < 0 ? 0 : Math.max(0, Math.min(shown.rows.length - 1, at + by));
  if (shown.rows.length === 0) return;
  choose(shown.rows[next], true);
  if (shown.open) open(shown.rows[next], false);
}

// One request in full.

function open(key, focus) {
  const request = requests.get(key);
  if (!request) return;
  const detail = $("detail");
  const same = shown.open?.key === key;
  const scrolled = detail.scrollTop;
  shown.open = request;
  detail.replaceChildren(...detailOf(request));
  detail.hidden = false;
  detail.parentElement.classList.add("opened");
  detail.scrollTop = same ? scrolled : 0;
  if (focus) detail.focus();
}

function close() {
  shown.open = null;
  $("detail").hidden = true;
  $("detail").parentElement.classList.remove("opened");
  $("detail").replaceChildren();
  $("rows").focus();
}

function detailOf(request) {
  const button = make("button", "", "Close");
  button.id = "close";
  button.addEventListener("click", close);
  const title = make("h2", "", value(request.method), " ", value(request.host), value(request.path));
  const all = [make("div", "top", title, button), facts(request)];
  if (request.state === "running") {
    all.push(make("p", "none", "It is on its way: what is known of it stands here when it is over."));
    return all;
  }
  all.push(heading("Waterfall", `${took(request.duration)} from the first byte to the last`), falls(request));
  const sent = request.sent ?? [];
  all.push(heading("Client sent"), table(sent));
  all.push(...steps(request, "request"));
  // Where somebody else answered, nothing went there.
  if (request.went && (request.attempts.length || request.status === null)) {
    all.push(heading("Upstream got", "what differs is marked"), table(request.went, sent));
  }
  if (request.bodies) {
    all.push(...payload("Request body, from the client", request.bodies.received));
    all.push(...payload("Request body, to the upstream", request.bodies.sent));
  }
  if (request.answered) all.push(heading("Upstream answered"), table(request.answered));
  all.push(...steps(request, "response"));
  if (request.returned) {
    const local = request.answered ? "what differs is marked" : "made by the proxy or a policy";
    all.push(heading("Client got", local), table(request.returned, request.answered));
  }
  if (request.trailers) all.push(heading("Trailers"), table(request.trailers));
  if (request.bodies) {
    all.push(...payload("Response body, from the upstream", request.bodies.answered));
    all.push(...payload("Response body, to the client", request.bodies.returned));
  }
  if (request.left_out) {
    all.push(make("p", "none", `${request.left_out} more names or changes had no room. A tap shows more.`));
  }
  return all;
}

function heading(text, more) {
  return make("h3", "", text, more ? make("span", "", ` – ${more}`) : null);
}

function facts(request) {
  const list = make("dl", "facts");
  const fact = (name, ...of) => { if (of.some((one) => one !== "" && one !== null && one !== undefined)) add(list, make("dt", "", name), make("dd", "", ...of)); };
  fact("Status", statusOf(request));
  for (const [short, long] of request.flags ?? []) fact("Flag", `${short} ${long}`);
  if (textOf(request.details)) fact("Details", value(request.details));
  if (textOf(request.route)) fact("Route", value(request.route), request.cluster && textOf(request.cluster) !== textOf(request.route) ? " → " : "", request.cluster && textOf(request.cluster) !== textOf(request.route) ? value(request.cluster) : "");
  fact("Client", `${request.client}, ${request.protocol}`);
  fact("At", `${clock(request.at)}, request ${request.n}`);
  if (request.state === "over") {
    fact("Bodies", `${bytes(request.bytes_received)} received, ${bytes(request.bytes_sent)} sent`);
    const times = [];
    if (request.received !== null) times.push(`request complete after ${took(request.received)}`);
    if (request.responded !== null) times.push(`response began after ${took(request.responded)}`);
    fact("Times", times.join(", "));
    const attempts = request.attempts ?? [];
    if (attempts.length > 1) fact("Retries", String(attempts.length - 1));
  }
  return list;
}

function falls(request) {
  const grid = make("div", "falls");
  const whole = Math.max(1, request.duration);
  for (const part of parts(request).sort((a, b) => a.begun - b.begun)) {
    const bar = make("span", "bar", segment(part, whole));
    const figure = make("span", "figure", took(part.ended - part.begun));
    if (part.call) {
      if (part.call.result !== "continued") add(figure, ` · ${part.call.result.replaceAll("_", " ")}`);
      if (part.call.status) add(figure, ` · gRPC ${part.call.status}`);
      figure.title = `began after ${took(part.call.begun)}; ${bytes(part.call.bytes_sent)} sent, ${bytes(part.call.bytes_received)} received; slowest answer ${took(part.call.slowest)}`;
    } else if (part.attempt) {
      add(figure, " · ", make("span", `s${Math.floor((part.attempt.status ?? 0) / 100)}`, part.attempt.status ?? "failed"));
    } else {
      add(figure, ` · ${bytes(request.bytes_sent)}`);
    }
    add(grid, make("span", "", labelOf(part)), bar, figure);
  }
  return grid.children.length ? grid : make("p", "none", "No policy and no upstream was asked.");
}

/** A table of fields; those that `before` has not are marked. */
function table(fields, before) {
  if (fields.length === 0) return make("p", "none", "nothing");
  const known = before && new Set(before.map((field) => JSON.stringify(field)));
  const body = make("tbody");
  for (const field of fields) {
    const row = make("tr", known && !known.has(JSON.stringify(field)) ? "other" : "", make("th", "", field[0]), make("td", "", value(field[1])));
    row.firstChild.scope = "row";
    add(body, row);
  }
  return make("table", "fields", body);
}

function steps(request, side) {
  const all = [];
  if (side === "request" && (request.admitted ?? []).length) {
    all.push(step("", "the proxy", "let it in", request.admitted));
  }
  for (const call of calls(request)) {
    const changes = call[side];
    const of = { response_headers: "response", response_body: "response", response_trailers: "response" }[call.phase] ?? "request";
    const speaks = side === of && (call.failed || call.result === "answered");
    if (changes.length || speaks) {
      const result = call.result === "continued" ? "" : `, ${call.result.replaceAll("_", " ")}`;
      all.push(step(call.kind, call.filter, `${call.kind} ${call.phase}${result}`, changes));
    }
  }
  if (all.length) all.unshift(heading(side === "request" ? "Changed on the way in" : "Changed on the way out"));
  return all;
}

function step(kind, name, what, changes) {
  const list = make("ul", "changes");
  for (const [how, field, old, now] of changes) {
    const item = make("li", how, `${field}: `);
    old.forEach((of, at) => add(item, at ? ", " : "", make("del", "", value(of))));
    if (old.length && now.length) add(item, " → ");
    now.forEach((of, at) => add(item, at ? ", " : "", make("ins", "", value(of))));
    add(list, item);
  }
  const who = typeof name === "string" ? name : value(name);
  return make("div", `step ${kind}`, make("p", "", make("b", "", who), " ", make("small", "", what)), list);
}

function payload(title, body) {
  const cut = body.of > body.kept ? `the first ${bytes(body.kept)} of ${bytes(body.of)}` : bytes(body.of);
  if (body.of === 0) return [heading(title, "none")];
  const shown = make("pre", "payload");
  if (typeof body.text === "string") add(shown, body.text);
  else shown.textContent = dump(body.hex);
  return [heading(title, cut), shown];
}

function dump(hex) {
  const lines = [];
  for (let at = 0; at < hex.length; at += 32) {
    const pairs = hex.slice(at, at + 32).match(/../g);
    const text = pairs.map((pair) => {
      const code = parseInt(pair, 16);
      return code >= 0x20 && code < 0x7f ? String.fromCharCode(code) : "·";
    });
    lines.push(`${(at / 2).toString(16).padStart(6, "0")}  ${pairs.join(" ").padEnd(47)}  ${text.join("")}`);
  }
  return lines.join("\n");
}

// The way to the proxy.

let source = null;

function connect() {
  source?.close();
  source = new EventSource("requests/stream");
  source.onopen = () => { source.alive = true; state(); };
  source.onerror = () => {
    source.alive = false;
    state();
    // The browser comes back by itself, unless it was refused.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  };
  source.addEventListener("request", (event) => {
    const request = JSON.parse(event.data);
    request.key = `${event.lastEventId.split("-")[0]}-${request.n}`;
    receive(request);
  });
  source.addEventListener("status", (event) => {
    const status = JSON.parse(event.data);
    if (status.born !== born) {
      // Another process: what it has not told is not to be waited for.
      born = status.born;
      for (const [key, request] of requests) if (request.state === "running" && !key.startsWith(born)) requests.delete(key);
      draw();
    }
    if (status.lost < lost) lostBefore += lost;
    lost = status.lost;
    const all = lostBefore + lost;
    $("lost").hidden = all === 0;
    $("lost").textContent = `${all} not shown: they came too fast`;
    taps(status.taps);
    state();
  });
}

function state() {
  const element = $("state");
  const alive = source?.alive;
  element.dataset.state = !alive ? "lost" : paused ? "paused" : "live";
  const text = !alive ? "not connected, trying again…" : paused ? `paused, ${held.size} waiting` : "live";
  if (element.textContent !== text) element.textContent = text;
}

function taps(waiting) {
  const list = $("taps");
  list.replaceChildren(...waiting.map((tap) => {
    const what = [tap.method, tap.path && `path ${tap.path}`, tap.route && `route ${tap.route}`, tap.header && `header ${tap.header}`];
    const item = make("li", "", `Waiting ${tap.seconds} s for ${what.filter(Boolean).join(", ") || "the next request"}`);
    const stop = make("button", "", "stop");
    stop.addEventListener("click", () => ask("DELETE", `requests/tap?id=${tap.id}`));
    add(item, stop);
    return item;
  }));
}

async function ask(method, url, body) {
  const said = $("tap-said");
  try {
    const answer = await fetch(url, { method, headers: body ? { "content-type": "application/json" } : {}, body });
    said.textContent = answer.ok ? "" : (await answer.text()).trim();
    return answer.ok;
  } catch {
    said.textContent = "the proxy does not answer";
    return false;
  }
}

// People.

function pause() {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Go on" : "Pause";
  if (!paused) {
    for (const request of held.values()) put(request);
    held.clear();
    draw();
  }
  state();
}

function clear() {
  requests.clear();
  held.clear();
  if (shown.open) close();
  shown.chosen = null;
  draw();
  state();
}

function toggleTap() {
  const form = $("tap");
  form.hidden = !form.hidden;
  $("tap-open").setAttribute("aria-expanded", String(!form.hidden));
  if (!form.hidden) form.elements.path.focus();
}

$("pause").addEventListener("click", pause);
$("clear").addEventListener("click", clear);
$("tap-open").addEventListener("click", toggleTap);
$("tap").addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = {};
  for (const name of ["path", "method", "route", "header", "value"]) {
    const text = $("tap").elements[name].value.trim();
    if (text) asked[name] = text;
  }
  await ask("POST", "requests/tap", JSON.stringify(asked));
});
for (const id of ["f-route", "f-status", "f-filter", "scale"]) $(id).addEventListener("change", draw);
$("f-text").addEventListener("input", draw);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape") {
    if (typing) $("rows").focus();
    else if (shown.open) close();
    return;
  }
  if (typing) return;
  const keys = {
    ArrowDown: () => move(1), ArrowUp: () => move(-1), j: () => move(1), k: () => move(-1),
    p: pause, c: clear, t: toggleTap, "/": () => $("f-text").focus(),
  };
  const inDetail = event.target.closest("#detail");
  if (inDetail && event.key.startsWith("Arrow")) return;
  if (event.key === "Enter" && !event.target.closest("button")) {
    if (shown.chosen) open(shown.chosen, true);
    return;
  }
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
connect();
