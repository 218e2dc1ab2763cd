// A job's log, as it is written.
import { html, useEffect, useMemo, useRef, useState } from "./lib/preact.js";
import { ask } from "./daemon.js";
import { Trouble } from "./parts.js";
import { common, log as w } from "./words.js";

const kept = 5000; // lines
const longest = 64 * 1024; // characters of a line that has no end yet
const pause = 2000; // before a log that broke off is followed again

export function Log({ job, over }) {
  const [lines, set] = useState([]);
  const [state, be] = useState({ loading: true });
  const [wanted, search] = useState("");
  const box = useRef(null);
  const stuck = useRef(true); // to the end
  // While the job waits there is nothing to follow.
  const waits = job.status === "queued" && job.attempt === 0;

  useEffect(() => {
    if (waits) return;
    const control = new AbortController();
    let all = [];
    let frame = 0;
    let timer = null;
    let rest = ""; // a line that has no end yet
    const lines = () => (rest ? [...all, rest] : all);
    const show = () => (frame ||= requestAnimationFrame(() => ((frame = 0), set(lines()), be({}))));
    const read = async () => {
      const response = await ask(`/jobs/${encodeURIComponent(job.job_id)}/logs?tail=${kept}${over ? "" : "&follow=true"}`, { signal: control.signal, headers: { Accept: "text/plain" } });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      [all, rest] = [[], ""];
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const parts = (rest + value).split("\n");
        rest = shorten(parts.pop());
        if (parts.length) all = [...all, ...parts].slice(-kept);
        show();
      }
      set(lines());
      be({});
    };
    // What is followed goes on until the job has ended: where it breaks off, the daemon has gone.
    const follow = async () => {
      try {
        await read();
      } catch (error) {
        if (error.name === "AbortError") return;
        if (error.status === 404) return be({ none: true });
        be({ error });
      }
      if (!over && !control.signal.aborted) timer = setTimeout(follow, pause);
    };
    follow();
    return () => {
      clearTimeout(timer);
      cancelAnimationFrame(frame);
      control.abort();
    };
  }, [job.job_id, over, waits]);

  const found = useMemo(() => {
    const needle = wanted.toLowerCase();
    return needle ? lines.filter((line) => plain(line).toLowerCase().includes(needle)) : lines;
  }, [lines, wanted]);
  useEffect(() => {
    if (stuck.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [found]);
  const scrolled = (e) => (stuck.current = e.target.scrollHeight - e.target.scrollTop - e.target.clientHeight < 24);

  return html`<section class="panel" aria-labelledby="log">
    <div class="row"><h2 id="log">${w.title} ${!over && !waits && html`<span class="muted count">${w.following}</span>`}</h2>
      ${lines.length > 0 && html`<span class="search"><label for="log-search" class="hidden">${w.search}</label><input id="log-search" type="search" placeholder=${w.search} value=${wanted} onInput=${(e) => search(e.target.value)} />
        <span class="muted small" role="status">${wanted && w.found(found.length, lines.length)}</span>
        <a class="button quiet" href=${`/jobs/${encodeURIComponent(job.job_id)}/logs`} download=${job.job_id + ".log"}>${common.download}</a></span>`}</div>
    ${state.error && html`<${Trouble} error=${state.error} />`}
    ${lines.length
      ? html`<pre class="log" ref=${box} onScroll=${scrolled} tabindex="0" role="region" aria-label=${w.lines}>${found.map((line) => html`<span>${paint(line)}${"\n"}</span>`)}</pre>`
      : html`<p class="muted">${waits ? w.waits : state.none || !state.loading ? w.nothing : over ? common.loading : w.nothingYet}</p>`}
  </section>`;
}

// written is what a terminal shows of a line that was written over, such as a progress bar.
const written = (line) => line.replace(/\r+$/, "").replace(/^.*\r/s, "");

// shorten bounds a line that goes on and on.
const shorten = (line) => (line.length > longest ? written(line).slice(-longest) : line);

// escapes are the escape sequences of terminals: colours, other commands, and titles.
const escapes = /\x1b(?:\[([0-9;:]*)([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]/g;
const plain = (line) => written(line).replace(escapes, "");
const colours = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];

// paint is a line with its colours (SGR 0–49 and 90–107); other commands are left out.
export function paint(line) {
  line = written(line);
  if (!/[\x00-\x1f\x7f]/.test(line)) return line;
  const out = [];
  const style = { bold: false, dim: false, italic: false, underline: false, fg: null };
  let at = 0;
  const put = (part) => {
    if (!part) return;
    const names = [style.bold && "bold", style.dim && "dim", style.italic && "italic", style.underline && "underline", style.fg && "ansi-" + style.fg].filter(Boolean);
    out.push(names.length ? html`<span class=${names.join(" ")}>${part}</span>` : part);
  };
  for (const match of line.matchAll(escapes)) {
    put(line.slice(at, match.index));
    at = match.index + match[0].length;
    if (match[2] !== "m") continue;
    const codes = match[1].split(/[;:]/).map(Number);
    for (let i = 0; i < codes.length; i++) {
      const code = codes[i];
      if (code === 0) Object.assign(style, { bold: false, dim: false, italic: false, underline: false, fg: null });
      else if (code === 1) style.bold = true;
      else if (code === 2) style.dim = true;
      else if (code === 3) style.italic = true;
      else if (code === 4) style.underline = true;
      else if (code === 22) style.bold = style.dim = false;
      else if (code === 23) style.italic = false;
      else if (code === 24) style.underline = false;
      else if (code >= 30 && code <= 37) style.fg = colours[code - 30];
      else if (code >= 90 && code <= 97) style.fg = colours[code - 90];
      else if (code === 39) style.fg = null;
      else if (code === 38 || code === 48) i += codes[i + 1] === 5 ? 2 : 4; // of a palette that is not the page's
    }
  }
  put(line.slice(at));
  return out;
}
