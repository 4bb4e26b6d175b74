// The second view: stored sessions, a page at a time, and their failed tasks. It reads only while it is shown.
// All that rows hold is written as text, never as markup.

import { NONE, moment, number, percent } from "./format.js";
import { text } from "./text.js";

const PATH = "api/v1/persistence/sessions";
const EVERY = 5000;
const PATIENCE = 10000;
const ROWS = 25;
// Failed tasks shown at first, more for each press of the button, and at most.
const TASKS = 20;
const MOST_TASKS = 1000;
const COLUMNS = 4;

const byId = (id) => document.getElementById(id);
const set = (node, words) => {
  if (node.textContent !== words) node.textContent = words;
};

function element(tag, name, parent, words = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = words;
  parent.append(made);
  return made;
}

// What went wrong: a sentence for people, and what the service said of it.
class Unread extends Error {
  constructor(sentence, reason) {
    super(sentence);
    this.reason = reason;
  }
}

async function read(path, parameters, signal) {
  let response;
  try {
    const patience = AbortSignal.any([signal, AbortSignal.timeout(PATIENCE)]);
    response = await fetch(`${path}?${new URLSearchParams(parameters)}`, { signal: patience });
    if (response.ok) return await response.json();
  } catch (error) {
    throw signal.aborted ? error : new Unread(text.gone, "");
  }
  const { detail } = await response.json().catch(() => ({}));
  const sentence =
    { 401: text.noTokenDetail, 403: text.deniedDetail, 501: text.notReadable, 503: text.notReadNow }[response.status] ??
    text.notRead;
  throw new Unread(sentence, typeof detail === "string" ? detail : `${response.status}`);
}

// One session: its line, and below it, while it is open, its failed tasks.
class Entry {
  constructor(id, order) {
    this.id = id;
    this.tasks = TASKS;
    this.line = document.createElement("tr");
    const first = element("td", "key", this.line);
    this.button = element("button", "opener", first, id);
    this.button.type = "button";
    this.button.setAttribute("aria-expanded", "false");
    this.button.setAttribute("aria-controls", `failed-${order}`);
    this.file = element("small", "", first);
    this.status = element("td", "", this.line);
    const cell = element("td", "progress", this.line);
    this.bar = element("div", "meter", cell);
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", text.progress);
    this.bar.setAttribute("aria-valuemin", "0");
    this.bar.setAttribute("aria-valuemax", "100");
    this.completed = element("div", "", this.bar);
    this.failed = element("div", "failed", this.bar);
    this.counted = element("small", "", cell);
    this.updated = element("td", "", this.line);

    this.below = document.createElement("tr");
    this.below.id = `failed-${order}`;
    this.below.className = "below";
    this.below.hidden = true;
    const inner = element("td", "", this.below);
    inner.colSpan = COLUMNS;
    element("h3", "", inner, text.failedTasks);
    this.list = element("ul", "failures", inner);
    this.said = element("p", "note", inner);
    this.said.setAttribute("role", "status");
    this.more = element("button", "", inner, text.showMore);
    this.more.type = "button";
    this.more.hidden = true;
  }

  get open() {
    return !this.below.hidden;
  }

  toggle() {
    this.below.hidden = !this.below.hidden;
    this.button.setAttribute("aria-expanded", `${this.open}`);
    if (this.open && !this.list.children.length) set(this.said, text.reading);
  }

  show(session) {
    set(this.file, session.filename ?? "");
    set(this.status, text.rowStatuses[session.status] ?? session.status);
    this.status.dataset.level = { completed: "good", failed: "bad" }[session.status] ?? "";
    // Of the stored tasks; without any, by the session's own counters, as the service counts.
    const stored = Object.values(session.tasks).reduce((sum, count) => sum + count, 0);
    const count = (status) => (stored ? session.tasks[status] : session[`${status}_tasks`]) ?? 0;
    const [completed, failed] = [count("completed"), count("failed")];
    const all = Math.max(stored, session.total_tasks ?? 0);
    const share = failed ? (session.progress * failed) / (completed + failed) : 0;
    this.completed.style.width = `${session.progress - share}%`;
    this.failed.style.width = `${share}%`;
    const parts = [percent(session.progress / 100)];
    if (all) parts.push(text.of(number(completed + failed), number(all)));
    if (failed) parts.push(text.failures(number(failed)));
    this.bar.setAttribute("aria-valuenow", `${session.progress}`);
    this.bar.setAttribute("aria-valuetext", parts.join(", "));
    set(this.counted, parts.join(" · "));
    set(this.updated, session.updated_at ? moment(session.updated_at) : NONE);
  }

  async readTasks(signal) {
    const fields = "sheet_name,row_index,column_name,error_message";
    try {
      const path = `${PATH}/${encodeURIComponent(this.id)}/tasks`;
      const found = await read(path, { status: "failed", limit: this.tasks, fields }, signal);
      // A browser takes the ids "." and ".." for directories, and asks for another path.
      this.showTasks(found.items.filter((task) => task.session_id === this.id), found.next !== null);
    } catch (error) {
      if (!(error instanceof Unread)) throw error;
      set(this.said, error.message);
    }
  }

