// Submitting a job: drop its files, name a model, and go to its page.
import { html, useEffect, useRef, useState } from "./lib/preact.js";
import { get, live, session, use } from "./daemon.js";
import { Bar, Heading, Trouble } from "./parts.js";
import { useUsual } from "./flock.js";
import { Unreachable, straight, upload } from "./upload.js";
import * as text from "./text.js";
import { common, daemon, submit as w } from "./words.js";

const most = 10_000; // files of a job, as the daemon takes them

export function Submit() {
  use(live);
  const usual = useUsual();
  const models = useModels(usual);
  const [model, name] = useState("");
  const [files, put] = useState([]); // {path, file}
  const [payload, write] = useState("");
  const [more, set] = useState({ priority: "", sheep_id: "", labels: "", job_id: "" });
  const [state, be] = useState({});
  const [over, hover] = useState(false);
  const running = useRef(null);
  useEffect(() => () => running.current?.abort(), []);

  const add = (found) => {
    const byPath = new Map(files.map((one) => [one.path, one]));
    for (const one of found) byPath.set(one.path, one);
    put([...byPath.values()]);
    be(byPath.size > most ? { error: w.tooMany(most) } : {});
  };
  const dropped = async (event) => {
    event.preventDefault();
    hover(false);
    try {
      add(await filesOf(event.dataTransfer));
    } catch (error) {
      be({ error: w.unreadable(error.message) });
    }
  };
  const submit = async (event) => {
    event.preventDefault();
    const request = { model: parseModel(model) };
    if (more.priority) request.priority = Number(more.priority);
    if (more.sheep_id) request.sheep_id = more.sheep_id;
    if (more.job_id) request.job_id = more.job_id;
    const labels = more.labels.split(/[\s,]+/).filter(Boolean).map((one) => one.split(/=(.*)/s));
    if (labels.some((one) => one.length < 2)) return be({ error: w.badLabels });
    if (labels.length) request.labels = Object.fromEntries(labels);
    if (!files.length) request.payload = payload;
    be({ sent: 0, busy: true });
    let note = "";
    const progress = (sent, total) => be({ sent, total, busy: true, note });
    try {
      let rest = files; // what comes with the request
      if (straight(files)) {
        const control = (running.current = new AbortController());
        try {
          const id = await upload(request.job_id, files, control.signal, progress);
          if (id) [request.job_id, rest] = [id, []];
        } catch (error) {
          if (!(error instanceof Unreachable)) throw error;
          note = w.through;
          progress(0, 0); // says so before anything is sent
        }
      }
      const made = await send(request, rest, running, progress);
      if (session.may("read")) location.hash = text.jobLink(made.job_id);
      else be({ made: made.job_id });
    } catch (error) {
      be({ error });
    }
  };
  const bytes = files.reduce((sum, one) => sum + one.file.size, 0);
  const expected = usual.get(model);
  const field = (key, label, hint, type = "text") => html`<div class="field"><label for=${"s-" + key}>${label}</label><input id=${"s-" + key} type=${type} placeholder=${hint} value=${more[key]} onInput=${(e) => set({ ...more, [key]: e.target.value })} /></div>`;
  return html`<${Heading}>${w.title}<//>
    <form class="submit panel" onSubmit=${submit}>
      <div class="field"><label for="s-model">${common.model}</label>
        <input id="s-model" list="models" required autocomplete="off" placeholder=${common.modelHint} value=${model} onInput=${(e) => name(e.target.value)} aria-describedby="s-usual" />
        <datalist id="models">${models.map((one) => html`<option value=${one}>${usual.has(one) ? w.usually(text.duration(usual.get(one))) : ""}</option>`)}</datalist>
        <p id="s-usual" class="muted small">${expected ? w.takes(text.duration(expected)) : models.length ? w.known(models.slice(0, 6).join(", ") + (models.length > 6 ? "…" : "")) : w.noneKnown}</p></div>
      <div class=${"drop" + (over ? " over" : "")} onDragOver=${(e) => (e.preventDefault(), hover(true))} onDragLeave=${() => hover(false)} onDrop=${dropped}>
        <p class="strong">${w.drop}</p>
        <p>${w.or} <label class="button" for="s-files">${w.files}<input id="s-files" class="hidden" type="file" multiple onChange=${(e) => (add([...e.target.files].map((file) => ({ path: file.name, file }))), (e.target.value = ""))} /></label> <label class="button" for="s-folder">${w.folder}<input id="s-folder" class="hidden" type="file" webkitdirectory onChange=${(e) => (add([...e.target.files].map((file) => ({ path: file.webkitRelativePath.split("/").slice(1).join("/") || file.name, file }))), (e.target.value = ""))} /></label></p>
      </div>
      ${files.length > 0
        ? html`<div><div class="row"><h2>${w.chosen(files.length, text.bytes(bytes))}</h2><button type="button" onClick=${() => put([])}>${w.removeAll}</button></div>
            <ul class="chosen">${files.slice(0, 50).map((one) => html`<li key=${one.path}><span class="name">${one.path}</span><span class="muted time">${text.bytes(one.file.size)}</span><button type="button" class="quiet" aria-label=${w.removeOne(one.path)} onClick=${() => put(files.filter((other) => other !== one))}>×</button></li>`)}</ul>
            ${files.length > 50 && html`<p class="muted small">${w.moreFiles(files.length - 50)}</p>`}</div>`
        : html`<div class="field"><label for="s-payload">${w.write}</label><textarea id="s-payload" rows="3" value=${payload} onInput=${(e) => write(e.target.value)}></textarea></div>`}
      <details><summary>${w.more}</summary><div class="more">
        ${field("priority", w.priority, "0", "number")}
        <div class="field"><label for="s-sheep">${common.sheep}</label><select id="s-sheep" onChange=${(e) => set({ ...more, sheep_id: e.target.value })}><option value="">${w.any}</option>${(live.flock?.sheep || []).map((one) => html`<option value=${one.name} selected=${more.sheep_id === one.name}>${one.name}</option>`)}</select></div>
        ${field("labels", common.labels, w.labelsHint)} ${field("job_id", w.id, w.idHint)}
      </div></details>
      ${state.error && html`<${Trouble} error=${state.error} />`}
      ${state.made && html`<p role="status">${w.made(html`<span class="id">${state.made}</span>`)}</p>`}
      ${state.busy &&
      html`<div class="progress big" role="status"><${Bar} parts=${[{ value: state.sent, kind: "done" }]} whole=${state.total || 1} label=${w.upload} /><span>${state.total ? w.sent(text.bytes(state.sent), text.bytes(state.total)) : w.sending}${state.note && " " + state.note}</span><button type="button" onClick=${() => running.current?.abort()}>${w.stop}</button></div>`}
      <p class="actions"><button class="primary" disabled=${state.busy || !model || files.length > most || (!files.length && !payload)}>${w.submit}</button><span class="muted small">${!model ? w.nameModel : !files.length && !payload ? w.addInputs : ""}</span></p>
    </form>`;
}

