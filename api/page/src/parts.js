// The small things that all views are made of.
import { html, useEffect, useRef, useState } from "./lib/preact.js";
import * as text from "./text.js";
import { common as w, relative, states } from "./words.js";

// clock ticks once a second for all relative times of the page.
const clock = {
  users: new Set(),
  timer: null,
  add(user) {
    this.users.add(user);
    this.timer ??= setInterval(() => !document.hidden && this.users.forEach((u) => u(Date.now())), 1000);
    return () => {
      this.users.delete(user);
      if (!this.users.size) {
        clearInterval(this.timer);
        this.timer = null;
      }
    };
  },
};

export function useNow() {
  const [now, set] = useState(Date.now());
  useEffect(() => clock.add(set), []);
  return now;
}

// Ago is a time relative to now; the exact one shows on hover.
export function Ago({ at }) {
  const now = useNow();
  const ms = text.time(at);
  if (ms === null) return html`<span class="muted">–</span>`;
  return html`<time datetime=${new Date(ms).toISOString()} title=${text.exact(ms)}>${text.ago(ms, now)}</time>`;
}

// Since is how long something lasts.
export function Since({ at }) {
  const now = useNow();
  const ms = text.time(at);
  return ms === null ? null : html`<time datetime=${new Date(ms).toISOString()} title=${w.since(text.exact(ms))}>${text.duration(Math.max(0, now - ms)).replace(/\.\d s$/, " s")}</time>`;
}

// Expected is when something is expected, relative to now; its error shows on hover.
export function Expected({ at }) {
  const now = useNow();
  if (!at) return null;
  const [earliest, likely, latest] = [at.earliest, at.likely, at.latest].map(text.time);
  const range = w.expected(text.exact(earliest), text.exact(latest));
  if (latest < now) return html`<span title=${range}>${w.anyMoment}</span>`;
  const word = text.about(likely - now);
  return html`<time datetime=${new Date(likely).toISOString()} title=${range}>${word === relative.soon ? w.anyMoment : w.inAbout(word)}</time>`;
}

// Running is how long a job has run, of what its model's jobs usually take.
export function Running({ since, usual }) {
  const now = useNow();
  const ran = Math.max(0, now - text.time(since));
  const took = text.duration(ran).replace(/\.\d s$/, " s");
  if (!usual) return html`<time datetime=${new Date(text.time(since)).toISOString()} title=${w.since(text.exact(text.time(since)))}>${took}</time>`;
  const range = w.usual(usual.jobs, text.duration(1000 * usual.low), text.duration(1000 * usual.high));
  return html`<span title=${range}>${took} <span class="muted">${(ran > 1000 * usual.high ? w.usually : w.ofAbout)(text.duration(1000 * usual.likely))}</span></span>`;
}

const shapes = {
  queued: html`<circle cx="8" cy="8" r="6.2" class="line" /><path d="M8 4.6V8l2.4 1.6" class="line" />`,
  processing: html`<circle cx="8" cy="8" r="6.2" class="line faint" /><path d="M8 1.8a6.2 6.2 0 0 1 6.2 6.2" class="line spin" />`,
  done: html`<circle cx="8" cy="8" r="7" class="fill" /><path d="M4.8 8.3l2.2 2.2 4.2-4.6" class="cut" />`,
  failed: html`<path d="M5 1h6l4 4v6l-4 4H5l-4-4V5z" class="fill" /><path d="M5.6 5.6l4.8 4.8m0-4.8l-4.8 4.8" class="cut" />`,
  cancelled: html`<circle cx="8" cy="8" r="6.2" class="line" /><path d="M3.8 12.2l8.4-8.4" class="line" />`,
  idle: html`<circle cx="8" cy="8" r="6.2" class="line dashed" />`,
  ready: html`<circle cx="8" cy="8" r="6.2" class="line" /><circle cx="8" cy="8" r="2.6" class="fill" />`,
  resting: html`<path d="M8 1.5L15 14H1z" class="line" /><path d="M8 6v3.6m0 1.6v.6" class="line" />`,
  blocked: html`<path d="M5 1h6l4 4v6l-4 4H5l-4-4V5z" class="line" /><path d="M4.5 8h7" class="line" />`,
  stopped: html`<rect x="2" y="2" width="12" height="12" rx="2" class="line" /><path d="M6.2 5.5v5m3.6-5v5" class="line" />`,
  drained: html`<circle cx="8" cy="8" r="6.2" class="line" /><path d="M6.2 5.5v5m3.6-5v5" class="line" />`,
  leaving: html`<path d="M9 2H3v12h6" class="line" /><path d="M6.5 8H14m-2.6-2.6L14 8l-2.6 2.6" class="line" />`,
  ok: html`<circle cx="8" cy="8" r="7" class="fill" /><path d="M4.8 8.3l2.2 2.2 4.2-4.6" class="cut" />`,
  unknown: html`<circle cx="8" cy="8" r="6.2" class="line dashed" /><path d="M6 6.2a2 2 0 1 1 2.7 2.1c-.5.2-.7.5-.7 1.1m0 1.8v.4" class="line" />`,
};
shapes.out = shapes.failed;

