// What the page knows of the daemon: the caller's rights, and the stream of the flock.
import { useEffect, useReducer, useState } from "./lib/preact.js";
import { daemon as w } from "./words.js";

// Problem is an answer that is an error.
export class Problem extends Error {
  constructor(status, message, type = "") {
    super(message);
    this.status = status;
    this.type = type; // of RFC 9457
  }
}

export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options, headers: { Accept: "application/json, application/problem+json", ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, w.silent);
  }
  if (!response.ok) {
    let text = "";
    let type = "";
    try {
      const body = await response.json();
      text = body.detail || body.message || "";
      type = body.type || "";
    } catch {}
    if (response.status === 401 && path !== "/session") session.refresh();
    throw new Problem(response.status, text || w.answered(response.status), type);
  }
  return response;
}

export const get = async (path, options) => (await ask(path, options)).json();
export const post = async (path, body) =>
  (await ask(path, { method: "POST", ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }) })).json();

// A source is something that components use and that changes.
class Source {
  #users = new Set();
  changes = 0;
  changed() {
    this.changes++;
    for (const user of [...this.#users]) user();
  }
  subscribe(user) {
    this.#users.add(user);
    return () => this.#users.delete(user);
  }
}

// use renders a component again when the source changes.
export function use(source) {
  const [, again] = useReducer((n) => n + 1, 0);
  const rendered = source.changes;
  useEffect(() => {
    const leave = source.subscribe(again);
    if (source.changes !== rendered) again(); // it changed before there was anybody to tell
    return leave;
  }, [source]);
  return source;
}

// session is who the caller is; scopes is null before that is known.
class Session extends Source {
  name = null;
  tenant = null;
  scopes = null;
  trouble = null;
  #asking = null;
  #later = null; // one timer, however many have asked
  refresh() {
    return (this.#asking ??= this.#refresh().finally(() => (this.#asking = null)));
  }
  async #refresh() {
    clearTimeout(this.#later);
    try {
      this.#be(await get("/session"));
    } catch (error) {
      this.trouble = error.message;
      this.#later = setTimeout(() => this.refresh(), 3000);
      this.changed();
    }
  }
  #be(answer) {
    Object.assign(this, answer, { trouble: null });
    if (this.may("read")) live.open();
    else live.close();
    this.changed();
  }
  may(scope) {
    return (this.scopes || []).includes(scope);
  }
  get known() {
    return this.scopes !== null;
  }
  get whole() {
    return this.may("read") && !this.tenant;
  }
  async signIn(token) {
    this.#be(await post("/session", { token }));
  }
  async signOut() {
    await ask("/session", { method: "DELETE" });
    live.forget();
    await this.refresh();
  }
}

const silence = 12_000; // the daemon shows every five seconds that the stream lives
const kept = 300; // events
const newest = 100; // events that are read of what happened before

// live is the one stream of the page. It is closed while nobody looks at the page, so
// that tabs in the background cost nothing and take no connection.
class Live extends Source {
  flock = null;
  gpus = null;
  events = []; // newest first; where some were passed over, what came before is not known to go on here
  history = new Map(); // of each GPU, by UUID: {used, busy} of the last minutes
  #source = null;
  #heard = 0;
  #broken = true;
  #opened = 0;
  #gap = false; // events were passed over
  #streamed = 0; // events that the stream has told
  #caller = 0; // counts those who have signed out
  #recalled = Promise.resolve();
  #listeners = new Set();

  constructor() {
    super();
    setInterval(() => this.#check(), 1000);
    document.addEventListener("visibilitychange", () => (document.hidden ? this.close() : session.may("read") && this.open()));
  }
  get stale() {
    return this.#broken;
  }
  get heard() {
    return this.#heard;
  }
  // onJobs calls do with the events of jobs, or with null where some were passed over.
  onJobs(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
  // begin shows how the flock is before the stream tells: the page's head has asked for it.
  async begin() {
    try {
      const flock = await get("/flock?follow=false");
      if (this.flock) return;
      this.flock = flock;
      this.changed();
    } catch {} // the stream says what is wrong
  }
  open() {
    if (this.#source || document.hidden) return;
    if (!this.#heard) this.begin();
    const source = new EventSource("/flock");
    this.#source = source;
    this.#opened = Date.now();
    const on = (kind, take) =>
      source.addEventListener(kind, (event) => {
        this.#heard = Date.now();
        const back = this.#broken;
        this.#broken = false;
        take(JSON.parse(event.data));
        if (back) this.#passed(); // what happened meanwhile is not told
        if (back || kind !== "alive") this.changed();
      });
    on("flock", (flock) => (this.flock = flock));
    on("gpus", (gpus) => {
      this.gpus = gpus;
      this.#remember(gpus);
    });
    on("jobs", ({ events, skipped }) => {
      this.events = [...events].reverse().concat(this.events).slice(0, kept);
      this.#streamed += events.length;
      if (skipped) this.#passed();
      else this.#tell(events);
    });
    on("alive", () => this.gpus && this.#remember(this.gpus));
    source.onerror = () => {
      this.#breaks();
      if (source.readyState === EventSource.CLOSED) {
        // It was answered with an error: signed out, or no daemon yet.
        this.close();
        setTimeout(() => session.refresh(), 2000);
      }
    };
  }
  // close leaves what is shown as it was, which is stale from now on.
  close() {
    this.#source?.close();
    this.#source = null;
    this.#broken = true;
  }
  forget() {
    this.close();
    Object.assign(this, { flock: null, gpus: null, events: [] });
    this.#heard = 0;
    this.#caller++;
    this.history.clear();
  }
  // recall reads the newest events, for those that the stream does not tell: what happened
  // before it began, and what it passed over.
  recall() {
    const recalled = this.#recalled.then(() => this.#recall());
    this.#recalled = recalled.catch(() => {});
    return recalled;
  }
  async #recall() {
    const [seen, gap, caller] = [this.#streamed, this.#gap, this.#caller];
    this.#gap = false;
    let answer;
    try {
      answer = await (await ask(`/events?newest=${newest}&follow=false`, { headers: { Accept: "text/event-stream" } })).text();
    } catch (error) {
      this.#gap ||= gap;
      throw error;
    }
    if (caller !== this.#caller) return;
    const told = [...answer.matchAll(/^data: (.*)$/gm)].map(([, data]) => JSON.parse(data)).reverse();
    const known = new Set(told.map((e) => e.id));
    const others = (list) => list.filter((e) => !known.has(e.id));
    const at = Math.min(this.#streamed - seen, this.events.length);
    const earlier = gap ? [] : this.events.slice(at);
    this.events = [...others(this.events.slice(0, at)), ...told, ...others(earlier)].slice(0, kept);
    this.changed();
  }
  #passed() {
    this.#gap = true;
    this.#tell(null);
  }
  #tell(events) {
    for (const listener of [...this.#listeners]) listener(events);
  }
  #check() {
    if (this.#source && Date.now() - Math.max(this.#heard, this.#opened) > silence) {
      this.close(); // the connection is dead and nobody has noticed
      this.open();
      this.changed();
    }
  }
  #breaks() {
    if (this.#broken) return;
    this.#broken = true;
    this.changed();
  }
  #remember(gpus) {
    for (const g of gpus.gpus) {
      const list = this.history.get(g.uuid) || [];
      const last = list.at(-1);
      if (last && Date.now() - last.at < 2000) list.pop();
      list.push({ at: Date.now(), used: g.memory ? g.used / g.memory : 0, busy: (g.utilization ?? 0) / 100 });
      this.history.set(g.uuid, list.filter((one) => one.at > Date.now() - 10 * 60_000));
    }
  }
}

export const live = new Live();
export const session = new Session();

// useAnswer is what the daemon answers for path, asked again when jobs that matter
// change: which is called with their events. Answers in quick succession are one.
export function useAnswer(path, matters = () => false) {
  const [state, set] = useState({ path, answer: null, error: null, loading: true });
  const [turn, again] = useReducer((n) => n + 1, 0);
  useEffect(() => {
    if (!path) return;
    const control = new AbortController();
    set((s) => (s.path === path ? { ...s, loading: true } : { path, answer: null, error: null, loading: true }));
    get(path, { signal: control.signal }).then(
      (answer) => set({ path, answer, error: null, loading: false }),
      (error) => error.name !== "AbortError" && set((s) => ({ path, answer: s.path === path ? s.answer : null, error, loading: false })),
    );
    return () => control.abort();
  }, [path, turn]);
  useEffect(() => {
    let timer = null;
    const stop = live.onJobs((events) => {
      if (timer === null && (events === null || matters(events))) {
        timer = setTimeout(() => {
          timer = null;
          again();
        }, 300);
      }
    });
    return () => {
      clearTimeout(timer);
      stop();
    };
  }, [path]);
  return { ...(state.path === path ? state : { path, answer: null, error: null, loading: true }), again };
}
