// The first view: the sheep, the queue and the latest jobs.
import { html, useEffect, useState } from "./lib/preact.js";
import { live, session, use, useAnswer } from "./daemon.js";
import { Ago, Bar, Empty, Expected, Heading, JobLink, Labels, Model, Running, Shape, Since, State, Trouble, ticks } from "./parts.js";
import * as text from "./text.js";

// stateOf is a sheep's state as a shape and a word.
function stateOf(sheep) {
  if (sheep.condition === "leaving") return ["leaving", "leaving"];
  if (sheep.condition === "stopped") return ["stopped", "stopped"];
  if (sheep.condition === "blocked") return ["blocked", "out"];
  if (sheep.job || sheep.detail === "busy") return ["processing", sheep.running ? "working" : "preparing"];
  if (sheep.condition === "resting") return ["resting", "resting"];
  if (!sheep.running && /pull|load|unpack|start/i.test(sheep.detail || "")) return ["processing", "preparing"];
  return sheep.running ? ["ready", "ready"] : ["idle", "idle"];
}

export function Flock() {
  use(live);
  if (!live.flock) return html`<${Heading}>Flock<//><p class="muted" role="status">Waiting for the daemon…</p>`;
  const { sheep, queue, trouble } = live.flock;
  const counts = new Map();
  for (const one of sheep) {
    const [, word] = stateOf(one);
    counts.set(word, (counts.get(word) || 0) + 1);
  }
  return html`<div class="title"><${Heading}>Flock<//>
      <p class="muted">${text.plural(sheep.length, "sheep", "sheep")}${[...counts].map(([word, n]) => html` · <b>${n}</b> ${word}`)} · <b>${text.number(queue.total)}${queue.more && "+"}</b> waiting</p></div>
    ${trouble && html`<${Trouble} error=${"The queue may be out of date: " + trouble} />`}
    <section aria-labelledby="sheep">
      <h2 id="sheep" class="hidden">Sheep</h2>
      ${sheep.length
        ? html`<ul class=${"sheep" + (sheep.length > 24 ? " dense" : "")}>${sheep.map((one) => html`<${Sheep} key=${one.name} sheep=${one} />`)}</ul>`
        : html`<${Empty} title="There are no sheep yet"><p>A sheep runs one job at a time. Add one below <code>sheep:</code> in the configuration, then <code>shepherdd reload</code>.</p><//>`}
    </section>
    <div class="columns">
      <section class="panel" aria-labelledby="queue"><${Queue} queue=${queue} /></section>
      <section class="panel" aria-labelledby="latest"><${Latest} /></section>
    </div>`;
}

function Sheep({ sheep }) {
  const [shape, word] = stateOf(sheep);
  const model = text.modelName(sheep.model);
  const devices = (live.gpus?.gpus || []).map((g) => ({ gpu: g, mine: g.sheep.find((s) => s.name === sheep.name) })).filter((d) => d.mine);
  const progress = sheep.progress;
  return html`<li class=${"card " + shape}>
    <div class="row"><h3 title=${sheep.name}>${sheep.name}</h3><${State} of=${shape} word=${word} /></div>
    <p class="what">${model ? html`<${Model} of=${sheep.model} />` : html`<span class="muted">${sheep.type}, no model loaded</span>`}</p>
    ${sheep.job &&
    html`<p class="row"><${JobLink} id=${sheep.job} /><span class="time">${sheep.running_since
      ? html`<${Running} since=${sheep.running_since} usual=${sheep.usual} />`
      : sheep.started_at && html`<${Since} at=${sheep.started_at} />`}</span></p>`}
    ${progress &&
    html`<div class="progress"><${Bar} parts=${[{ value: progress.done, kind: "done" }]} whole=${1} label=${`${Math.round(progress.done * 100)} % done`} /><span class="time">${Math.round(progress.done * 100)} %</span></div>`}
    ${(progress?.text || sheep.detail) && sheep.detail !== "busy" && html`<p class="detail" title=${sheep.detail}>${progress?.text || sheep.detail}</p>`}
    ${devices.map(
      ({ gpu, mine }) => html`<div class="device" key=${gpu.uuid}>
        <span class="muted">GPU ${gpu.index}</span>
        <${Bar} parts=${[{ value: mine.used, kind: "mine" }, { value: Math.max(0, gpu.used - mine.used), kind: "others" }]} whole=${gpu.memory} label=${`GPU ${gpu.index}: ${text.bytes(mine.used)} of ${text.bytes(gpu.memory)} are this sheep's, ${text.bytes(gpu.used)} are used in all`} />
        <span class="time">${gpu.health === "out" ? html`<${State} of="out" word="out" />` : text.bytes(mine.used)}</span></div>`,
    )}
  </li>`;
}

function Queue({ queue }) {
  return html`<div class="row"><h2 id="queue">Queue</h2><span class="muted">${queue.total ? html`<a href="#/jobs?state=queued">${text.number(queue.total)}${queue.more && "+"} waiting</a>` : ""}</span></div>
    ${!queue.total
      ? html`<${Empty} title="No job waits">${session.may("submit") ? html`<p><a href="#/submit">Submit a job</a> by dropping its files, or <code>POST /jobs</code>.</p>` : html`<p>Jobs that wait for a sheep show here, with the reason.</p>`}<//>`
      : html`<ol class="queue">${queue.head.map(
          (one) => html`<li key=${one.job_id}>
            <span class="position" title=${one.position ? `Number ${one.position} in the queue` : "It has no place yet"}>${one.position || "–"}</span>
            <div class="grow">
              <p class="row"><span class="who"><${JobLink} id=${one.job_id} /> <${Model} of=${one.model} /></span><span class="time">${one.expected_start ? html`<${Expected} at=${one.expected_start} />` : html`<${Ago} at=${one.enqueued_at} />`}</span></p>
              <p class="detail">${one.priority !== 0 && html`<span class="label">priority<b>${one.priority}</b></span>`}<${Labels} of=${one.labels} /><span title=${one.explanation}>${ticks(one.reason)}</span></p>
            </div>
          </li>`,
        )}</ol>
        ${queue.total > queue.head.length && html`<p class="muted small">and ${text.number(queue.total - queue.head.length)}${queue.more ? " or more" : ""} behind these</p>`}`}`;
}

function Latest() {
  const { answer, error } = useAnswer("/jobs?order=newest&limit=12&state=processing&state=done&state=failed&state=cancelled", () => true);
  if (!answer) return html`<h2 id="latest">Latest jobs</h2>${error ? html`<${Trouble} error=${error} />` : html`<p class="muted">Loading…</p>`}`;
  return html`<div class="row"><h2 id="latest">Latest jobs</h2><a href="#/jobs">All jobs</a></div>
    ${answer.jobs.length
      ? html`<ul class="latest">${answer.jobs.map(
          (job) => html`<li key=${job.job_id}><${Shape} of=${job.status} /><div class="grow">
            <p class="row"><span class="who"><${JobLink} id=${job.job_id} /> <${Model} of=${job.model} /></span><span class="time"><${Ago} at=${job.finished_at || job.processing_started_at || job.enqueued_at} /></span></p>
            <p class="detail">${text.states[job.status]}${job.status === "done" && job.processing_started_at && ` in ${text.duration(text.time(job.finished_at) - text.time(job.processing_started_at))}`}${job.error_details && html`: ${ticks(job.error_details.message)}`}${job.cancelling && ", being cancelled"}</p>
          </div></li>`,
        )}</ul>`
      : html`<${Empty} title="No job has run yet"><p>Results show here, the latest first.</p><//>`}`;
}

// useUsual is how long jobs of each model usually run, in milliseconds, by the last that
// were done. It is asked once: an estimate does not change with every job.
export function useUsual() {
  const [usual, set] = useState(remembered.usual);
  useEffect(() => {
    remembered.ask().then(set);
  }, []);
  return usual;
}

const remembered = {
  usual: new Map(),
  at: 0,
  async ask() {
    if (Date.now() - this.at < 5 * 60_000) return this.usual;
    this.at = Date.now();
    try {
      const response = await fetch("/jobs?order=newest&state=done&limit=200");
      const times = new Map();
      for (const job of (await response.json()).jobs) {
        const name = text.modelName(job.model);
        if (job.processing_started_at) times.set(name, [...(times.get(name) || []), text.time(job.finished_at) - text.time(job.processing_started_at)]);
      }
      this.usual = new Map([...times].map(([name, list]) => [name, text.median(list)]));
    } catch {
      this.at = 0; // without it, the page shows how long a job has run and no more
    }
    return this.usual;
  },
};
