// The frame of the page: navigation, who is signed in, whether the page is live.
import { html, render, useEffect, useRef, useState } from "./lib/preact.js";
import { live, session, use } from "./daemon.js";
import { Do, Heading, arrival, Shape, Trouble, useNow } from "./parts.js";
import * as text from "./text.js";
import { Flock } from "./flock.js";
import { Jobs } from "./jobs.js";
import { Job } from "./job.js";
import { Submit } from "./submit.js";
import { Models } from "./models.js";
import { GPUs } from "./gpus.js";
import { Events } from "./events.js";
import { frame as w } from "./words.js";

// views by the first part of the address's fragment. Who may see one is said by needs.
const views = {
  "": { title: w.flock, view: Flock },
  jobs: { title: w.jobs, view: Jobs },
  models: { title: w.models, view: Models },
  gpus: { title: w.gpus, view: GPUs, needs: () => session.whole },
  events: { title: w.events, view: Events },
  submit: { title: w.submitJob, view: Submit, needs: () => session.may("submit"), hidden: true },
};

function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { name: parts[0], rest: parts.slice(1).join("/"), query: new URLSearchParams(query || "") };
}

function App() {
  use(session);
  const [at, go] = useState(route());
  const first = useRef(true);
  useEffect(() => {
    const moved = () => go(route());
    addEventListener("hashchange", moved);
    session.refresh();
    return () => removeEventListener("hashchange", moved);
  }, []);
  // Who opens another view hears its heading, and goes on from there by keyboard.
  useEffect(() => {
    if (first.current) {
      first.current = false;
      return;
    }
    scrollTo(0, 0);
    const heading = document.querySelector("main h1");
    arrival.pending = !heading;
    heading?.focus();
  }, [at.name, at.rest]);

  if (!session.known) return html`<main class="boot">${session.trouble ? html`<${Trouble} error=${session.trouble + w.trying} />` : html`<p role="status">${w.loading}</p>`}</main>`;
  const found = views[at.name] && (!views[at.name].needs || views[at.name].needs()) ? views[at.name] : null;
  const reads = session.may("read");
  return html`<a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.getElementById("main").focus())}>${w.skip}</a>
    <${Header} at=${at.name} reads=${reads} />
    <main id="main" tabindex="-1">
      ${!reads && !session.may("submit")
        ? html`<${SignIn} />`
        : !reads && at.name !== "submit"
          ? html`<${Heading}>${w.submitOnly}<//><p>${w.maySubmit(session.name)}</p>`
          : !found
            ? html`<${Heading}>${w.notFound}<//><p>${w.noView}</p>`
            : at.name === "jobs" && at.rest
              ? html`<${Job} id=${at.rest} key=${at.rest} />`
              : html`<${found.view} query=${at.query} />`}
    </main>`;
}

function Header({ at, reads }) {
  return html`<header>
    <a class="brand" href="#/" aria-label=${w.brand}><img src="/page/icon.svg" alt="" width="26" height="26" /><span>shepherd</span></a>
    ${reads &&
    html`<nav aria-label=${w.views}><ul>
      ${Object.entries(views)
        .filter(([, v]) => !v.hidden && (!v.needs || v.needs()))
        .map(([name, v]) => html`<li><a href=${"#/" + name} aria-current=${at === name ? "page" : null}>${v.title}</a></li>`)}
    </ul></nav>`}
    <div class="side">
      ${reads && html`<${Liveness} />`}
      ${session.may("submit") && html`<a class="button primary" href="#/submit" aria-current=${at === "submit" ? "page" : null}>${w.submit}</a>`}
      <${Person} />
    </div>
  </header>`;
}

// Liveness says whether what is on the screen is what there is.
function Liveness() {
  use(live);
  const now = useNow();
  if (!live.stale) return html`<span class="live" role="status" title=${w.soon}><${Shape} of="ready" /><span class="wide">${w.live}</span></span>`;
  if (!live.heard) return html`<span class="live wait" role="status"><${Shape} of="processing" />${w.connecting}</span>`;
  return html`<span class="live stale" role="status"><${Shape} of="resting" />${w.stale(text.ago(live.heard, now))}</span>`;
}

function Person() {
  const [theme, set] = useState(document.documentElement.dataset.theme || "");
  const menu = useRef(null);
  const choose = (next) => {
    set(next);
    paint(next);
    try {
      localStorage.setItem("theme", next);
    } catch {} // a browser that keeps nothing
  };
  useEffect(() => {
    const close = (event) => {
      if (menu.current?.open && (event.key === "Escape" || (event.type === "click" && !menu.current.contains(event.target)))) menu.current.open = false;
    };
    addEventListener("keydown", close);
    addEventListener("click", close);
    return () => (removeEventListener("keydown", close), removeEventListener("click", close));
  }, []);
  const anonymous = session.name === "anonymous";
  return html`<details class="person" ref=${menu}>
    <summary aria-label=${w.person}><svg class="shape" viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="5.4" r="3" class="line" /><path d="M2.5 14c.6-3 2.8-4.4 5.5-4.4s4.9 1.4 5.5 4.4" class="line" /></svg></summary>
    <div class="menu">
      ${session.name &&
      html`<p>${anonymous ? w.nobody : w.you(session.name, session.tenant)}</p>
        <p class="muted small">${w.may(["read", "submit", "admin"].filter((s) => session.may(s)))}</p>`}
      <fieldset><legend>${w.colours}</legend>${w.themes.map(
        ([value, word]) => html`<label><input type="radio" name="theme" checked=${theme === value} onChange=${() => choose(value)} />${word}</label>`,
      )}</fieldset>
      <p class="links"><a href="/docs">${w.documentation}</a> <a href="/ui">${w.tryAPI}</a> <a href="/apidocs">${w.readAPI}</a></p>
      ${session.name && !anonymous && html`<${Do} what=${() => session.signOut()}>${w.signOut}<//>`}
    </div>
  </details>`;
}

function SignIn() {
  const [token, set] = useState("");
  const [state, be] = useState({});
  const submit = async (event) => {
    event.preventDefault();
    be({ busy: true });
    try {
      await session.signIn(token.trim());
    } catch (error) {
      be({ error });
    }
  };
  return html`<form class="signin panel" onSubmit=${submit}>
    <${Heading}>${w.signIn}<//>
    <p>${w.who}</p>
    <label for="token">${w.token}</label>
    <input id="token" type="password" autocomplete="current-password" required value=${token} onInput=${(e) => set(e.target.value)} />
    ${state.error && html`<p class="error" role="alert">${state.error.status === 401 ? w.wrong : state.error.message}</p>`}
    <button class="primary" disabled=${state.busy || !token.trim()}>${w.signIn}</button>
    <p class="muted small">${w.noToken}</p>
  </form>`;
}

function paint(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}
try {
  paint(localStorage.getItem("theme") || "");
} catch {} // a browser that keeps nothing

const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);
