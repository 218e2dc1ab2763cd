// What the manual does in a browser beside being read: search, copying, the theme that was
// chosen on the page at /.
import MiniSearch from "./lib/minisearch.js";

try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {} // a browser that keeps nothing

const form = document.querySelector(".find");
const input = document.getElementById("find");
const found = document.getElementById("found");
const count = document.getElementById("count");
const most = 12;

// The index is fetched by whoever begins to search.
let index = null;
const load = () =>
  (index ??= fetch("/docs/search.json")
    .then((response) => (response.ok ? response.json() : Promise.reject(new Error(String(response.status)))))
    .then((sections) => {
      const search = new MiniSearch({
        idField: "address", fields: ["title", "page", "text"], storeFields: ["page", "title", "text"],
        tokenize: (text) => text.split(/[^\p{L}\p{N}_]+/u),
        searchOptions: { boost: { title: 4, page: 2 }, prefix: true, fuzzy: (term) => (term.length > 4 ? 0.2 : false), combineWith: "AND" },
      });
      search.addAll(sections);
      return search;
    })
    .catch((error) => {
      index = null; // the next search tries again
      throw error;
    }));

const element = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

// marked is a part of the text around the first of the terms, with all of them marked.
function marked(text, terms) {
  const any = new RegExp(`(${terms.join("|")})`, "giu");
  const at = Math.max(0, text.search(any) - 50);
  const parts = ((at ? "…" : "") + text.slice(at, at + 180)).split(any);
  return parts.map((part, i) => (i % 2 ? element("mark", {}, part) : part));
}

let turn = 0;
async function look() {
  const mine = ++turn;
  const words = input.value.trim();
  if (!words) {
    found.hidden = true;
    count.textContent = "";
    return;
  }
  let hits;
  try {
    hits = (await load()).search(words);
  } catch {
    if (mine === turn) show([element("li", {}, element("p", {}, "The daemon does not answer."))], "The daemon does not answer.");
    return;
  }
  if (mine !== turn) return;
  const items = hits.slice(0, most).map((hit) =>
    element("li", {}, element("a", { href: hit.id }, hit.page === hit.title ? hit.title : `${hit.page} › ${hit.title}`, element("span", { className: "snippet" }, ...marked(hit.text, hit.terms)))),
  );
  show(items.length ? items : [element("li", {}, element("p", {}, "Nothing is found."))], items.length ? `${hits.length} found` : "Nothing is found.");
}

function show(items, status) {
  found.replaceChildren(...items);
  found.hidden = false;
  count.textContent = status;
}

function close() {
  turn++;
  found.hidden = true;
}

form.hidden = false;
input.addEventListener("focus", () => load().catch(() => {}));
input.addEventListener("input", look);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  found.querySelector("a")?.click();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    close();
    input.focus();
  }
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || found.hidden) return;
  event.preventDefault();
  const stops = [input, ...found.querySelectorAll("a")];
  stops[(stops.indexOf(document.activeElement) + step + stops.length) % stops.length].focus();
});
found.addEventListener("click", (event) => event.target.closest("a") && close());
addEventListener("click", (event) => form.contains(event.target) || close());
addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && document.activeElement !== input) {
    event.preventDefault();
    input.focus();
  }
});

if (navigator.clipboard) {
  for (const block of document.querySelectorAll("article pre")) {
    const text = block.textContent;
    const button = element("button", { type: "button", className: "copy" }, "Copy");
    button.addEventListener("click", async () => {
      // Of a terminal's text, what is typed.
      const typed = text.split("\n").filter((line) => line.startsWith("$ ")).map((line) => line.slice(2));
      await navigator.clipboard.writeText(typed.length ? typed.join("\n") : text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    block.append(button);
  }
}
