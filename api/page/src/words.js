// All that the page says, so that another language is another file like this one. Where a
// sentence has something of the daemon's in it, it is a function; markup stays within it.
import { html } from "./lib/preact.js";

// language is that of numbers and dates.
export const language = "en";
export const dates = "en-GB";

const count = new Intl.NumberFormat(language).format;
export const plural = (n, one, many = one + "s") => `${count(n)} ${n === 1 ? one : many}`;
const files = (n) => plural(n, "file");
const jobs = (n) => plural(n, "job");

export const units = { ms: "ms", s: "s", min: "min", h: "h", d: "d", days: "days" };
export const relative = { now: "just now", ago: (long) => `${long} ago`, in: (long) => `in ${long}`, soon: "now" };

// states are the states of jobs as words.
export const states = { queued: "waiting", processing: "running", done: "done", failed: "failed", cancelled: "cancelled" };

export const common = {
  loading: "Loading…",
  waiting: "Waiting for the daemon…",
  again: "Try again",
  yes: "Yes",
  no: "No",
  none: "none",
  download: "Download",
  downloadFile: (name) => `Download ${name}`,
  submitted: "Submitted",
  model: "Model",
  sheep: "Sheep",
  priority: "priority",
  labels: "Labels",
  modelHint: "name:version",
  search: "Search",
  since: (time) => `since ${time}`,
  expected: (from, to) => `in eight cases of ten between ${from} and ${to}`,
  anyMoment: "any moment",
  inAbout: (long) => `in about ${long}`,
  usual: (n, low, high) => `Of the last ${jobs(n)} of this model, eight in ten took ${low} to ${high}`,
  usually: (long) => `· usually about ${long}`,
  ofAbout: (long) => `of about ${long}`,
  begins: "history begins now",
  percent: (part) => `${Math.round(part * 100)} %`,
  percentDone: (part) => `${Math.round(part * 100)} % done`,
  stopping: "stopping",
  file: files,
  job: jobs,
  title: (view) => `${view} · shepherd`,
};

export const daemon = {
  silent: "The daemon does not answer.",
  answered: (status) => `The daemon answered ${status}.`,
};

export const frame = {
  flock: "Flock", jobs: "Jobs", models: "Models", gpus: "GPUs", events: "Events", submitJob: "Submit a job",
  loading: "Loading the page…",
  trying: " Trying again…",
  skip: "Skip to the content",
  submitOnly: "Submit only",
  maySubmit: (name) => html`The token of ${name} may submit jobs and not see them. <a href="#/submit">Submit a job</a>`,
  notFound: "Not found",
  noView: html`There is no such view, or you may not see it. <a href="#/">Back to the flock</a>`,
  brand: "shepherd, the flock",
  views: "Views",
  submit: "Submit",
  soon: "Changes show within two seconds",
  live: "live",
  connecting: "connecting…",
  stale: (ago) => `stale, as of ${ago}; connecting…`,
  person: "Account and settings",
  nobody: "This daemon requires no sign-in.",
  you: (name, tenant) => html`You are <b>${name}</b>${tenant && html`, of <b>${tenant}</b>`}.`,
  may: (scopes) => `You may ${scopes.map((s) => ({ read: "see jobs", submit: "submit and change them", admin: "administer" })[s]).join(", ")}.`,
  colours: "Colours",
  themes: [["", "as the system"], ["light", "light"], ["dark", "dark"]],
  documentation: "Documentation",
  tryAPI: "Try the API",
  readAPI: "Read about it",
  signOut: "Sign out",
  signIn: "Sign in",
  who: "This daemon requires a token. Enter the one that you were given; this browser then stays signed in for up to twelve hours.",
  token: "Token",
  wrong: "This token is not known here. Check that it was copied completely.",
  noToken: html`No token? An administrator of this daemon makes one with <code>shepherdd token new</code>.`,
};

export const orders = {
  manage: (sheep) => html`Manage<span class="hidden"> ${sheep}</span>`,
  resume: "Resume", resumeSheep: (sheep) => `Resume ${sheep}`,
  drain: "Drain", drainSheep: (sheep) => `Drain ${sheep}`,
  restart: "Restart", restartSheep: (sheep) => `Restart ${sheep}`,
  restartBusy: "Its job goes back to the queue. Restart?",
  restartIdle: "Restart it?",
  model: (sheep) => `Model for ${sheep} to load`,
  anyModel: "name:version",
  load: "Load", loadSheep: (sheep) => `Load the model on ${sheep}`,
};

