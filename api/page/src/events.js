// The live log of what happens to jobs.
import { html, useState } from "./lib/preact.js";
import { live, use } from "./daemon.js";
import { Ago, Empty, Heading, JobLink, Model, Shape } from "./parts.js";
import * as text from "./text.js";

const shapes = { queued: "queued", claimed: "idle", started: "processing", returned: "resting", due: "queued", cancel: "cancelled", ended: "done" };
const words = { queued: "was submitted", claimed: "was claimed", started: "started", returned: "went back to the queue", due: "is due", cancel: "is to be cancelled", ended: "ended" };

export function Events() {
  use(live);
  const [wanted, search] = useState("");
  const needle = wanted.toLowerCase();
  const events = live.events.filter((e) => !needle || [e.job_id, text.modelName(e.model), e.sheep, e.event, e.status, e.reason].some((field) => field?.toLowerCase().includes(needle)));
  return html`<div class="title"><${Heading}>Events<//><p class="muted">since this page was opened, <${Ago} at=${new Date(live.since).toISOString()} />; newest first</p></div>
    <form class="filters panel" role="search" onSubmit=${(e) => e.preventDefault()}><div class="field"><label for="e-search">Search</label><input id="e-search" type="search" placeholder="job, model, sheep or reason" value=${wanted} onInput=${(e) => search(e.target.value)} /></div></form>
    ${events.length
      ? html`<ul class="latest panel">${events.map((e) => {
          const shape = e.event === "ended" ? e.status : shapes[e.event];
          return html`<li key=${e.id}><${Shape} of=${shape} /><div class="grow">
            <p class="row"><span class="who"><${JobLink} id=${e.job_id} /> ${e.event === "ended" ? text.states[e.status] : words[e.event] || e.event}${e.sheep && html` <span class="muted">${e.event === "claimed" ? "by" : "on"} ${e.sheep}</span>`} <${Model} of=${e.model} /></span><span class="time"><${Ago} at=${e.at} /></span></p>
            ${(e.error_details?.message || e.reason) && e.cause !== "done" && html`<p class="detail">${e.error_details?.message || e.reason}</p>`}</div></li>`;
        })}</ul>`
      : html`<${Empty} title=${live.events.length ? "No event is like that" : "Nothing has happened yet"}><p>${live.events.length ? "Search for something else." : html`Each step of a job shows here as it happens. <code>curl -N …/events?after=oldest</code> tells what happened before.`}</p><//>`}`;
}
