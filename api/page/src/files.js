// A job's files: a list, and each shown as what it is. What a job wrote is shown as
// text, in a picture or in a sandboxed frame, and never becomes part of the page.
import { html, useEffect, useState } from "./lib/preact.js";
import { ask, get } from "./daemon.js";
import { Empty, Trouble } from "./parts.js";
import * as text from "./text.js";
import { common, shown as w } from "./words.js";

const kinds = {
  image: /\.(png|jpe?g|gif|webp|avif|bmp|svg)$/i, audio: /\.(wav|mp3|ogg|flac|m4a|opus)$/i, video: /\.(mp4|webm|ogv)$/i,
  frame: /\.html?$/i, pdf: /\.pdf$/i, table: /\.(csv|tsv)$/i, json: /\.(json|jsonl|ndjson)$/i,
  text: /\.(txt|md|log|ya?ml|toml|ini|py|go|js|css|xml|srt|vtt|tex|sh|conf)$/i,
};
const kindOf = (name) => Object.keys(kinds).find((kind) => kinds[kind].test(name)) || "unknown";

const shown = 100; // files
const read = 256 * 1024; // bytes of a text

export function Files({ job, kind, title }) {
  const [state, set] = useState({});
  const [all, more] = useState(false);
  const list = `/jobs/${encodeURIComponent(job.job_id)}/${kind === "input" ? "inputs" : "outputs"}`;
  useEffect(() => {
    set({});
    get(list).then((answer) => set({ answer }), (error) => set({ error }));
  }, [list, job.run, job.status, job.files_removed]);
  const id = "files-" + kind;
  const files = state.answer?.files || [];
  return html`<section class="panel" aria-labelledby=${id}>
    <div class="row"><h2 id=${id}>${title}${state.answer && html` <span class="muted count">${common.file(files.length)}, ${text.bytes(state.answer.bytes)}</span>`}</h2>
      ${kind === "result" && files.length > 0 && html`<a class="button" href=${list + ".zip"} download>${w.all}</a>`}</div>
    ${state.error && html`<${Trouble} error=${state.error} />`}
    ${!state.answer && !state.error && html`<p class="muted">${common.loading}</p>`}
    ${state.answer && !files.length && html`<${Empty} title=${job.files_removed ? w.gone : w.none} />`}
    <ul class="files">${files.slice(0, all ? files.length : shown).map((file, i) => html`<${File} key=${file.name} file=${file} href=${text.pathOf(job.job_id, kind, file.name)} open=${kind === "result" && i === 0 && file.size < 4 << 20} />`)}</ul>
    ${!all && files.length > shown && html`<p><button type="button" onClick=${() => more(true)}>${w.showAll(files.length)}</button></p>`}
  </section>`;
}

function File({ file, href, open }) {
  const [isOpen, set] = useState(open);
  return html`<li><details open=${isOpen} onToggle=${(e) => set(e.target.open)}>
      <summary><span class="name">${file.name}</span><span class="muted time">${text.bytes(file.size)}</span></summary>
      ${isOpen && html`<${Preview} file=${file} href=${href} />`}
    </details><a class="button quiet" href=${href} download=${file.name.split("/").pop()} aria-label=${common.downloadFile(file.name)}>${common.download}</a></li>`;
}

function Preview({ file, href }) {
  const kind = kindOf(file.name);
  if (file.size === 0) return html`<p class="muted">${w.empty}</p>`;
  if (kind === "image") return html`<${Picture} href=${href} name=${file.name} />`;
  if (kind === "audio") return html`<audio controls preload="metadata" src=${href} aria-label=${file.name}></audio>`;
  if (kind === "video") return html`<video controls preload="metadata" src=${href} aria-label=${file.name}></video>`;
  if (kind === "frame") return html`<iframe sandbox="" src=${href} title=${file.name} loading="lazy"></iframe><p class="muted small">${w.framed(href)}</p>`;
  if (kind === "pdf") return html`<${Paper} file=${file} href=${href} />`;
  return html`<${Text} file=${file} href=${href} kind=${kind} />`;
}

