// What those who administer tell a sheep to do.
import { html, useState } from "./lib/preact.js";
import { post, session } from "./daemon.js";
import { Do, Trouble } from "./parts.js";
import { parseModel } from "./submit.js";
import * as text from "./text.js";
import { common, orders as w } from "./words.js";

// Orders are the buttons of a sheep, for those who may use them.
export function Orders({ sheep }) {
  const [open, set] = useState(false);
  if (!session.may("admin") || sheep.condition === "leaving") return null;
  return html`<details class="orders" open=${open} onToggle=${(event) => set(event.currentTarget.open)}>
    <summary><span class="small">${w.manage(sheep.name)}</span></summary>
    ${open && html`<${Buttons} sheep=${sheep} />`}
  </details>`;
}

function Buttons({ sheep }) {
  const tell = (what) => () => post(`/sheep/${encodeURIComponent(sheep.name)}/${what}`);
  const away = sheep.condition === "drained" || sheep.condition === "stopped";
  return html`<div class="actions">
      ${away
        ? html`<${Do} key="resume" label=${w.resumeSheep(sheep.name)} what=${tell("resume")}>${w.resume}<//>`
        : html`<${Do} key="drain" label=${w.drainSheep(sheep.name)} what=${tell("drain")}>${w.drain}<//>`}
      ${sheep.condition !== "stopped" &&
      html`<${Do} key="restart" kind="danger" label=${w.restartSheep(sheep.name)} confirm=${sheep.job ? w.restartBusy : w.restartIdle} what=${tell("restart")}>${w.restart}<//>`}
    </div>
    ${!sheep.job && sheep.condition !== "stopped" && html`<${Load} sheep=${sheep} />`}`;
}

function Load({ sheep }) {
  const [name, type] = useState("");
  const [state, be] = useState({});
  const load = async (event) => {
    event.preventDefault();
    be({ busy: true });
    try {
      await post(`/sheep/${encodeURIComponent(sheep.name)}/load`, { model: parseModel(name) });
      be({});
      type("");
    } catch (error) {
      be({ error });
    }
  };
  const id = "load-" + sheep.name;
  return html`<form class="load" onSubmit=${load}><label class="hidden" for=${id}>${w.model(sheep.name)}</label>
    <input id=${id} placeholder=${text.modelName(sheep.model) || w.anyModel} value=${name} onInput=${(event) => type(event.target.value)} />
    <button disabled=${state.busy || !name} aria-label=${w.loadSheep(sheep.name)}>${state.busy ? common.loading : w.load}</button>
    ${state.error && html`<${Trouble} error=${state.error} />`}</form>`;
}