  showTasks(tasks, isMore) {
    const shown = JSON.stringify(tasks);
    if (shown !== this.shown) this.fill(tasks); // else a message that is being marked to be copied stays so
    this.shown = shown;
    const most = this.tasks >= MOST_TASKS;
    set(this.said, tasks.length ? (isMore && most ? text.mostTasks : "") : text.noFailures);
    if (document.activeElement === this.more && (!isMore || most)) this.button.focus();
    this.more.hidden = !isMore || most;
  }

  fill(tasks) {
    this.list.replaceChildren();
    for (const task of tasks) {
      const item = element("li", "", this.list);
      element("strong", "", item, task.task_id);
      element("small", "", item, [task.sheet_name, number(task.row_index), task.column_name].join(" · "));
      element("p", "", item, task.error_message || text.noMessage);
    }
  }
}

class Sessions {
  constructor() {
    this.entries = new Map();
    this.order = 0;
    this.before = []; // the tokens of the pages before this one
    this.token = "";
    this.next = null;
    this.isShown = false;
    this.reading = new AbortController();
    this.filter = byId("sessions-status");
    this.body = byId("stored-sessions");
    this.options(Object.keys(text.rowStatuses));
    this.filter.addEventListener("change", () => {
      this.clear();
      [this.before, this.token, this.next] = [[], "", null];
      this.read();
    });
    byId("sessions-next").addEventListener("click", () => this.next && this.turn([...this.before, this.token], this.next));
    byId("sessions-back").addEventListener("click", () => {
      if (this.before.length) this.turn(this.before.slice(0, -1), this.before.at(-1));
    });
    document.addEventListener("visibilitychange", () => this.read());
  }

  select(isShown) {
    this.isShown = isShown;
    byId("view-sessions").hidden = !isShown;
    if (isShown) this.read();
    else this.stop();
  }

  stop() {
    clearTimeout(this.timer);
    this.reading.abort();
  }

  // Statuses by which to filter: a service may have more than the usual ones; its sessions' counts name all.
  options(statuses) {
    const known = [...this.filter.options].map((option) => option.value);
    for (const status of statuses) {
      if (!known.includes(status)) this.filter.add(new Option(text.rowStatuses[status] ?? status, status));
    }
  }

  turn(before, token) {
    this.read({ before, token });
  }

  // Read a page: another one is this view's only once it has come.
  async read({ before, token } = this) {
    this.stop();
    if (!this.isShown || document.hidden) return;
    this.reading = new AbortController();
    const { signal } = this.reading;
    try {
      const parameters = { counts: "true", limit: ROWS };
      if (this.filter.value) parameters.status = this.filter.value;
      if (token) parameters.after = token;
      const found = await read(PATH, parameters, signal);
      [this.before, this.token, this.next] = [before, token, found.next];
      this.show(found);
      await Promise.all([...this.entries.values()].filter((entry) => entry.open).map((entry) => entry.readTasks(signal)));
    } catch (error) {
      if (signal.aborted) return;
      this.fail(error);
    }
    if (!signal.aborted) this.timer = setTimeout(() => this.read(), EVERY);
  }

  show({ items, pending }) {
    this.say("", "");
    this.merge(items);
    set(byId("sessions-note"), [items.length ? "" : text.noSessions, pending ? text.notYet(number(pending)) : ""].join(" ").trim());
    set(byId("sessions-page"), text.page(number(this.before.length + 1)));
    byId("sessions-back").setAttribute("aria-disabled", `${!this.before.length}`);
    byId("sessions-next").setAttribute("aria-disabled", `${!this.next}`);
  }

  // Rows that stay are kept, and with them the focus.
  merge(items) {
    const had = this.body.contains(document.activeElement);
    const wanted = new Set(items.map((item) => item.session_id));
    for (const [id, entry] of this.entries) {
      if (wanted.has(id)) continue;
      entry.line.remove();
      entry.below.remove();
      this.entries.delete(id);
    }
    let at = this.body.firstElementChild;
    for (const item of items) {
      this.options(Object.keys(item.tasks));
      const entry = this.entry(item.session_id);
      entry.show(item);
      for (const node of [entry.line, entry.below]) {
        if (at === node) at = at.nextElementSibling;
        else this.body.insertBefore(node, at);
      }
    }
    this.body.closest("table").hidden = items.length === 0;
    if (had && !this.body.contains(document.activeElement)) this.filter.focus();
  }

  entry(id) {
    let entry = this.entries.get(id);
    if (entry) return entry;
    this.order += 1;
    entry = new Entry(id, this.order);
    this.entries.set(id, entry);
    entry.button.addEventListener("click", () => {
      entry.toggle();
      if (entry.open) this.read();
    });
    entry.more.addEventListener("click", () => {
      entry.tasks = Math.min(MOST_TASKS, entry.tasks + 5 * TASKS);
      this.read();
    });
    return entry;
  }

  clear() {
    this.merge([]);
    set(byId("sessions-note"), text.reading);
  }

  // What was read before stays, pale; without any, the sentence stands alone.
  fail(error) {
    if (!(error instanceof Unread)) throw error;
    set(byId("sessions-note"), "");
    this.say(error.message, error.reason);
  }

  say(sentence, reason) {
    set(byId("sessions-sentence"), sentence);
    set(byId("sessions-reason"), reason);
    byId("sessions-reason").hidden = !reason;
    byId("sessions-failed").hidden = !sentence;
    this.body.closest("table").dataset.stale = sentence ? "yes" : "";
  }
}

export function makeSessions() {
  return new Sessions();
}