// parseModel splits a model's name from its version: the last colon that no slash
// follows, so that a registry's port is none.
export function parseModel(text) {
  const at = text.lastIndexOf(":");
  return at < 0 || text.includes("/", at) ? { name: text, version: "" } : { name: text.slice(0, at), version: text.slice(at + 1) };
}

// useModels are the models that the daemon keeps, has loaded or has run lately.
function useModels(usual) {
  const [keptModels, set] = useState([]);
  useEffect(() => {
    if (session.whole) get("/models").then((answer) => set(answer.models.map(text.modelName)), () => {}); // a daemon without models of its own
  }, []);
  const loaded = (live.flock?.sheep || []).map((one) => text.modelName(one.model)).filter(Boolean);
  return [...new Set([...usual.keys(), ...loaded, ...keptModels])].sort();
}

// filesOf are the files that were dropped, those in folders by their paths.
async function filesOf(dropped) {
  const found = [];
  const walk = async (entry, path) => {
    if (entry.isFile) return found.push({ path: path + entry.name, file: await new Promise((done, failed) => entry.file(done, failed)) });
    const reader = entry.createReader();
    for (;;) {
      const entries = await new Promise((done, failed) => reader.readEntries(done, failed)); // a hundred at a time
      if (!entries.length) return;
      for (const one of entries) await walk(one, path + entry.name + "/");
    }
  };
  const entries = [...dropped.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...dropped.files].map((file) => ({ path: file.name, file }));
  for (const entry of entries) {
    // The inputs are what is in a folder that was dropped alone.
    if (entries.length === 1 && entry.isDirectory) {
      await walk(entry, "");
      for (const one of found) one.path = one.path.slice(entry.name.length + 1);
    } else await walk(entry, "");
  }
  return found;
}

// send submits the job; only XMLHttpRequest tells how far an upload is.
function send(request, files, running, progress) {
  return new Promise((done, failed) => {
    const xhr = new XMLHttpRequest();
    running.current = xhr;
    xhr.open("POST", "/jobs");
    xhr.responseType = "json";
    xhr.setRequestHeader("Accept", "application/json");
    xhr.upload.onprogress = (e) => e.lengthComputable && progress(e.loaded, e.total);
    xhr.onerror = () => failed(new Error(w.broke));
    xhr.onabort = () => failed(new Error(w.stopped));
    xhr.onload = () => (xhr.status < 300 ? done(xhr.response) : failed(new Error(xhr.response?.detail || xhr.response?.message || daemon.answered(xhr.status))));
    if (!files.length) {
      xhr.setRequestHeader("Content-Type", "application/json");
      return xhr.send(JSON.stringify(request));
    }
    const form = new FormData();
    form.append("job", JSON.stringify(request));
    for (const one of files) form.append("file", one.file, one.path);
    xhr.send(form);
  });
}
