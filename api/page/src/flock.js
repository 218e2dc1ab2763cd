// The first view: the sheep, the queue and the latest jobs.
import { html, useEffect, useState } from "./lib/preact.js";
import { live, session, use, useAnswer } from "./daemon.js";
import { Ago, Bar, Empty, Expected, Heading, JobLink, Labels, Model, Running, Shape, Since, State, Trouble, ticks, useNow } from "./parts.js";
import { Orders } from "./orders.js";
import * as text from "./text.js";
import { common, flock as w, states } from "./words.js";

// stateOf is a sheep's state as a shape and a word.
function stateOf(sheep) {
  if (sheep.condition === "leaving") return ["leaving", w.leaving];
  if (sheep.condition === "stopped") return ["stopped", w.stopped];
  if (sheep.condition === "drained") return sheep.job || sheep.detail === "busy" ? ["processing", w.draining] : ["drained", w.drained];
  if (sheep.condition === "blocked") return ["blocked", w.out];
  if (sheep.job || sheep.detail === "busy") return ["processing", sheep.running ? w.working : w.preparing];
  if (sheep.condition === "resting") return ["resting", w.resting];
  if (!sheep.running && /pull|load|unpack|start/i.test(sheep.detail || "")) return ["processing", w.preparing];
  return sheep.running ? ["ready", w.ready] : ["idle", w.idle];
}

