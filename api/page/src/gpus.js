// The GPUs: who has their memory, how they fare, and how they were in the last minutes.
import { html } from "./lib/preact.js";
import { live, use } from "./daemon.js";
import { Ago, Bar, Empty, Heading, JobLink, Model, Sparkline, State, Trouble } from "./parts.js";
import * as text from "./text.js";

export function GPUs() {
  use(live);
  const known = live.gpus;
  if (!known) return html`<${Heading}>GPUs<//><p class="muted" role="status">Waiting for the daemon…</p>`;
  return html`<div class="title"><${Heading}>GPUs<//>${known.driver && html`<p class="muted">driver ${known.driver}${known.cuda && `, CUDA ${known.cuda}`}</p>`}</div>
    ${known.trouble && html`<${Trouble} error=${known.trouble} />`}
    ${known.gpus.length
      ? [...Map.groupBy(known.gpus, (gpu) => gpu.node || "")].map(
          ([node, gpus]) => html`${node && html`<h2>${node}</h2>`}<ul class="gpus">${gpus.map((gpu) => html`<${GPU} key=${gpu.uuid} gpu=${gpu} level=${node ? "h3" : "h2"} />`)}</ul>`,
        )
      : html`<${Empty} title="No GPU is known here"><p>Sheep with <code>devices</code> or <code>gpus</code> have their GPUs listed here. <code>shepherdd doctor</code> says what is missing on a machine that has some.</p><//>`}
    ${known.others.length > 0 &&
    html`<section class="panel"><h2>Other devices</h2><ul>${known.others.map((one) => html`<li><b>${one.name}</b> ${one.sheep.map((s) => html`<span class="phrase">${s.name}</span>`)}</li>`)}</ul></section>`}`;
}

function GPU({ gpu, level }) {
  const history = live.history.get(gpu.uuid) || [];
  const minutes = history.length ? Math.max(1, Math.round((Date.now() - history[0].at) / 60_000)) : 0;
  const foreign = gpu.foreign.reduce((sum, one) => sum + one.used, 0);
  const theirs = gpu.sheep.reduce((sum, one) => sum + one.used, 0);
  const parts = [...gpu.sheep.map((one, i) => ({ value: one.used, kind: "part" + (i % 4) })), { value: Math.max(0, gpu.used - theirs), kind: "others" }];
  return html`<li class=${"panel gpu " + gpu.health}>
    <div class="row"><${level}>GPU ${gpu.index}<//><${State} of=${gpu.health} word=${{ ok: "well", out: "out", unknown: "not known" }[gpu.health]} /></div>
    <p class="muted">${gpu.name}</p>
    ${gpu.detail && html`<p class="detail strong">${gpu.detail}${gpu.out_since && html` · out since <${Ago} at=${gpu.out_since} />`}${gpu.retest_at && html` · tested again <${Ago} at=${gpu.retest_at} />`}</p>`}
    <p class="row"><b>${text.bytes(gpu.used)}</b><span class="muted">of ${text.bytes(gpu.memory)}</span></p>
    <${Bar} parts=${parts} whole=${gpu.memory} label=${`Memory: ${text.bytes(gpu.used)} of ${text.bytes(gpu.memory)} are used`} />
    <ul class="users">${gpu.sheep.map(
      (one, i) => html`<li><svg class="key" viewBox="0 0 10 10" aria-hidden="true"><rect class=${"part" + (i % 4)} width="10" height="10" rx="2" /></svg><span class="grow"><b>${one.name}</b> ${one.model.name && html`<${Model} of=${one.model} />`} ${one.job && html`<${JobLink} id=${one.job} />`}</span><span class="time">${text.bytes(one.used)}${one.budget ? html` <span class="muted">of ${text.bytes(one.budget)}</span>` : ""}</span></li>`,
    )}
    ${foreign > 0 && html`<li><svg class="key" viewBox="0 0 10 10" aria-hidden="true"><rect class="others" width="10" height="10" rx="2" /></svg><span class="grow">not shepherd's: ${gpu.foreign.map((one) => `${one.name || "a process"} (${one.pid})`).join(", ")}</span><span class="time">${text.bytes(foreign)}</span></li>`}
    ${!gpu.sheep.length && !foreign && html`<li class="muted">No sheep has a share of it.</li>`}</ul>
    <dl class="figures">
      <div><dt>Busy</dt><dd>${gpu.utilization === null ? "–" : `${gpu.utilization} %`}</dd></div>
      <div><dt>Temperature</dt><dd>${gpu.temperature === null ? "–" : `${gpu.temperature} °C`}</dd></div>
      <div><dt>Power</dt><dd>${gpu.power === null ? "–" : `${Math.round(gpu.power)} W`}</dd></div>
      <div><dt>Errors</dt><dd class=${gpu.uncorrectable_errors ? "bad" : ""}>${gpu.uncorrectable_errors === null ? "–" : text.number(gpu.uncorrectable_errors)}</dd></div>
    </dl>
    <p class="row small muted"><span>Busy, the last ${minutes < 2 ? "minute" : text.plural(minutes, "minute")}</span></p>
    <${Sparkline} values=${history.map((one) => one.busy)} label=${`How busy GPU ${gpu.index} was in the last ${minutes < 2 ? "minute" : text.plural(minutes, "minute")}`} />
  </li>`;
}
