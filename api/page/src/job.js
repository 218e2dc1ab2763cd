// One job: how it stands, its timeline, its files and its logs.
import { html } from "./lib/preact.js";
import { ask, live, post, session, use, useAnswer } from "./daemon.js";
import { Ago, Bar, Do, Expected, Heading, Labels, Model, State, Trouble, ticks, useNow } from "./parts.js";
import { Files } from "./files.js";
import { Log } from "./log.js";
import * as text from "./text.js";
import { common, job as w } from "./words.js";

const ended = (job) => ["done", "failed", "cancelled"].includes(job.status);

export function Job({ id }) {
  const path = "/jobs/" + encodeURIComponent(id);
  const mine = (events) => events.some((e) => e.job_id === id);
  const { answer: job, error, again } = useAnswer(path, mine);
  if (!job) {
    return html`<${Heading} title=${id}>${id}<//>${error ? html`<${Trouble} error=${error.status === 404 ? w.unknown : error} /><p><a href="#/jobs">${w.all}</a></p>` : html`<p class="muted" role="status">${common.loading}</p>`}`;
  }
  return html`<p class="crumbs"><a href="#/jobs">${w.jobs}</a></p>
    <div class="title"><${Heading} title=${id}><span class="id">${id}</span><//><${State} of=${job.status} word=${job.cancelling ? common.stopping : undefined} /></div>
    ${error && html`<${Trouble} error=${error} again=${again} />`}
    <${Actions} job=${job} path=${path} again=${again} />
    <${Facts} job=${job} />
    <${Why} job=${job} path=${path} mine=${mine} />
    <${Timeline} job=${job} />
    <${Files} job=${job} kind="input" title=${w.inputs} />
    ${job.status === "done" && html`<${Files} job=${job} kind="result" title=${w.outputs} />`}
    <${Log} key=${job.run} job=${job} over=${ended(job)} />`;
}