export function Flock() {
  use(live);
  if (!live.flock) return html`<${Heading}>${w.title}<//><p class="muted" role="status">${common.waiting}</p>`;
  const { sheep, queue, trouble } = live.flock;
  const nodes = Map.groupBy(sheep, (one) => one.node || "");
  return html`<div class="title"><${Heading}>${w.title}<//>
      <p class="muted">${nodes.size > 1 && `${w.nodes(nodes.size)} · `}${w.sheep(sheep.length)}<${Counts} of=${sheep} /> · <span class="nowrap"><b>${text.number(queue.total)}${queue.more && "+"}</b> ${w.waiting}</span></p></div>
    ${trouble && html`<${Trouble} error=${w.old(trouble)} />`}
    <section aria-labelledby="sheep">
      <h2 id="sheep" class="hidden">${common.sheep}</h2>
      ${nodes.size > 1
        ? html`<div class="nodes">${[...nodes].map(([name, its]) => html`<${Node} key=${name} name=${name} sheep=${its} />`)}</div>`
        : sheep.length
        ? html`<ul class=${"sheep" + (sheep.length > 24 ? " dense" : "")}>${sheep.map((one) => html`<${Sheep} key=${one.name} sheep=${one} />`)}</ul>`
        : html`<${Empty} title=${w.noSheep}><p>${w.addSheep}</p><//>`}
    </section>
    <div class="columns">
      <section class="panel" aria-labelledby="queue"><${Queue} queue=${queue} /></section>
      <section class="panel" aria-labelledby="latest"><${Latest} /></section>
    </div>`;
}

// Counts is how many sheep are in each state.
function Counts({ of }) {
  const words = Map.groupBy(of, (one) => stateOf(one)[1]);
  return [...words].map(([word, list]) => html` · <span class="nowrap"><b>${list.length}</b> ${word}</span>`);
}

// devicesOf are the GPUs of which the sheep has a share.
const devicesOf = (sheep) => (live.gpus?.gpus || []).map((g) => ({ gpu: g, mine: g.sheep.find((s) => s.name === sheep.name) })).filter((d) => d.mine);

// Took is how long a sheep has had its job, of what that usually takes.
const Took = ({ sheep }) => (sheep.running_since ? html`<${Running} since=${sheep.running_since} usual=${sheep.usual} />` : sheep.started_at && html`<${Since} at=${sheep.started_at} />`);

// Pulled is how far the fetching of a model is.
function Pulled({ of, more = "" }) {
  const part = of.done / of.total;
  return html`<div class=${"progress" + more}><${Bar} parts=${[{ value: of.done, kind: "done" }]} whole=${of.total} label=${w.pulled(part)} /><span class="time">${w.pulling(part, text.bytes(of.rate))}</span></div>`;
}

// saidOf is what a sheep does or why it takes no jobs, in words; what a bar tells is left out.
function saidOf(sheep) {
  if (sheep.pull) return sheep.detail.split(": ")[0];
  return sheep.progress?.text || (sheep.detail !== "busy" && sheep.detail);
}

// Node is one of many nodes: a line for each sheep.
function Node({ name, sheep }) {
  const gpus = (live.gpus?.gpus || []).filter((g) => g.node === name);
  const out = gpus.filter((g) => g.health === "out").length;
  return html`<section class="panel node" aria-label=${name}>
    <div><h3 title=${name}>${name}</h3><p class="muted small">${w.sheep(sheep.length)}<${Counts} of=${sheep} />${gpus.length > 0 && ` · ${w.gpus(gpus.length)}`}${out > 0 && html`, <b class="error">${w.outOf(out)}</b>`}</p></div>
    <ul>${sheep.map((one) => html`<${Line} key=${one.name} sheep=${one} />`)}</ul>
  </section>`;
}

function Line({ sheep }) {
  const [shape, word] = stateOf(sheep);
  const local = sheep.node ? sheep.name.slice(sheep.node.length + 1) : sheep.name;
  const devices = devicesOf(sheep);
  const used = devices.reduce((sum, { mine }) => sum + mine.used, 0);
  const memory = devices.reduce((sum, { gpu }) => sum + gpu.memory, 0);
  const said = saidOf(sheep);
  return html`<li class=${"line " + shape}>
    <div>
      <span class="name" title=${said ? `${word}: ${said}` : word}><${Shape} of=${shape} /><b>${local}</b><span class="hidden">${word}</span></span>
      <span class="what">${sheep.model.name ? html`<${Model} of=${sheep.model} />` : html`<span class="muted">${word}</span>`}</span>
      ${memory > 0 && html`<${Bar} parts=${[{ value: used, kind: "mine" }]} whole=${memory} label=${w.memory(text.bytes(used), text.bytes(memory))} />`}
    </div>
    ${sheep.job && html`<div class="under"><${JobLink} id=${sheep.job} /><span class="time"><${Took} sheep=${sheep} /></span></div>`}
    ${sheep.pull && html`<${Pulled} of=${sheep.pull} more=" under" />`}
    ${(sheep.condition !== "able" || !sheep.job) && said && html`<p class="detail under" title=${said}>${said}</p>`}
    <${Orders} sheep=${sheep} />
  </li>`;
}

function Sheep({ sheep }) {
  const [shape, word] = stateOf(sheep);
  const model = text.modelName(sheep.model);
  const devices = devicesOf(sheep);
  const progress = sheep.progress;
  const said = saidOf(sheep);
  return html`<li class=${"card " + shape}>
    <div class="row"><h3 title=${sheep.name}>${sheep.name}</h3><${State} of=${shape} word=${word} /></div>
    <p class="what">${model ? html`<${Model} of=${sheep.model} />` : html`<span class="muted">${w.noModel(sheep.type)}</span>`}</p>
    ${sheep.job &&
    html`<p class="row"><${JobLink} id=${sheep.job} /><span class="time"><${Took} sheep=${sheep} /></span></p>`}
    ${progress &&
    html`<div class="progress"><${Bar} parts=${[{ value: progress.done, kind: "done" }]} whole=${1} label=${common.percentDone(progress.done)} /><span class="time">${common.percent(progress.done)}</span></div>`}
    ${sheep.pull && html`<${Pulled} of=${sheep.pull} />`}
    ${said && html`<p class="detail" title=${sheep.detail}>${said}</p>`}
    ${devices.map(
      ({ gpu, mine }) => html`<div class="device" key=${gpu.uuid}>
        <span class="muted">${w.gpu(gpu.index)}</span>
        <${Bar} parts=${[{ value: mine.used, kind: "mine" }, { value: Math.max(0, gpu.used - mine.used), kind: "others" }]} whole=${gpu.memory} label=${w.share(gpu.index, text.bytes(mine.used), text.bytes(gpu.used), text.bytes(gpu.memory))} />
        <span class="time">${gpu.health === "out" ? html`<${State} of="out" word=${w.out} />` : text.bytes(mine.used)}</span></div>`,
    )}
    <${Orders} sheep=${sheep} />
  </li>`;
}

function Queue({ queue }) {
  return html`<div class="row"><h2 id="queue">${w.queue}</h2><span class="muted">${queue.total ? html`<a href="#/jobs?state=queued">${text.number(queue.total)}${queue.more && "+"} ${w.waiting}</a>` : ""}</span></div>
    ${!queue.total
      ? html`<${Empty} title=${w.noneWaits}>${session.may("submit") ? html`<p>${w.submit}</p>` : html`<p>${w.waitsHere}</p>`}<//>`
      : html`<${Groups} queue=${queue} /><ol class="queue">${queue.head.map(
          (one) => html`<li key=${one.job_id}>
            <span class="position" title=${one.position ? w.position(one.position, one.sheep_id) : w.noPosition}>${one.position || "–"}</span>
            <div class="grow">
              <p class="row"><span class="who"><${JobLink} id=${one.job_id} /> <${Model} of=${one.model} /></span><span class="time">${one.expected_start ? html`<${Expected} at=${one.expected_start} />` : w.submitted(html`<${Ago} at=${one.enqueued_at} />`)}</span></p>
              <p class="detail">${one.priority !== 0 && html`<span class="label">${common.priority}<b>${one.priority}</b></span>`}<${Labels} of=${one.labels} /><span title=${one.explanation}>${ticks(one.reason)}</span></p>
            </div>
          </li>`,
        )}</ol>
        ${queue.total > queue.head.length && html`<p class="muted small">${w.behind(queue.total - queue.head.length, queue.more)}</p>`}`}`;
}

// Groups is of what the jobs that wait are, with the turns of the models that are loaded.
function Groups({ queue }) {
  const now = useNow();
  const turns = Map.groupBy(
    live.flock.sheep.filter((one) => one.turn_ends_at && text.time(one.turn_ends_at) - now >= 1000), // what ends in less is over when it is read
    (one) => text.modelName(one.model),
  );
  const link = (name, query) => html`<a href=${`#/jobs?state=queued&${query}=${encodeURIComponent(name)}`}>${name}</a>`;
  const kinds = [
    [w.models, queue.models, (one) => link(one.name, "model")],
    [w.priorities, queue.priorities.length > 1 ? queue.priorities : [], (one) => one.name],
    [w.tenants, queue.tenants, (one) => one.name],
    [w.labels, queue.labels, (one) => link(one.name, "label")],
  ].filter(([, groups]) => groups.length);
  return html`<dl class="groups">${kinds.map(
    ([kind, groups, name]) => html`<div><dt>${kind}</dt><dd>${groups.slice(0, 8).map(
      (one) => html`<span class="phrase">${name(one)} <b>${text.number(one.jobs)}</b>${kind === w.models &&
      (turns.get(one.name) || []).slice(0, 2).map((sheep) => html` <span class="muted" title=${w.turnMeans}>${w.turn(sheep.name, text.about(text.time(sheep.turn_ends_at) - now))}</span>`)}</span>`,
    )}${groups.length > 8 && html`<span class="muted">${w.more(groups.length - 8)}</span>`}</dd></div>`,
  )}</dl>`;
}

function Latest() {
  const { answer, error } = useAnswer("/jobs?order=newest&limit=12&state=processing&state=done&state=failed&state=cancelled", () => true);
  if (!answer) return html`<h2 id="latest">${w.latest}</h2>${error ? html`<${Trouble} error=${error} />` : html`<p class="muted">${common.loading}</p>`}`;
  return html`<div class="row"><h2 id="latest">${w.latest}</h2><a href="#/jobs">${w.all}</a></div>
    ${answer.jobs.length
      ? html`<ul class="latest">${answer.jobs.map(
          (job) => html`<li key=${job.job_id}><${Shape} of=${job.status} /><div class="grow">
            <p class="row"><span class="who"><${JobLink} id=${job.job_id} /> <${Model} of=${job.model} /></span><span class="time"><${Ago} at=${job.finished_at || job.processing_started_at || job.enqueued_at} /></span></p>
            <p class="detail">${states[job.status]}${job.status === "done" && job.processing_started_at && w.doneIn(text.duration(text.time(job.finished_at) - text.time(job.processing_started_at)))}${job.error_details && html`: ${ticks(job.error_details.message)}`}${job.cancelling && w.cancelling}</p>
          </div></li>`,
        )}</ul>`
      : html`<${Empty} title=${w.noneRan}><p>${w.results}</p><//>`}`;
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
