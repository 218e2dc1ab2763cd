// The live log of what happens to jobs: the newest events, and each new one as it comes.
import { html, useEffect, useState } from "./lib/preact.js";
import { live, use } from "./daemon.js";
import { Ago, Empty, Heading, JobLink, Model, Shape, Trouble } from "./parts.js";
import * as text from "./text.js";
import { common, events as w, states } from "./words.js";

const shapes = { queued: "queued", claimed: "idle", started: "processing", returned: "resting", due: "queued", cancel: "cancelled", ended: "done" };

export function Events() {
  use(live);
  const [wanted, search] = useState("");
  const [state, be] = useState({ loading: true });
  const recall = () => live.recall().then(() => be({}), (error) => be({ error }));
  useEffect(() => {
    recall();
    return live.onJobs((events) => events === null && recall());
  }, []);
  const needle = wanted.toLowerCase();
  const events = live.events.filter((e) => !needle || [e.job_id, text.modelName(e.model), e.sheep, e.event, e.status, e.reason].some((field) => field?.toLowerCase().includes(needle)));
  return html`<div class="title"><${Heading}>${w.title}<//><p class="muted">${w.newest}</p></div>
    <form class="filters panel" role="search" onSubmit=${(e) => e.preventDefault()}><div class="field"><label for="e-search">${common.search}</label><input id="e-search" type="search" placeholder=${w.searchHint} value=${wanted} onInput=${(e) => search(e.target.value)} /></div></form>
    ${state.error && html`<${Trouble} error=${state.error} again=${recall} />`}
    ${events.length
      ? html`<ul class="latest panel">${events.map((e) => {
          const shape = e.event === "ended" ? e.status : shapes[e.event];
          return html`<li key=${e.id}><${Shape} of=${shape} /><div class="grow">
            <p class="row"><span class="who"><${JobLink} id=${e.job_id} /> ${e.event === "ended" ? states[e.status] : w.kinds[e.event] || e.event}${e.sheep && html` <span class="muted">${e.event === "claimed" ? w.by(e.sheep) : w.on(e.sheep)}</span>`} <${Model} of=${e.model} /></span><span class="time"><${Ago} at=${e.at} /></span></p>
            ${(e.error_details?.message || e.reason) && e.cause !== "done" && html`<p class="detail">${e.error_details?.message || e.reason}</p>`}</div></li>`;
        })}</ul>
        <p class="muted small">${w.all}</p>`
      : state.loading
      ? html`<p class="muted" role="status">${common.loading}</p>`
      : html`<${Empty} title=${live.events.length ? w.none : w.nothing}><p>${live.events.length ? w.other : w.means}</p><//>`}`;
}
