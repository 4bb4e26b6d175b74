// Asks the service how it is, every few seconds, and shows it.

import { makeCharts } from "./charts.js";
import { NONE, bounded, bytes, duration, milliseconds, moment, number, percent } from "./format.js";
import { makeSessions } from "./sessions.js";
import { language, text } from "./text.js";

const EVERY = 3000;
const PATIENCE = 5000;
// Seconds after which a row that waits is late, whatever the flush interval; and the share of the journal that is much.
const LATE = 60;
const MUCH = 0.8;
const MARKS = {
  good: "M5 12.5l4.5 4.5L19 7.5",
  warning: "M12 5v9M12 18.2v.1",
  bad: "M7 7l10 10M17 7L7 17",
  unknown: "M6 12h.1M12 12h.1M18 12h.1",
};

const byId = (id) => document.getElementById(id);
const write = (id, words) => {
  const node = byId(id);
  if (node.textContent !== words) node.textContent = words;
};

let charts = [];
let answered = null;

// What the figures come to, in words.
function judge(now) {
  const { intake, sink, waiting } = now;
  const rows = text.rows(waiting.rows, number(waiting.rows));
  const used = waiting.journal_bytes / waiting.journal_max_bytes;
  if (waiting.journal_full_in_seconds === 0) {
    const cause = sink.up ? text.fullBehind : text.fullDown(sink.name);
    return ["bad", text.full, `${cause}${text.closedDetail}`, now.reason];
  }
  if (!intake.accepting) return ["bad", text.closed, text.closedDetail, now.reason];
  const left = waiting.journal_full_in_seconds === null ? "" : text.fullIn(duration(waiting.journal_full_in_seconds));
  if (used > MUCH) return ["warning", text.nearlyFull, text.nearlyFullDetail(percent(used)) + left, sink.error];
  if (!sink.up && !sink.since) return ["unknown", text.waking, text.wakingDetail, ""];
  if (!sink.up) {
    const retry = sink.retry_in > 0 ? text.retry(duration(Math.ceil(sink.retry_in))) : "";
    return ["warning", text.sinkDown, text.sinkDownDetail(rows) + retry + left, sink.error];
  }
  if (waiting.oldest_seconds > 2 * waiting.flush_seconds + LATE) {
    return ["warning", text.behind, text.behindDetail(duration(waiting.oldest_seconds)) + left, now.flushes[0]?.error ?? ""];
  }
  if (now.samples.refused.some((batches) => batches > 0)) {
    return ["warning", text.refusing, text.refusingDetail, refusedWhy(now.refused.last)];
  }
  const open = now.rejected_open.rows;
  if (open) return ["warning", text.rejecting, text.rejectingDetail(text.rows(open, number(open))), ""];
  return ["good", text.well, text.wellDetail(short(sink.description)), ""];
}

// Why a batch was refused, and whose it was.
function refusedWhy({ status, detail, client, user_agent }) {
  return `${status} ${detail} (${[client, user_agent].filter(Boolean).join(", ")})`;
}

// Without the packager's own number, which is of no use here.
function short(description) {
  return description.replace(/ \([^)]*\)/, "");
}

function state(level, headline, sentence, reason) {
  byId("state").dataset.level = level;
  byId("mark").setAttribute("d", MARKS[level]);
  write("headline", headline);
  write("sentence", sentence);
  write("reason", reason);
  byId("reason").hidden = !reason;
  document.title = level === "good" ? "persistd" : `${headline} · persistd`;
}

// The mean of a column over the last minute.
function lately(samples, column, seconds, now) {
  const recent = samples[column].filter((value, index) => value !== null && samples.at[index] > now - seconds);
  return recent.length ? recent.reduce((sum, value) => sum + value, 0) / recent.length : null;
}

function tiles({ now, answers, samples, waiting }) {
  for (const name of ["accepted", "written", "merged"]) write(`tile-${name}`, number(lately(samples, name, 60, now)));
  write("tile-waiting", number(waiting.rows));
  write("tile-oldest", waiting.rows ? text.oldest(duration(waiting.oldest_seconds)) : text.nothingWaits);
  for (const name of ["p50", "p99"]) write(`tile-${name}`, bounded(answers.limit_ms)(answers[`${name}_ms`]));
}