function Actions({ job, path, again }) {
  if (!session.may("submit")) return null;
  const copy = async () => {
    const made = await post("/jobs", {
      model: job.model, priority: job.priority, labels: job.labels, ...(job.sheep_id && { sheep_id: job.sheep_id }), inputs: [{ job: job.job_id, path: "inputs/" }],
    });
    location.hash = text.jobLink(made.job_id);
  };
  return html`<p class="actions">
    ${!ended(job) && !job.cancelling && html`<${Do} kind="danger" confirm=${w.sureCancel} what=${async () => (await post(path + "/cancel"), again())}>${w.cancel}<//>`}
    ${ended(job) && !job.files_removed && html`<${Do} kind=${job.status === "done" ? "" : "primary"} what=${async () => (await post(path + "/retry"), again())}>${w.retry}<//>`}
    ${!job.files_removed && html`<${Do} what=${copy}>${w.copy}<//>`}
    ${ended(job) && html`<${Do} kind="danger" confirm=${w.sureRemove} what=${async () => (await ask(path, { method: "DELETE" }), (location.hash = "#/jobs"))}>${w.remove}<//>`}
  </p>`;
}

function Facts({ job }) {
  use(live);
  const sheep = live.flock?.sheep.find((s) => s.job === job.job_id);
  const progress = sheep?.progress || job.progress;
  const [queued, started, finished] = [text.time(job.enqueued_at), text.time(job.processing_started_at), text.time(job.finished_at)];
  const facts = [
    [common.model, html`<a href=${"#/jobs?model=" + encodeURIComponent(text.modelName(job.model))}><${Model} of=${job.model} /></a>`],
    [common.submitted, html`<${Ago} at=${job.enqueued_at} />`],
    [w.facts.start, job.expected_start && html`<${Expected} at=${job.expected_start} />`],
    [w.facts.end, job.expected_end && html`<${Expected} at=${job.expected_end} />`],
    [w.facts.waited, started && text.duration(started - queued)],
    [w.facts.ran, started && finished && text.duration(finished - started)],
    [common.sheep, job.sheep || job.attempts?.at(-1)?.sheep],
    [w.facts.place, job.position && text.number(job.position)],
    [w.facts.priority, job.priority !== 0 && job.priority],
    [w.facts.only, job.sheep_id],
    [w.facts.notBefore, job.status === "queued" && job.not_before && html`<${Ago} at=${job.not_before} />`],
    [w.facts.deadline, !ended(job) && job.deadline && html`<${Ago} at=${job.deadline} />`],
    [w.facts.gpu, job.gpu && `${text.duration(job.gpu.seconds * 1000)}${job.gpu.peak_memory ? w.peak(text.bytes(job.gpu.peak_memory)) : ""}`],
    [w.facts.files, job.files_removed ? w.removed : job.kept_until && w.kept(html`<${Ago} at=${job.kept_until} />`)],
    [common.labels, Object.keys(job.labels).length > 0 && html`<${Labels} of=${job.labels} />`],
  ].filter(([, value]) => value);
  return html`<dl class="facts panel">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${progress && !ended(job) && html`<div class="panel progress big"><${Bar} parts=${[{ value: progress.done, kind: "done" }]} whole=${1} label=${common.percentDone(progress.done)} /><span>${common.percent(progress.done)}</span><span class="detail">${progress.text}</span></div>`}`;
}

// Why shows the daemon's own explanation.
function Why({ job, path, mine }) {
  const { answer } = useAnswer(path + "/explain", mine);
  const failed = job.status === "failed";
  if (!answer || (job.status === "done" && !job.warnings.length)) return null;
  return html`<section class=${"why panel " + (failed ? "bad" : "")} aria-labelledby="why">
    <h2 id="why">${failed ? w.whyFailed : job.status === "queued" ? w.whyWaits : w.stands}</h2>
    <p class="strong">${ticks(answer.summary)}</p>
    ${answer.reasons.length > 0 && html`<ul>${answer.reasons.map((one) => html`<li>${ticks(one)}</li>`)}</ul>`}
    ${answer.next.length > 0 && html`<p><b>${w.next}</b></p><ul>${answer.next.map((one) => html`<li>${ticks(one)}</li>`)}</ul>`}
    ${job.warnings.map((one) => html`<p>${one}</p>`)}
    ${job.error_details?.exception_traceback && html`<details><summary>${w.traceback}</summary><pre>${job.error_details.exception_traceback}</pre></details>`}
  </section>`;
}

const words = w.phases;

// phasesOf are the phases of an attempt as stretches of time, in milliseconds. The API
// tells when the attempt began, started and ended, and how long each phase took:
// fetching inputs begins it, storing results ends it.
export function phasesOf(attempt, now) {
  const [began, started, over] = [text.time(attempt.began_at), text.time(attempt.started_at), text.time(attempt.ended_at) ?? now];
  const long = (name) => (attempt.phases[name] || 0) * 1000;
  const list = [];
  const add = (kind, from, to) => to > from && list.push({ kind, from, to });
  const staged = Math.min(began + long("stage"), over);
  add("stage", began, staged);
  if (started === null) {
    add("hold", staged, over);
    return list;
  }
  const collects = long("collect") ? over - long("collect") : over;
  const runs = long("run") ? Math.max(started, collects - long("run")) : attempt.ended_at ? collects : null;
  const loads = long("load");
  if (runs === null) {
    const loaded = Math.min(started + loads, over);
    add("hold", staged, started);
    add("load", Math.max(started, staged), loaded);
    add("run", Math.max(loaded, staged), over);
    return list;
  }
  const load = Math.max(staged, runs - loads);
  add("hold", staged, load);
  add("load", load, runs);
  add("run", runs, collects);
  add("collect", collects, over);
  return list;
}

function Timeline({ job }) {
  const now = useNow();
  const attempts = (job.attempts || []).filter((a) => a.run === job.run);
  const begin = text.time(job.enqueued_at);
  const end = text.time(job.finished_at) ?? now;
  const whole = Math.max(1, end - begin);
  const rows = attempts.map((a) => ({ attempt: a, phases: phasesOf(a, now) }));
  if (!rows.length) return null;
  const first = text.time(attempts[0].began_at);
  const x = (at) => (100 * (at - begin)) / whole;
  const used = new Set(["wait", ...rows.flatMap((row) => row.phases.map((p) => p.kind))]);
  return html`<section class="panel" aria-labelledby="timeline">
    <h2 id="timeline">${w.timeline}</h2>
    <ul class="legend" aria-hidden="true">${Object.entries(words).map(([kind, word]) => used.has(kind) && html`<li><svg viewBox="0 0 10 10"><rect class=${"phase " + kind} width="10" height="10" rx="2" /></svg>${word}</li>`)}</ul>
    <div class="scroll" tabindex="0" role="region" aria-label=${w.attempts}><table class="timeline"><thead><tr><th scope="col">${w.attempt}</th><th scope="col">${common.sheep}</th><th scope="col" class="wide">${w.inAll(text.duration(whole))}</th><th scope="col">${w.ended}</th></tr></thead>
    <tbody>${rows.map(({ attempt, phases }, i) => {
      const all = i === 0 ? [{ kind: "wait", from: begin, to: first }, ...phases] : phases;
      const label = all.map((p) => `${words[p.kind]} ${text.duration(p.to - p.from)}`).join(", ");
      return html`<tr key=${attempt.number}><td class="num">${attempt.number}</td><td class="nowrap">${attempt.sheep}</td>
        <td><svg class="phases" role="img" aria-label=${label} viewBox="0 0 100 10" preserveAspectRatio="none">${all.map((p) => html`<rect class=${"phase " + p.kind} x=${x(p.from)} width=${Math.max(0.4, x(p.to) - x(p.from))} height="10"><title>${words[p.kind]}: ${text.duration(p.to - p.from)}</title></rect>`)}</svg>
        <span class="small muted">${all.filter((p) => p.to - p.from >= 1).map((p) => html`<span class="phrase">${words[p.kind]} ${text.duration(p.to - p.from)}</span>`)}</span></td>
        <td>${attempt.cause ? html`<span class="cause">${attempt.cause}</span>` : html`<span class="muted nowrap">${w.underWay}</span>`}</td></tr>
        ${attempt.reason && attempt.cause !== "done" && html`<tr class="reason"><td></td><td colspan="3">${ticks(attempt.reason)}</td></tr>`}`;
    })}</tbody></table></div>
    ${job.run > 1 && html`<p class="muted small">${w.runs(job.run, (job.attempts || []).length - attempts.length)}</p>`}
    <details><summary>${w.happened}</summary><ol class="happened">${(job.timeline || []).map((e) => html`<li><time datetime=${e.at}>${text.exact(text.time(e.at))}</time> <b>${e.event}</b> ${e.sheep && w.by(e.sheep)} ${e.reason && html`<span class="muted">${ticks(e.reason)}</span>`}</li>`)}</ol></details>
  </section>`;
}