export const Shape = ({ of }) => html`<svg class=${"shape " + of} viewBox="0 0 16 16" aria-hidden="true">${shapes[of] || shapes.unknown}</svg>`;

// State is a state as a shape and a word, so that colour is not needed.
export const State = ({ of, word }) => html`<span class=${"state " + of}><${Shape} of=${of} />${word || states[of] || of}</span>`;

// Bar shows a part of a whole; parts are {value, title, kind}.
export function Bar({ parts, whole, label }) {
  let at = 0;
  return html`<svg class="bar" role="img" aria-label=${label} viewBox="0 0 100 8" preserveAspectRatio="none">
    <title>${label}</title>
    <rect class="whole" width="100" height="8" />
    ${parts.map((part, i) => {
      const width = Math.max(0, Math.min(100 - at, whole ? (100 * part.value) / whole : 0));
      const rect = html`<rect class=${part.kind || "part" + (i % 4)} x=${at} width=${width} height="8" />`;
      at += width;
      return rect;
    })}
  </svg>`;
}

// Sparkline draws values from 0 to 1.
export function Sparkline({ values, label }) {
  if (values.length < 2) return html`<span class="muted small">${w.begins}</span>`;
  const points = values.map((v, i) => `${((100 * i) / (values.length - 1)).toFixed(2)},${(23 - 22 * Math.min(1, v)).toFixed(2)}`);
  return html`<svg class="spark" role="img" aria-label=${label} viewBox="0 0 100 24" preserveAspectRatio="none"><title>${label}</title>
    <path class="area" d=${`M0,24L${points.join("L")}L100,24Z`} /><path class="stroke" d=${`M${points.join("L")}`} /></svg>`;
}

export const Empty = ({ title, children }) => html`<div class="empty"><p class="strong">${title}</p>${children}</div>`;

export const Trouble = ({ error, again }) =>
  error && html`<div class="trouble" role="alert"><${Shape} of="failed" /><span>${error.message || error}</span>${again && html`<button type="button" onClick=${again}>${w.again}</button>`}</div>`;

// Do is a button that asks the daemon for something, and shows what went wrong. Confirm,
// where it is given, is asked first.
export function Do({ what, confirm, kind = "", label, children }) {
  const [state, set] = useState({});
  const [sure, ask] = useState(false);
  const yes = useRef(null);
  useEffect(() => {
    if (sure) yes.current?.focus();
  }, [sure]);
  const act = async () => {
    set({ busy: true });
    try {
      await what();
      set({});
    } catch (error) {
      set({ error });
    }
    ask(false);
  };
  return html`<span class="do">
    ${sure
      ? html`<span class="sure" role="group" aria-label=${confirm}><span>${confirm}</span><button ref=${yes} type="button" class="danger" disabled=${state.busy} onClick=${act}>${w.yes}</button><button type="button" onClick=${() => ask(false)}>${w.no}</button></span>`
      : html`<button type="button" class=${kind} aria-label=${label} disabled=${state.busy} onClick=${() => (confirm ? ask(true) : act())}>${children}</button>`}
    ${state.error && html`<span class="error" role="alert">${state.error.message}</span>`}
  </span>`;
}

export const Model = ({ of }) => {
  const name = text.modelName(of);
  return name ? html`<span class="model" title=${name}>${of.name}${of.version && html`<span class="version">:${of.version}</span>`}</span>` : html`<span class="muted">${w.none}</span>`;
};

export const JobLink = ({ id }) => html`<a class="id" href=${text.jobLink(id)} title=${id}>${id}</a>`;

export const Labels = ({ of }) => Object.entries(of || {}).map(([key, value]) => html`<span class="label" title=${`${key}=${value}`}>${key}<b>${value}</b></span>`);

// arrival says that a view was opened whose heading is not there yet.
export const arrival = { pending: false };

// Heading is a view's heading, which gets the focus when the view is opened, for those
// who hear the page or use it by keyboard.
export function Heading({ children, title }) {
  const ref = useRef(null);
  useEffect(() => {
    if (arrival.pending) ref.current.focus();
    arrival.pending = false;
  }, []);
  useEffect(() => {
    document.title = w.title(title || children);
  }, [title, children]);
  return html`<h1 ref=${ref} tabindex="-1">${children}</h1>`;
}

// ticks shows what is in backticks as code.
export const ticks = (sentence) => (sentence || "").split("`").map((part, i) => (i % 2 ? html`<code>${part}</code>` : part));
