// The GPUs: who has their memory, how they fare, and how they were in the last minutes.
import { html } from "./lib/preact.js";
import { live, use } from "./daemon.js";
import { Ago, Bar, Empty, Heading, JobLink, Model, Sparkline, State, Trouble } from "./parts.js";
import * as text from "./text.js";
import { common, gpus as w } from "./words.js";

export function GPUs() {
  use(live);
  const known = live.gpus;
  if (!known) return html`<${Heading}>${w.title}<//><p class="muted" role="status">${common.waiting}</p>`;
  return html`<div class="title"><${Heading}>${w.title}<//>${known.driver && html`<p class="muted">${w.driver(known.driver, known.cuda)}</p>`}</div>
    ${known.trouble && html`<${Trouble} error=${known.trouble} />`}
    ${known.gpus.length
      ? [...Map.groupBy(known.gpus, (gpu) => gpu.node || "")].map(
          ([node, gpus]) => html`${node && html`<h2>${node}</h2>`}<ul class="gpus">${gpus.map((gpu) => html`<${GPU} key=${gpu.uuid} gpu=${gpu} level=${node ? "h3" : "h2"} />`)}</ul>`,
        )
      : html`<${Empty} title=${w.none}><p>${w.means}</p><//>`}
    ${known.others.length > 0 &&
    html`<section class="panel"><h2>${w.others}</h2><ul>${known.others.map((one) => html`<li><b>${one.name}</b> ${one.sheep.map((s) => html`<span class="phrase">${s.name}</span>`)}</li>`)}</ul></section>`}`;
}

function GPU({ gpu, level }) {
  const history = live.history.get(gpu.uuid) || [];
  const minutes = history.length ? Math.max(1, Math.round((Date.now() - history[0].at) / 60_000)) : 0;
  const foreign = gpu.foreign.reduce((sum, one) => sum + one.used, 0);
  const theirs = gpu.sheep.reduce((sum, one) => sum + one.used, 0);
  const parts = [...gpu.sheep.map((one, i) => ({ value: one.used, kind: "part" + (i % 4) })), { value: Math.max(0, gpu.used - theirs), kind: "others" }];
  return html`<li class=${"panel gpu " + gpu.health}>
    <div class="row"><${level}>${w.gpu(gpu.index)}<//><${State} of=${gpu.health} word=${w.health[gpu.health]} /></div>
    <p class="muted">${gpu.name}</p>
    ${gpu.detail && html`<p class="detail strong">${gpu.detail}${gpu.out_since && w.outSince(html`<${Ago} at=${gpu.out_since} />`)}${gpu.retest_at && w.tested(html`<${Ago} at=${gpu.retest_at} />`)}</p>`}
    <p class="row"><b>${text.bytes(gpu.used)}</b><span class="muted">${w.of(text.bytes(gpu.memory))}</span></p>
    <${Bar} parts=${parts} whole=${gpu.memory} label=${w.memory(text.bytes(gpu.used), text.bytes(gpu.memory))} />
    <ul class="users">${gpu.sheep.map(
      (one, i) => html`<li><svg class="key" viewBox="0 0 10 10" aria-hidden="true"><rect class=${"part" + (i % 4)} width="10" height="10" rx="2" /></svg><span class="grow"><b>${one.name}</b> ${one.model.name && html`<${Model} of=${one.model} />`} ${one.job && html`<${JobLink} id=${one.job} />`}</span><span class="time">${text.bytes(one.used)}${one.budget ? html` <span class="muted">${w.of(text.bytes(one.budget))}</span>` : ""}</span></li>`,
    )}
    ${foreign > 0 && html`<li><svg class="key" viewBox="0 0 10 10" aria-hidden="true"><rect class="others" width="10" height="10" rx="2" /></svg><span class="grow">${w.foreign}${gpu.foreign.map((one) => `${one.name || w.process} (${one.pid})`).join(", ")}</span><span class="time">${text.bytes(foreign)}</span></li>`}
    ${!gpu.sheep.length && !foreign && html`<li class="muted">${w.noShare}</li>`}</ul>
    <dl class="figures">
      <div><dt>${w.busy}</dt><dd>${gpu.utilization === null ? "–" : `${gpu.utilization} %`}</dd></div>
      <div><dt>${w.temperature}</dt><dd>${gpu.temperature === null ? "–" : `${gpu.temperature} °C`}</dd></div>
      <div><dt>${w.power}</dt><dd>${gpu.power === null ? "–" : `${Math.round(gpu.power)} W`}</dd></div>
      <div><dt>${w.errors}</dt><dd class=${gpu.uncorrectable_errors ? "bad" : ""}>${gpu.uncorrectable_errors === null ? "–" : text.number(gpu.uncorrectable_errors)}</dd></div>
    </dl>
    <p class="row small muted"><span>${w.lately(minutes)}</span></p>
    <${Sparkline} values=${history.map((one) => one.busy)} label=${w.howBusy(gpu.index, minutes)} />
  </li>`;
}