// Paper shows a PDF by the browser's own viewer. Browsers refuse that in a frame with the
// attribute sandbox; the answer's policy has the same word and is enough, see
// docs/decisions/page.md.
function Paper({ file, href }) {
  if (navigator.pdfViewerEnabled === false) return html`<p class="muted">${w.noPDF(href)}</p>`;
  return html`<iframe class="paper" src=${href} title=${file.name} loading="lazy"></iframe><p class="muted small">${w.nothing(href)}</p>`;
}

function Picture({ href, name }) {
  const [broken, set] = useState(false);
  return broken ? html`<p class="muted">${w.cannot}</p>` : html`<a href=${href}><img class="picture" src=${href} alt=${name} loading="lazy" onError=${() => set(true)} /></a>`;
}

// Text reads the beginning of a file, and shows it as what it turns out to be.
function Text({ file, href, kind }) {
  const [state, set] = useState({});
  useEffect(() => {
    const control = new AbortController();
    (async () => {
      const response = await ask(href, { signal: control.signal, headers: { Range: `bytes=0-${read - 1}`, Accept: "*/*" } });
      set({ data: new Uint8Array(await response.arrayBuffer()) });
    })().catch((error) => error.name !== "AbortError" && set({ error }));
    return () => control.abort();
  }, [href, file.etag]);
  if (state.error) return html`<${Trouble} error=${state.error} />`;
  if (!state.data) return html`<p class="muted">${common.loading}</p>`;
  if (isPicture(state.data)) return html`<${Picture} href=${href} name=${file.name} />`;
  const whole = state.data.length >= file.size;
  const content = decode(state.data, whole);
  if (content === null) return html`<p class="muted">${w.noText}</p>`;
  const cut = !whole && html`<p class="muted small">${w.cut(text.bytes(state.data.length), text.bytes(file.size))}</p>`;
  if (kind === "table") return html`<${Table} content=${content} by=${/\.tsv$/i.test(file.name) ? "\t" : ","} />${cut}`;
  return html`<pre tabindex="0" role="region" aria-label=${w.content(file.name)}>${kind === "json" || kind === "unknown" ? pretty(content, whole) : content}</pre>${cut}`;
}

const isPicture = (d) => (d[0] === 0x89 && d[1] === 0x50 && d[2] === 0x4e) || (d[0] === 0xff && d[1] === 0xd8 && d[2] === 0xff) || (d[0] === 0x47 && d[1] === 0x49 && d[2] === 0x46 && d[3] === 0x38);

// decode is data as text, null where it is none. A text that is cut may end in the
// middle of a character.
function decode(data, whole) {
  if (data.includes(0)) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(data, { stream: !whole });
  } catch {
    return null;
  }
}

function pretty(content, whole) {
  if (!whole || !/^\s*[[{]/.test(content)) return content;
  try {
    return JSON.stringify(JSON.parse(content), null, 2);
  } catch {
    return content;
  }
}

const rows = 200;

function Table({ content, by }) {
  const table = parseTable(content, by, rows + 2);
  const [head, ...body] = table;
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${w.table}><table class="data"><thead><tr>${head.map((cell) => html`<th scope="col">${cell}</th>`)}</tr></thead>
    <tbody>${body.slice(0, rows).map((row) => html`<tr>${row.map((cell) => html`<td class=${cell !== "" && !isNaN(cell) ? "num" : ""}>${cell}</td>`)}</tr>`)}</tbody></table></div>
    ${body.length > rows && html`<p class="muted small">${w.rows(rows)}</p>`}`;
}

// parseTable reads comma-separated values as in RFC 4180, at most so many rows.
export function parseTable(content, by, limit) {
  const table = [[]];
  let cell = "";
  let quoted = false;
  for (let i = 0; i < content.length; i++) {
    const c = content[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (content[i + 1] === '"') cell += content[++i];
      else quoted = false;
    } else if (c === '"' && cell === "") quoted = true;
    else if (c === by) {
      table.at(-1).push(cell);
      cell = "";
    } else if (c === "\n") {
      table.at(-1).push(cell.replace(/\r$/, ""));
      cell = "";
      if (table.length === limit) return table;
      table.push([]);
    } else cell += c;
  }
  if (cell !== "" || table.at(-1).length) table.at(-1).push(cell);
  else table.pop();
  return table.length ? table : [[]];
}