// The oldest rejected rows about which nobody has decided.
function open({ rejected_open: { rows, first } }) {
  byId("rejected").hidden = !rows;
  if (!rows) return;
  write("rejected-title", text.rejectedOpen(number(rows)));
  table("open", first, (row, { at, session_id, task_id, code, message }) => {
    cell(row, at ? moment(at) : NONE);
    cell(row, [session_id, task_id].filter(Boolean).join(" / ") || NONE, { name: "key" });
    cell(row, code ? `${message} (${code})` : message, { name: "message" });
  });
  write("rejected-more", rows > first.length ? text.more(number(rows - first.length)) : "");
}

function meter(id, part, words) {
  const shown = Math.min(part, 1);
  const node = byId(id);
  node.setAttribute("aria-valuenow", shown.toFixed(3));
  node.setAttribute("aria-valuetext", words);
  node.dataset.level = part > MUCH ? "warning" : "";
  // What is there at all can be seen.
  node.firstElementChild.style.width = shown ? `max(3px, ${100 * shown}%)` : "0";
  write(`${id}-value`, words);
}

function limits({ now, sink, waiting, disk_free_bytes: free }) {
  meter("memory", waiting.in_memory / waiting.max_rows, text.of(number(waiting.in_memory), number(waiting.max_rows)));
  meter(
    "held",
    waiting.memory_bytes / waiting.memory_max_bytes,
    text.of(bytes(waiting.memory_bytes), bytes(waiting.memory_max_bytes)),
  );
  meter(
    "journal",
    waiting.journal_bytes / waiting.journal_max_bytes,
    text.of(bytes(waiting.journal_bytes), bytes(waiting.journal_max_bytes)),
  );
  const left = waiting.journal_full_in_seconds;
  const tight = free !== null && free < waiting.journal_max_bytes - waiting.journal_bytes;
  list("room", [
    [text.fullInName, left === null ? text.notGrowing : duration(left), left === null ? "" : "warning"],
    [text.diskFree, bytes(free), tight ? "warning" : ""],
  ]);
  const next = text.nextFlush(duration(Date.parse(waiting.next_flush) / 1000 - now));
  const full = waiting.rows > waiting.in_memory;
  write("limits-note", full ? text.overflow : sink.up ? next : ""); // a sink that is down is tried by another clock
}

// A list of names and values; rows are made once.
function list(id, pairs) {
  const holder = byId(id);
  while (holder.children.length < pairs.length) {
    const pair = document.createElement("div");
    pair.append(document.createElement("dt"), document.createElement("dd"));
    holder.append(pair);
  }
  pairs.forEach(([name, value, level], index) => {
    const [term, detail] = holder.children[index].children;
    if (term.textContent !== name) term.textContent = name;
    if (detail.textContent !== value) detail.textContent = value;
    detail.dataset.level = level ?? "";
  });
}

function sink({ now, sink }) {
  const up = sink.since === null ? text.unknown : sink.up ? `✓ ${text.up}` : `✕ ${text.down}`;
  const level = sink.since === null ? "" : sink.up ? "good" : "bad";
  const since = sink.since === null ? NONE : `${moment(sink.since)} (${duration(now - Date.parse(sink.since) / 1000)})`;
  list("sink", [[text.name, sink.name], [text.place, sink.up ? short(sink.description) : sink.address], [text.condition, up, level], [text.since, since]]
    .concat(sink.clock_problem ? [[text.clock, text.clockOff(sink.clock_skew_seconds), "warning"]] : []));
}

function accounting({ accounting: rows }) {
  const terms = ["written", "merged", "rejected", "pending"];
  list("accounting", [
    [text.accepted, number(rows.accepted)],
    ...terms.map((term, index) => [`${index ? "+" : "="} ${text[term]}`, number(rows[term]), term === "rejected" && rows[term] ? "warning" : ""]),
  ]);
}

// Which service this is.
function instance({ instance: { name, version, host, url, data_dir, pid, uptime_seconds } }) {
  write("version", version);
  const uptime = duration(uptime_seconds);
  list("instance", [[text.instance, name], [text.host, host], [text.address, url || NONE], [text.dataDir, data_dir], [text.process, `${pid}`], [text.uptime, uptime]]);
}

// The batch that was refused last; its sender may never look at the answers.
function refused({ refused: { batches, rows, last } }) {
  byId("refused").hidden = last === null;
  if (last === null) return;
  write("refused-sum", text.refusedSum(number(batches), number(rows)));
  list("refused-last", [
    [text.time, moment(last.at)],
    [text.what, text.batchKinds[last.kind]],
    [text.answer, `${last.status} ${last.detail}`, last.status < 500 ? "warning" : "bad"],
    [text.client, last.client],
    [text.program, last.user_agent || NONE],
    [text.requestId, last.request_id],
  ]);
}

