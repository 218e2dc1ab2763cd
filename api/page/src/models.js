// The models: which are kept here, loaded where, and how their jobs fare.
import { html, useEffect, useState } from "./lib/preact.js";
import { ask, get, live, session, use, useAnswer } from "./daemon.js";
import { Ago, Bar, Do, Empty, Heading, Model, Shape, Trouble } from "./parts.js";
import { parseModel } from "./submit.js";
import * as text from "./text.js";
import { common, models as w } from "./words.js";

export function Models() {
  use(live);
  const keptModels = useKept();
  const recent = useAnswer("/jobs?order=newest&limit=500");
  const all = new Map();
  const of = (model) => {
    const name = text.modelName(model);
    if (!all.has(name)) all.set(name, { name, model, jobs: 0, failed: 0, times: [], loaded: [], kept: [], last: null });
    return all.get(name);
  };
  for (const one of keptModels.models) of(one).kept.push(one);
  for (const sheep of live.flock?.sheep || []) if (sheep.model.name) of(sheep.model).loaded.push(sheep);
  for (const job of recent.answer?.jobs || []) {
    const entry = of(job.model);
    entry.jobs++;
    entry.last ??= job.enqueued_at;
    if (job.status === "failed") entry.failed++;
    if (job.status === "done" && job.processing_started_at) entry.times.push(text.time(job.finished_at) - text.time(job.processing_started_at));
  }
  const list = [...all.values()].sort((a, b) => b.jobs - a.jobs || a.name.localeCompare(b.name));
  const admin = session.may("admin");
  const inFleet = keptModels.unanswered.length > 0 || keptModels.models.some((one) => one.node);
  return html`<div class="title"><${Heading}>${w.title}<//></div>
    ${keptModels.error && html`<${Trouble} error=${keptModels.error} />`}
    ${keptModels.unanswered.map((node) => html`<p class="muted" role="status" key=${node.name}>${w.unanswered(node.name, node.problem)}</p>`)}
    ${admin && keptModels.pulls && html`<${Pull} done=${keptModels.again} />`}
    ${list.length
      ? html`<div class="scroll panel" tabindex="0" role="region" aria-label=${w.title}><table class="jobs models"><thead><tr><th scope="col">${common.model}</th><th scope="col">${w.columns.loaded}</th><th scope="col" class="num">${w.columns.disk}</th>${inFleet && html`<th scope="col">${w.columns.nodes}</th>`}<th scope="col" class="num">${w.columns.jobs}</th><th scope="col" class="num">${w.columns.failed}</th><th scope="col" class="num">${w.columns.usual}</th><th scope="col">${w.columns.last}</th>${admin && html`<th scope="col"><span class="hidden">${w.columns.actions}</span></th>`}</tr></thead>
        <tbody>${list.map(
          (one) => html`<tr key=${one.name}><td><a href=${"#/jobs?model=" + encodeURIComponent(one.name)}><${Model} of=${one.model} /></a></td>
            <td data-label=${w.columns.loaded.toLowerCase()}>${one.loaded.length ? one.loaded.map((sheep) => html`<span class="phrase"><${Shape} of=${sheep.job ? "processing" : "ready"} />${sheep.name}</span>`) : html`<span class="muted">${common.none}</span>`}</td>
            <td class="num" data-label=${w.columns.disk.toLowerCase()}>${one.kept.length ? html`<span title=${one.kept[0].digest}>${text.bytes(Math.max(...one.kept.map((kept) => kept.size)))}</span>` : html`<span class="muted">–</span>`}</td>
            ${inFleet && html`<td data-label=${w.columns.nodes.toLowerCase()}><${Nodes} of=${one.kept.map((kept) => kept.node)} /></td>`}
            <td class="num" data-label=${w.columns.jobs.toLowerCase()}>${text.number(one.jobs)}</td>
            <td class="num" data-label=${w.columns.failed.toLowerCase()}>${one.failed ? html`<a href=${`#/jobs?state=failed&model=${encodeURIComponent(one.name)}`}>${text.number(one.failed)}</a>` : html`<span class="muted">0</span>`}</td>
            <td class="num" data-label=${w.columns.usual.toLowerCase()}>${one.kept[0]?.usual ? text.duration(1000 * one.kept[0].usual.likely) : one.times.length ? text.duration(text.median(one.times)) : html`<span class="muted">–</span>`}</td>
            <td class="nowrap" data-label=${w.columns.last.toLowerCase()}>${one.last && html`<${Ago} at=${one.last} />`}</td>
            ${admin && html`<td>${one.kept.length > 0 && !one.kept.some((kept) => kept.in_use) && html`<${Do} kind="danger" confirm=${w.sureRemove} label=${w.removeOf(one.name)} what=${async () => (await ask("/models/" + one.name.split("/").map(encodeURIComponent).join("/"), { method: "DELETE" }), keptModels.again())}>${w.remove}<//>`}</td>`}</tr>`,
        )}</tbody></table></div>
        <p class="muted small">${w.latest(recent.answer?.jobs.length || 0)}</p>`
      : recent.loading
        ? html`<p class="muted" role="status">${common.loading}</p>`
        : html`<${Empty} title=${w.none}><p>${w.shows}</p><//>`}`;
}

// Nodes names the first of many nodes.
function Nodes({ of }) {
  if (!of.length) return html`<span class="muted">${common.none}</span>`;
  const shown = 3;
  return html`<span title=${of.join(", ")}>${w.nodes(of.slice(0, shown).join(", "), Math.max(0, of.length - shown))}</span>`;
}

// useKept are the models on the machines' disks, and the nodes whose models are not known;
// pulls says that there are sheep that pull models.
function useKept() {
  const [state, set] = useState({ models: [], unanswered: [], pulls: false });
  const again = () => {
    if (!session.whole) return;
    get("/models").then(
      (answer) => set({ models: answer.models, unanswered: answer.unanswered || [], pulls: true }),
      (error) => set({ models: [], unanswered: [], pulls: false, error: error.status >= 500 || error.status === 0 ? error : null }),
    );
  };
  useEffect(again, []);
  return { ...state, again };
}

function Pull({ done }) {
  const [name, type] = useState("");
  const [state, be] = useState({});
  const pull = async (event) => {
    event.preventDefault();
    be({ busy: true, text: w.asking });
    try {
      const response = await ask("/models/pull?progress=true", { method: "POST", body: JSON.stringify({ model: parseModel(name) }), headers: { "Content-Type": "application/json" } });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done: over } = await reader.read();
        if (over) break;
        const parts = (rest + value).split("\n");
        rest = parts.pop();
        for (const line of parts.filter(Boolean)) {
          const step = JSON.parse(line);
          if (step.error) throw new Error(step.error);
          be({ busy: !step.success, ...step });
        }
      }
      done();
    } catch (error) {
      be({ error });
    }
  };
  return html`<form class="pull panel" onSubmit=${pull}><div class="field"><label for="pull">${w.ahead}</label><input id="pull" placeholder=${common.modelHint} value=${name} onInput=${(e) => type(e.target.value)} /></div>
    <button class="primary" disabled=${state.busy || !name}>${w.pull}</button>
    ${state.text && html`<div class="progress big" role="status">${state.total > 0 && html`<${Bar} parts=${[{ value: state.done || 0, kind: "done" }]} whole=${state.total} label=${w.pull} />`}<span>${state.text}${state.total > 0 && ` ${Math.floor((100 * (state.done || 0)) / state.total)} %`}${state.rate > 0 && ` · ${text.bytes(state.rate)}/s`}</span></div>`}
    ${state.error && html`<${Trouble} error=${state.error} />`}</form>`;
}