export const flock = {
  title: "Flock",
  leaving: "leaving", stopped: "stopped", out: "out", working: "working", preparing: "preparing", resting: "resting", ready: "ready", idle: "idle", draining: "draining", drained: "drained",
  nodes: (n) => plural(n, "node"),
  sheep: (n) => plural(n, "sheep", "sheep"),
  gpus: (n) => plural(n, "GPU"),
  waiting: "waiting",
  old: (why) => `The queue may be out of date: ${why}`,
  noSheep: "There are no sheep yet",
  addSheep: html`A sheep runs one job at a time. Add one below <code>sheep:</code> in the configuration, then <code>shepherdd reload</code>.`,
  memory: (used, all) => `GPU memory: ${used} of ${all}`,
  pulled: (part) => `${Math.floor(part * 100)} % of the model is here`,
  pulling: (part, rate) => `${Math.floor(part * 100)} % · ${rate}/s`,
  noModel: (type) => `${type}, no model loaded`,
  gpu: (index) => `GPU ${index}`,
  share: (index, mine, used, all) => `GPU ${index}: ${mine} of ${all} are this sheep's, ${used} are used in all`,
  outOf: (n) => `${n} out`,
  queue: "Queue",
  noneWaits: "No job waits",
  submit: html`<a href="#/submit">Submit a job</a> by dropping its files, or <code>POST /jobs</code>.`,
  waitsHere: "Jobs that wait for a sheep show here, with the reason.",
  position: (n, sheep) => `Number ${n} in the queue${sheep ? `, of the jobs that ${sheep} may run` : ""}`,
  submitted: (time) => html`submitted ${time}`,
  noPosition: "It has no place yet",
  behind: (n, more) => `and ${count(n)}${more ? " or more" : ""} behind these`,
  models: "Models", priorities: "Priorities", tenants: "Tenants", labels: "Labels",
  turnMeans: "A sheep stays with its loaded model while its turn lasts, even if older jobs of other models wait",
  turn: (sheep, long) => `· its turn on ${sheep} for ${long}`,
  more: (n) => `and ${n} more`,
  latest: "Latest jobs",
  all: "All jobs",
  doneIn: (long) => ` in ${long}`,
  cancelling: ", being cancelled",
  noneRan: "No job has run yet",
  results: "Results show here, the latest first.",
};

export const list = {
  title: "Jobs",
  spans: [["", "any time"], ["15m", "the last 15 minutes"], ["1h", "the last hour"], ["1d", "the last day"], ["7d", "the last week"]],
  prefix: "Id begins with", prefixHint: "scan-2026", modelHint: "digits:v1", label: "Label", labelHint: "batch=42", state: "State",
  none: "No job matches",
  showAll: "Show all jobs",
  empty: "There are no jobs yet",
  first: html`<a href="#/submit">Submit the first one</a> by dropping its files.`,
  later: "They show here once they are submitted.",
  columns: { state: "State", job: "Job", waited: "Waited", ran: "Ran", notes: "Notes" },
  older: "Older jobs",
  allOf: (n) => `${jobs(n)}; these are all.`,
};

export const job = {
  unknown: "There is no such job here: it was removed, never submitted, or is not yours.",
  all: "All jobs", jobs: "Jobs", inputs: "Inputs", outputs: "Outputs",
  sureCancel: "Cancel this job?", cancel: "Cancel", retry: "Run it again", copy: "The same as a new job", sureRemove: "Remove this job and its files?", remove: "Remove",
  facts: {
    start: "Expected to start", end: "Expected to end", waited: "Waited", ran: "Ran", place: "Place in the queue", priority: "Priority", only: "Only on", notBefore: "Not before",
    deadline: "Deadline", gpu: "GPU time", files: "Files",
  },
  peak: (memory) => `, at most ${memory}`,
  removed: "removed",
  kept: (until) => html`kept, removed ${until}`,
  whyFailed: "Why it failed", whyWaits: "Why it waits", stands: "Status", next: "What to do", traceback: "Traceback",
  phases: { wait: "waited in the queue", stage: "inputs fetched", load: "model loaded", hold: "waited for its turn", run: "run", collect: "results stored" },
  timeline: "Timeline", attempts: "Attempts", attempt: "Attempt", ended: "Ended", inAll: (long) => `${long} in all`, underWay: "under way",
  runs: (run, attempts) => `This is run ${run}; earlier ones had ${plural(attempts, "attempt")}.`,
  happened: "What happened, event by event",
  by: (sheep) => `by ${sheep}`,
};

export const shown = {
  all: "Download all (zip)",
  gone: "The files were removed", none: "There are no files",
  showAll: (n) => `Show all ${files(n)}`,
  empty: "It is empty.",
  framed: (href) => html`Shown without scripts. If nothing shows, <a href=${href} download>download it</a>.`,
  noPDF: (href) => html`This browser shows no PDFs. <a href=${href} download>Download it</a> to read it.`,
  nothing: (href) => html`If nothing shows, <a href=${href} download>download it</a>.`,
  cannot: "This browser cannot show it.",
  noText: "It is neither text nor of another type that can be shown here.",
  cut: (part, whole) => `The first ${part} of ${whole}. Download it to see the rest.`,
  content: (name) => `Content of ${name}`,
  table: "Table",
  rows: (n) => `The first ${n} rows.`,
};

