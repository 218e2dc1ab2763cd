// All jobs: search, filters and pages by the API's cursor.
import { html, useEffect, useState } from "./lib/preact.js";
import { get, session, useAnswer } from "./daemon.js";
import { Ago, Empty, Heading, JobLink, Labels, Model, State, Trouble, ticks } from "./parts.js";
import * as text from "./text.js";
import { common, list as w, states } from "./words.js";

const page = 50;

export function Jobs({ query }) {
  // The filters are the address's, so that a view can be sent to somebody and the
  // browser's buttons go through them.
  const filters = { state: query.getAll("state"), model: query.get("model") || "", label: query.get("label") || "", prefix: query.get("prefix") || "", since: query.get("since") || "" };
  const change = (next) => {
    const params = new URLSearchParams();
    for (const [name, value] of Object.entries({ ...filters, ...next })) for (const one of [value].flat()) if (one) params.append(name, one);
    location.replace("#/jobs" + (params.size ? "?" + params : ""));
  };
  const params = new URLSearchParams({ order: "newest", limit: page });
  for (const [name, value] of Object.entries(filters)) for (const one of [value].flat()) if (one) params.append(name, one);
  const path = "/jobs?" + params;
  return html`<div class="title"><${Heading}>${w.title}<//></div>
    <${Filters} filters=${filters} change=${change} />
    <${List} key=${path} path=${path} filtered=${params.size > 2} clear=${() => location.replace("#/jobs")} />`;
}

function Filters({ filters, change }) {
  const [typed, type] = useState({ prefix: filters.prefix, model: filters.model, label: filters.label });
  useEffect(() => type({ prefix: filters.prefix, model: filters.model, label: filters.label }), [filters.prefix, filters.model, filters.label]);
  const field = (name, label, hint) => html`<div class="field"><label for=${"f-" + name}>${label}</label><input id=${"f-" + name} type="search" placeholder=${hint} value=${typed[name]} onInput=${(e) => type({ ...typed, [name]: e.target.value })} onChange=${() => change(typed)} /></div>`;
  return html`<form class="filters panel" role="search" onSubmit=${(e) => (e.preventDefault(), change(typed))}>
    ${field("prefix", w.prefix, w.prefixHint)} ${field("model", common.model, w.modelHint)} ${field("label", w.label, w.labelHint)}
    <div class="field"><label for="f-since">${common.submitted}</label><select id="f-since" value=${filters.since} onChange=${(e) => change({ ...typed, since: e.target.value })}>${w.spans.map(([value, word]) => html`<option value=${value} selected=${value === filters.since}>${word}</option>`)}</select></div>
    <fieldset class="states"><legend>${w.state}</legend>${Object.entries(states).map(([state, word]) => {
      const on = filters.state.includes(state);
      return html`<label class=${on ? "on" : ""}><input type="checkbox" checked=${on} onChange=${() => change({ ...typed, state: on ? filters.state.filter((s) => s !== state) : [...filters.state, state] })} /><${State} of=${state} word=${word} /></label>`;
    })}</fieldset>
    <button class="hidden">${common.search}</button>
  </form>`;
}

function List({ path, filtered, clear }) {
  const first = useAnswer(path, (events) => events.some((e) => e.event !== "progress"));
  const [more, add] = useState({ jobs: [], next: undefined });
  const [state, be] = useState({});
  if (!first.answer) return first.error ? html`<${Trouble} error=${first.error} again=${first.again} />` : html`<p class="muted" role="status">${common.loading}</p>`;
  const seen = new Set(first.answer.jobs.map((job) => job.job_id));
  const jobs = [...first.answer.jobs, ...more.jobs.filter((job) => !seen.has(job.job_id))];
  const next = more.next === undefined ? first.answer.next : more.next;
  const older = async () => {
    be({ busy: true });
    try {
      const answer = await get(`${path}&after=${encodeURIComponent(next)}`);
      add({ jobs: [...more.jobs, ...answer.jobs], next: answer.next });
      be({});
    } catch (error) {
      be({ error });
    }
  };
  if (!jobs.length) {
    return filtered
      ? html`<${Empty} title=${w.none}><p><button type="button" onClick=${clear}>${w.showAll}</button></p><//>`
      : html`<${Empty} title=${w.empty}><p>${session.may("submit") ? w.first : w.later}</p><//>`;
  }
  return html`${first.error && html`<${Trouble} error=${first.error} again=${first.again} />`}
    <div class="scroll panel" tabindex="0" role="region" aria-label=${w.title}><table class="jobs list">
      <thead><tr><th scope="col">${w.columns.state}</th><th scope="col">${w.columns.job}</th><th scope="col">${common.model}</th><th scope="col">${common.submitted}</th><th scope="col" class="num">${w.columns.waited}</th><th scope="col" class="num">${w.columns.ran}</th><th scope="col">${common.sheep}</th><th scope="col">${w.columns.notes}</th></tr></thead>
      <tbody>${jobs.map((job) => html`<${Row} key=${job.job_id} job=${job} />`)}</tbody>
    </table></div>
    ${state.error && html`<${Trouble} error=${state.error} />`}
    <p class="after">${next ? html`<button type="button" disabled=${state.busy} onClick=${older}>${w.older}</button>` : html`<span class="muted">${w.allOf(jobs.length)}</span>`}</p>`;
}

function Row({ job }) {
  const [queued, started, ended] = [text.time(job.enqueued_at), text.time(job.processing_started_at), text.time(job.finished_at)];
  return html`<tr>
    <td><${State} of=${job.status} word=${job.cancelling ? common.stopping : undefined} /></td>
    <td><${JobLink} id=${job.job_id} /></td>
    <td><${Model} of=${job.model} /></td>
    <td class="nowrap"><${Ago} at=${job.enqueued_at} /></td>
    <td class="num" data-label=${w.columns.waited.toLowerCase()}>${started ? text.duration(started - queued) : ""}</td>
    <td class="num" data-label=${w.columns.ran.toLowerCase()}>${started && ended ? text.duration(ended - started) : ""}</td>
    <td class="nowrap" data-label=${common.sheep.toLowerCase()}>${job.sheep || job.last_sheep || job.sheep_id || ""}</td>
    <td class="notes">${job.priority !== 0 && html`<span class="label">${common.priority}<b>${job.priority}</b></span>`}<${Labels} of=${job.labels} /><span title=${job.error_details?.message}>${ticks(job.error_details?.message || job.detail)}</span></td>
  </tr>`;
}
