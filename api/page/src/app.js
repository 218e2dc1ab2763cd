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

// views by the first part of the address's fragment. Who may see one is said by needs.
const views = {
  "": { title: "Flock", view: Flock },
  jobs: { title: "Jobs", view: Jobs },
  models: { title: "Models", view: Models },
  gpus: { title: "GPUs", view: GPUs, needs: () => session.whole },
  events: { title: "Events", view: Events },
  submit: { title: "Submit a job", view: Submit, needs: () => session.may("submit"), hidden: true },
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

  if (!session.known) return html`<main class="boot">${session.trouble ? html`<${Trouble} error=${session.trouble + " Trying again…"} />` : html`<p role="status">Loading the page…</p>`}</main>`;
  const found = views[at.name] && (!views[at.name].needs || views[at.name].needs()) ? views[at.name] : null;
  const reads = session.may("read");
  return html`<a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.getElementById("main").focus())}>Skip to the content</a>
    <${Header} at=${at.name} reads=${reads} />
    <main id="main" tabindex="-1">
      ${!reads && !session.may("submit")
        ? html`<${SignIn} />`
        : !reads && at.name !== "submit"
          ? html`<${Heading}>Submit only<//><p>The token of ${session.name} may submit jobs and not see them. <a href="#/submit">Submit a job</a></p>`
          : !found
            ? html`<${Heading}>Not found<//><p>There is no such view, or it is not for you. <a href="#/">Back to the flock</a></p>`
            : at.name === "jobs" && at.rest
              ? html`<${Job} id=${at.rest} key=${at.rest} />`
              : html`<${found.view} query=${at.query} />`}
    </main>`;
}

function Header({ at, reads }) {
  return html`<header>
    <a class="brand" href="#/" aria-label="shepherd, the flock"><img src="/page/icon.svg" alt="" width="26" height="26" /><span>shepherd</span></a>
    ${reads &&
    html`<nav aria-label="Views"><ul>
      ${Object.entries(views)
        .filter(([, v]) => !v.hidden && (!v.needs || v.needs()))
        .map(([name, v]) => html`<li><a href=${"#/" + name} aria-current=${at === name ? "page" : null}>${v.title}</a></li>`)}
    </ul></nav>`}
    <div class="side">
      ${reads && html`<${Liveness} />`}
      ${session.may("submit") && html`<a class="button primary" href="#/submit" aria-current=${at === "submit" ? "page" : null}>Submit</a>`}
      <${Person} />
    </div>
  </header>`;
}

// Liveness says whether what is on the screen is what there is.
function Liveness() {
  use(live);
  const now = useNow();
  if (!live.stale) return html`<span class="live" role="status" title="Changes show within two seconds"><${Shape} of="ready" /><span class="wide">live</span></span>`;
  if (!live.heard) return html`<span class="live wait" role="status"><${Shape} of="processing" />connecting…</span>`;
  return html`<span class="live stale" role="status"><${Shape} of="resting" />stale, as of ${text.ago(live.heard, now)}; connecting…</span>`;
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
    <summary aria-label="Who you are, and settings"><svg class="shape" viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="5.4" r="3" class="line" /><path d="M2.5 14c.6-3 2.8-4.4 5.5-4.4s4.9 1.4 5.5 4.4" class="line" /></svg></summary>
    <div class="menu">
      ${session.name &&
      html`<p>${anonymous ? "This daemon asks nobody who they are." : html`You are <b>${session.name}</b>${session.tenant && html`, of <b>${session.tenant}</b>`}.`}</p>
        <p class="muted small">You may ${["read", "submit", "admin"].filter((s) => session.may(s)).map((s) => ({ read: "see jobs", submit: "submit and change them", admin: "administer" })[s]).join(", ")}.</p>`}
      <fieldset><legend>Colours</legend>${[["", "as the system"], ["light", "light"], ["dark", "dark"]].map(
        ([value, word]) => html`<label><input type="radio" name="theme" checked=${theme === value} onChange=${() => choose(value)} />${word}</label>`,
      )}</fieldset>
      <p class="links"><a href="/docs">Documentation</a> <a href="/ui">Try the API</a> <a href="/apidocs">Read about it</a></p>
      ${session.name && !anonymous && html`<${Do} what=${() => session.signOut()}>Sign out<//>`}
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
    <${Heading}>Sign in<//>
    <p>This daemon wants to know who you are. Show it the token that you were given; this browser then stays signed in for up to twelve hours.</p>
    <label for="token">Token</label>
    <input id="token" type="password" autocomplete="current-password" required value=${token} onInput=${(e) => set(e.target.value)} />
    ${state.error && html`<p class="error" role="alert">${state.error.status === 401 ? "There is no such token here. Look whether it was copied whole." : state.error.message}</p>`}
    <button class="primary" disabled=${state.busy || !token.trim()}>Sign in</button>
    <p class="muted small">No token? Whoever runs this daemon makes one with <code>shepherdd token new</code>.</p>
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