export const log = {
  title: "Log", following: "as it is written", search: "Search the log", lines: "Lines of the log",
  found: (n, all) => `${count(n)} of ${plural(all, "line")}`,
  waits: "The job waits; its log begins when a sheep runs it.", nothing: "Nothing was written.", nothingYet: "Nothing was written yet.",
};

export const models = {
  title: "Models",
  columns: { loaded: "Loaded by", disk: "On disk", nodes: "Nodes", jobs: "Jobs", failed: "Failed", usual: "Usually takes", last: "Last submitted", actions: "Actions" },
  nodes: (names, more) => (more ? `${names} and ${count(more)} more` : names),
  unanswered: (node, problem) => `The models on the disk of ${node} are not known: ${problem}`,
  sureRemove: "Remove it from the disk?", removeOf: (name) => `Remove ${name}`, remove: "Remove",
  latest: (n) => `Jobs, failures and times are those of the latest ${count(n)} jobs.`,
  none: "No model has been used yet", shows: "A model shows here when a sheep has loaded it or a job has asked for it.",
  asking: "Asking…", ahead: "Pull a model ahead of time", pull: "Pull",
};

export const gpus = {
  title: "GPUs",
  driver: (driver, cuda) => `driver ${driver}${cuda ? `, CUDA ${cuda}` : ""}`,
  none: "No GPU is known here",
  means: html`The GPUs of sheep with <code>devices</code> are listed here. <code>shepherdd doctor</code> says what is missing on a machine that has some.`,
  others: "Other devices",
  gpu: (index) => `GPU ${index}`,
  health: { ok: "healthy", out: "out", unknown: "unknown" },
  outSince: (time) => html` · went out ${time}`, tested: (time) => html` · tested again ${time}`,
  of: (size) => `of ${size}`,
  memory: (used, all) => `Memory: ${used} of ${all} are used`,
  foreign: "not shepherd's: ", process: "a process",
  noShare: "No sheep has a share of it.",
  busy: "Busy", temperature: "Temperature", power: "Power", errors: "ECC errors",
  lately: (minutes) => `Busy, the last ${last(minutes)}`,
  howBusy: (index, minutes) => `How busy GPU ${index} was in the last ${last(minutes)}`,
};
const last = (minutes) => (minutes < 2 ? "minute" : plural(minutes, "minute"));

export const events = {
  title: "Events",
  newest: "newest first, and each new one as it comes",
  all: html`Events of one job are on its page; <code>shepherd events</code> lists all that are kept.`,
  searchHint: "job, model, sheep or reason",
  kinds: { queued: "was submitted", claimed: "was claimed", started: "started", returned: "went back to the queue", due: "is due", cancel: "is being cancelled", ended: "ended" },
  by: (sheep) => `by ${sheep}`, on: (sheep) => `on ${sheep}`,
  none: "No event matches", nothing: "Nothing has happened yet", other: "Search for something else.",
  means: "Each step of a job shows here as it happens.",
};

export const submit = {
  title: "Submit a job", submit: "Submit",
  tooMany: (n) => `A job has at most ${count(n)} files. Pack them into a tar file and submit that with POST /jobs.`,
  unreadable: (why) => `A file cannot be read: ${why}`,
  badLabels: "Labels are written KEY=VALUE, with spaces between them.",
  usually: (long) => `usually ${long}`, takes: (long) => `Its jobs usually take ${long}.`, known: (names) => `Known here: ${names}`, noneKnown: "No model has been used here yet; write one as name:version.",
  drop: "Drop files or folders here", or: "or", files: "choose files", folder: "choose a folder",
  chosen: (n, size) => `${files(n)}, ${size}`, removeAll: "Remove all", removeOne: (name) => `Remove ${name}`, moreFiles: (n) => `and ${count(n)} more`,
  write: html`or write the input: a text, which becomes the file <code>input</code>`,
  more: "More", priority: "Priority, higher goes first", any: "any", labelsHint: "batch=42 who=ada", id: "Id", idHint: "made by the daemon",
  made: (id) => html`Submitted as ${id}.`,
  upload: "Upload", sent: (part, whole) => `${part} of ${whole}`, sending: "Sending…", stop: "Stop",
  nameModel: "Name a model first.", addInputs: "Add the inputs: files or a text.",
  through: "The storage cannot be reached from this browser, so the files go through the daemon.", storage: (status) => (status ? `The storage does not take a file: it answers ${status}.` : "The storage cannot be reached."),
  broke: "The connection broke. Nothing was submitted; try again.", stopped: "Stopped. Nothing was submitted.",
};