// Rows that never got here: their clients dropped them, and said so.
function clientDrops({ client_drops: { rows, last } }) {
  byId("client-drops").hidden = last === null;
  if (last === null) return;
  write("client-drops-sum", text.clientDropsSum(number(rows), moment(last.at), last.client, last.user_agent || NONE));
}

function answer(row, { status, total, recent }) {
  const level = status < 400 ? "good" : status < 500 ? "warning" : "bad";
  const meaning = text.statuses[status];
  cell(row, meaning ? `${status} ${meaning}` : `${status}`, { level: recent ? level : "" });
  cell(row, number(recent), { name: "number" });
  cell(row, number(total), { name: "number" });
}

function cell(row, words, { label = "", level = "", name = "" } = {}) {
  const made = row.insertCell();
  made.textContent = words;
  made.className = name;
  if (label) made.dataset.label = label;
  if (level) made.dataset.level = level;
  return made;
}

function table(id, items, fill) {
  byId(id).replaceChildren(
    ...items.map((item) => {
      const row = document.createElement("tr");
      fill(row, item);
      return row;
    }),
  );
  byId(id).closest("table").hidden = items.length === 0;
  const none = byId(`no-${id}`);
  if (none) none.hidden = items.length > 0;
}

function flush(row, { at, rows, rejected, seconds, error }) {
  cell(row, moment(at));
  cell(row, number(rows), { name: "number" });
  cell(row, number(rejected), { name: "number" });
  cell(row, milliseconds(seconds * 1000), { name: "number" });
  const [words, level] = error ? [text.bad, "bad"] : rejected ? [text.partly, "warning"] : [text.good, "good"];
  cell(row, words, { level }).title = error;
}

function incident(row, { last, what, message, code, count }) {
  cell(row, moment(last));
  const kind = cell(row, text.kinds[what]);
  if (count > 1) {
    const often = document.createElement("small");
    often.textContent = (what === "rejected" || what === "lost" ? text.rowsOf : text.times)(number(count));
    kind.append(" ", often);
  }
  cell(row, code ? `${message} (${code})` : message, { name: "message" });
}

function fresh(is, words) {
  write("live", words);
  for (const node of [byId("live"), document.querySelector("main")]) node.dataset.stale = is ? "" : "yes";
}

function show(now) {
  fresh(true, text.live(moment(now.now * 1000)));
  state(...judge(now));
  write("caution", now.caution);
  byId("open-to-all").hidden = !now.caution;
  instance(now);
  tiles(now);
  limits(now);
  sink(now);
  accounting(now);
  refused(now);
  clientDrops(now);
  open(now);
  table("answers", now.answers.statuses, answer);
  table("flushes", now.flushes.slice(0, 10), flush);
  table("errors", now.incidents.slice(0, 10), incident);
  charts.forEach((chart) => chart.show(now));
}

// The token was taken away, or may not read.
async function refuse(response) {
  const { detail } = await response.json();
  const words = response.status === 401 ? [text.noToken, text.noTokenDetail] : [text.denied, text.deniedDetail];
  state("bad", ...words, detail);
  fresh(false, text.stale(moment(answered ?? Date.now())));
}

async function look() {
  try {
    const response = await fetch("api/v1/persistence/history", { signal: AbortSignal.timeout(PATIENCE) });
    if (response.status === 401 || response.status === 403) {
      await refuse(response);
      return;
    }
    if (!response.ok) throw new Error(response.statusText);
    const now = await response.json();
    answered = now.now * 1000;
    show(now);
  } catch {
    state("bad", text.gone, text.goneDetail, "");
    fresh(false, text.stale(moment(answered ?? Date.now())));
  }
}

async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, EVERY);
}

document.documentElement.lang = language;
for (const node of document.querySelectorAll("[data-text]")) node.textContent = text[node.dataset.text];
charts = makeCharts(byId("charts"));
const sessions = makeSessions();
// The address says which view is shown, so that a reload shows it again.
function select() {
  const view = location.hash === "#sessions" ? "sessions" : "overview";
  byId("view-overview").hidden = view !== "overview";
  for (const name of ["overview", "sessions"]) {
    if (name === view) byId(`to-${name}`).setAttribute("aria-current", "page");
    else byId(`to-${name}`).removeAttribute("aria-current");
  }
  sessions.select(view === "sessions");
}
addEventListener("hashchange", select);
select();
document.addEventListener("visibilitychange", () => document.hidden || look());
watch();
