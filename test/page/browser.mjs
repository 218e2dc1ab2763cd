// What a person does with the page, in Chromium. page_test.go runs it and says where the
// daemon is; a line "fail TEXT" is a fault, "do NAME" asks the test for something.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

const modules = createRequire(process.env.SHEPHERD_TEST_BROWSER + "/here.js");
const { chromium } = modules("playwright-core");
const axe = readFileSync(modules.resolve("axe-core/axe.min.js"), "utf8");
const { PAGE: url, HOLD: hold, SHOTS: shots } = process.env;

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const ask = async (what) => {
  console.log("do " + what);
  await answers.next();
};
const fail = (text) => console.log("fail " + String(text).replace(/\s*\n\s*/g, " | "));
const step = async (name, what) => {
  const began = Date.now();
  try {
    await what();
    console.log(`${name}: ${Date.now() - began} ms`);
  } catch (error) {
    fail(`${name}: ${error.message}`);
  }
};
const same = (what, got, want) => {
  if (JSON.stringify(got) !== JSON.stringify(want)) throw new Error(`${what} is ${JSON.stringify(got)}, not ${JSON.stringify(want)}`);
};

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"] });

// toStorage are the addresses of files that go straight to storage.
const toStorage = /^http:\/\/127\.0\.0\.1:\d+\/job-[a-z2-7]+\/inputs\/[^?]+\?.*X-Amz-Signature=/;

// open is a tab of its own, which reports whatever it should not do.
async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(120_000); // a hang guard
  page.on("pageerror", (error) => fail("an error in the page: " + error.message));
  page.on("dialog", (dialog) => (fail("a dialog opened: " + dialog.message()), dialog.dismiss()));
  page.on("request", (request) => !request.url().startsWith(url + "/") && !toStorage.test(request.url()) && !/^(data|chrome|chrome-extension):/.test(request.url()) && fail("the page asked for " + request.url())); // a PDF's viewer is the browser's own
  page.on("console", (message) => message.type() === "error" && /Content.Security.Policy/i.test(message.text()) && !/sandbox/i.test(message.text()) && fail("refused by the policy: " + message.text()));
  return page;
}

const views = {
  flock: { at: "#/", shows: "Queue" }, jobs: { at: "#/jobs", shows: "segment-1180" }, running: { at: "#/jobs/transcribe-2001", shows: "as it is written" },
  waiting: { at: "#/jobs/caption-2013", shows: "Why it waits" }, failed: { at: "#/jobs/train-0091", shows: "Why it failed" }, done: { at: "#/jobs/segment-1180", shows: "mask.png" },
  submit: { at: "#/submit", shows: "Drop files" }, models: { at: "#/models", shows: "segment" }, gpus: { at: "#/gpus", shows: "NVIDIA A100" }, events: { at: "#/events", shows: "newest first" },
};

async function show(page, view) {
  await page.goto(url + "/" + view.at);
  await page.getByText(view.shows).first().waitFor();
  await page.locator(".live:not(.wait):not(.stale)").waitFor();
}

// examine has axe look at what is shown.
async function examine(page, name) {
  if (!(await page.evaluate(() => "axe" in globalThis))) await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  for (const v of violations) fail(`${name}: axe: ${v.id}: ${v.help}: ${v.nodes.map((n) => n.html + " " + (n.any[0]?.message || "")).slice(0, 3).join("; ")}`);
}

// fits sees that the page is not wider than its window.
async function fits(page, name) {
  const wide = await page.evaluate(() => document.scrollingElement.scrollWidth - innerWidth);
  if (wide > 0) fail(`${name}: the page is ${wide} pixels wider than the window`);
}

// inOrder sees that the events that are shown are the newest of the log, none left out.
async function inOrder(page) {
  const [shown, log] = await page.evaluate(async () => {
    const shown = [...document.querySelectorAll("ul.latest li")].map((one) => one.querySelector("a.id").title + " " + Date.parse(one.querySelector("time").dateTime));
    const log = await (await fetch("/events?after=oldest&follow=false")).text();
    return [shown, [...log.matchAll(/^data: (.*)$/gm)].map(([, data]) => JSON.parse(data)).map((e) => e.job_id + " " + Date.parse(e.at + "Z")).reverse()];
  });
  if (shown.length < 20) throw new Error(`there are ${shown.length} events`);
  const from = log.indexOf(shown[0]); // there may be newer ones by now
  same("the events", shown, log.slice(from, from + shown.length));
}

const text = (page, selector) => page.locator(selector).first().innerText();

async function openDaemon() {
  const page = await open();
  await step("the flock", async () => {
    await show(page, views.flock);
    same("the number of sheep", await page.locator("ul.sheep > li").count(), 6);
    for (const shown of [/bitzer.*out.*Xid 79.*GPU 3/s, /dolly.*working.*transcribe:large-v3.*transcribe-2001.*43 %.*GPU 0.*10 GiB/s]) {
      await page.locator("li.card", { hasText: shown }).waitFor();
    }
    // Jobs of transcribe have run, so that it is known what they usually take.
    await page.locator("li.card", { hasText: /transcribe-2001.*(of|usually) about \d/s }).waitFor();
    await page.locator("ol.queue li", { hasText: /segment-2012.*(in about|any moment)/s }).waitFor();
    await page.locator("ol.queue li", { hasText: /caption-2013.*cannot take it at the moment/s }).waitFor();
  });
  await step("the first view is few requests", async () => {
    const { asked, bytes } = await firstView(false);
    // What the flock asks for once it is there does not count, nor its picture.
    same("what is asked for", asked.filter((path) => path !== "/jobs" && path !== "/page/icon.svg").sort(), ["/", "/flock", "/flock", "/page/app.js", "/page/style.css", "/session"]);
    if (bytes > 60_000) throw new Error(`it takes ${bytes} bytes`);
    console.log(`the first view: ${asked.length} requests, ${bytes} bytes`);
  });
  await step("what happens elsewhere shows by itself", async () => {
    await ask("submit");
    await page.locator("ol.queue").getByText("from-elsewhere").waitFor();
  });
  await step("the newest events are there at once, and new ones come", async () => {
    const tab = await open();
    await show(tab, views.events);
    await tab.locator("ul.latest li", { hasText: /from-elsewhere.*was submitted/s }).waitFor(); // before this page was opened
    await tab.evaluate(() => fetch("/jobs/from-elsewhere/cancel", { method: "POST" }));
    await tab.locator("ul.latest li", { hasText: /from-elsewhere.*cancelled/s }).waitFor();
    await inOrder(tab);
    await tab.context().close();
  });
  await step("what happened while nobody looked is shown to who looks again", async () => {
    const tab = await open();
    await show(tab, views.jobs);
    const look = (hidden) =>
      tab.evaluate((is) => {
        Object.defineProperty(document, "hidden", { configurable: true, get: () => is });
        document.dispatchEvent(new Event("visibilitychange"));
      }, hidden);
    await look(true);
    await tab.evaluate(() => {
      const not_before = new Date(Date.now() + 3_600_000).toISOString();
      const body = JSON.stringify({ job_id: "while-hidden", model: { name: "report", version: "v4" }, payload: "x", not_before });
      return fetch("/jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    });
    same("rows of it", await tab.locator("tr", { hasText: "while-hidden" }).count(), 0);
    await look(false);
    await tab.locator("tr", { hasText: "while-hidden" }).waitFor();
    await tab.evaluate(() => fetch("/jobs/while-hidden/cancel", { method: "POST" }));
    await tab.context().close();
  });
  await step("a log's lines that are written over, and one without an end", async () => {
    const tab = await open();
    await tab.route("**/jobs/segment-1180/logs?*", (route) => route.fulfill({ contentType: "text/plain", body: "first\n 10 %\r 20 %\r\x1b[32m 30 %\r\n" + "working\r".repeat(50_000) + "at the end" }));
    await tab.goto(`${url}/#/jobs/segment-1180`);
    await tab.locator("pre.log").waitFor();
    same("the log", await text(tab, "pre.log").then((log) => log.trimEnd()), "first\n 30 %\nat the end");
    await tab.context().close();
  });
  await step("every view, for those who hear it, on a phone and on a wall", async () => {
    // Axe takes its time, so that each view is examined once here; pictures has it look at
    // all of them in both themes.
    const dark = ["jobs", "waiting", "failed", "models", "gpus"];
    for (const [scheme, width] of [["light", 360], ["dark", 1280], ["light", 2560]]) {
      const tab = await open({ viewport: { width, height: 800 }, colorScheme: scheme });
      for (const [name, view] of Object.entries(views)) {
        await show(tab, view);
        const what = `${name}, ${scheme}, ${width}`;
        await fits(tab, what);
        if (width < 2560 && dark.includes(name) === (scheme === "dark")) await examine(tab, what);
      }
      await tab.context().close();
    }
  });
  await step("nothing that was named or written is markup", async () => {
    await page.goto(`${url}/#/jobs/hostile-b-img`);
    await page.getByText("<img src=x onerror=alert(1)>.txt").waitFor();
    await page.locator("pre.log").getByText("palette end").waitFor();
    for (const summary of await page.locator(".files summary").all()) {
      if (!(await summary.locator("xpath=..").getAttribute("open").then((is) => is !== null))) await summary.click();
    }
    await page.locator("iframe[sandbox]").waitFor();
    await page.locator("iframe.paper").waitFor();
    await page.locator("img.picture").waitFor();
    await page.getByText("It is neither text nor").waitFor();
    await page.frameLocator("iframe[sandbox]").getByText("harmless").waitFor();
    same("the title", await page.title(), "hostile-b-img · shepherd");
    same("elements in the log", await page.locator("pre.log img, pre.log script").count(), 0);
    same("colours in the log", await page.locator("pre.log .ansi-red", { hasText: "red" }).count(), 1);
    const log = await text(page, "pre.log");
    if (/[\x00-\x08\x1b]/.test(log) || log.includes("a title") || !log.includes("palette end")) throw new Error("the log shows " + JSON.stringify(log));
    await page.goto(`${url}/#/jobs/${encodeURIComponent("<script>alert(1)</script>")}`);
    await page.getByText("There is no such job here").waitFor();
    await page.goto(`${url}/#/jobs/%E0%A4%A`); // not an address at all
    await page.locator("h1").waitFor();
  });
  await step("a PDF is shown by the browser's viewer, and where there is none that is said", async () => {
    await page.goto(`${url}/#/jobs/report-1180`);
    await page.locator("summary", { hasText: "report.pdf" }).click();
    await page.locator("iframe.paper").waitFor();
    for (;;) { // the viewer is a frame of the browser's own
      if (page.frames().some((frame) => frame.url().startsWith("chrome-extension://"))) break;
      await page.waitForEvent("frameattached");
    }
    await page.addInitScript(() => Object.defineProperty(navigator, "pdfViewerEnabled", { value: false }));
    await page.reload();
    await page.locator("summary", { hasText: "report.pdf" }).click();
    await page.getByText("This browser shows no PDFs").waitFor();
  });
  await step("jobs are filtered, and the address says how", async () => {
    await page.goto(`${url}/#/jobs`);
    await page.locator("tr", { hasText: "segment-1180" }).waitFor();
    await page.getByLabel("failed").check();
    await page.locator("tr", { hasText: "train-0091" }).waitFor();
    await page.locator("tr", { hasText: "segment-1180" }).waitFor({ state: "detached" });
    await page.getByLabel("Model").fill("train:nightly");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => [...document.querySelectorAll("tbody tr")].map((row) => row.innerText.includes("train-0091")).join() === "true");
    if (!page.url().endsWith("#/jobs?state=failed&model=train%3Anightly")) throw new Error("the address is " + page.url());
    await page.getByLabel("Id begins with").fill("none-such");
    await page.keyboard.press("Enter");
    await page.getByText("No job matches").waitFor();
  });
  await step("a job's log is searched", async () => {
    await page.goto(`${url}/#/jobs/segment-1180`);
    await page.getByLabel("Search the log").fill("PART 12");
    await page.getByText("1 of ").waitFor();
    same("lines", (await text(page, "pre.log")).trim(), "part 12/20 loss=0.0769".replace("20 ", "20  "));
  });
  let made;
  await step("files are submitted, and their results shown", async () => {
    await page.goto(`${url}/#/submit`);
    await page.getByLabel("Model").fill("segment:v2");
    await page.locator("#s-files").setInputFiles([{ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("first") }, { name: "b c.txt", mimeType: "text/plain", buffer: Buffer.from("second") }]);
    await page.getByText("2 files, 11 B").waitFor();
    await page.getByText("More", { exact: true }).click();
    await page.getByLabel("Labels").fill("by=page batch=9");
    await page.getByLabel("Sheep").selectOption("nuts");
    await page.getByRole("button", { name: "Submit" }).click();
    await page.waitForURL(/#\/jobs\/job-/);
    made = decodeURIComponent(page.url().split("/").pop());
    await page.locator(".title .state.done").waitFor();
    await page.getByText("mask.png").waitFor();
    await page.locator("summary", { hasText: "b c.txt" }).click();
    await page.getByText("second").waitFor();
    await page.getByText("regions.csv").click();
    await page.getByRole("cell", { name: 'sheep "Dolly"' }).waitFor();
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByText("Download all (zip)").click()]);
    same("the zip file's name", download.suggestedFilename(), made + "-outputs.zip");
  });
  await step("large files go straight to storage, in parts that are sent again", async () => {
    const file = join(mkdtempSync(join(tmpdir(), "upload-")), "large.bin");
    writeFileSync(file, "");
    truncateSync(file, 70 * 2 ** 20);
    const submit = async () => {
      await page.goto(`${url}/#/submit`);
      await page.getByLabel("Model").fill("segment:v2");
      await page.locator("#s-files").setInputFiles([file]);
      await page.getByText("1 file, 70 MiB").waitFor();
      await page.getByRole("button", { name: "Submit" }).click();
    };
    const ends = async () => {
      await page.waitForURL(/#\/jobs\/job-/);
      await page.locator(".title .state.done").waitFor();
      await page.getByText("large.bin").first().waitFor();
    };
    const bodies = []; // of requests that bring files to the daemon
    page.on("request", (request) => request.method() === "POST" && (request.headers()["content-type"] || "").startsWith("multipart/") && bodies.push(request.url()));
    let parts = 0;
    let refused = 0;
    await page.route(toStorage, (route) => (route.request().method() === "PUT" && ++parts === 2 && !refused++ ? route.abort() : route.continue()));
    await submit();
    await ends();
    same("what was sent through the daemon", bodies, []);
    if (refused !== 1 || parts < 4) throw new Error(`${parts} requests to storage, ${refused} of them broken`);
    await page.unroute(toStorage);
    // Stopped, nothing stays.
    await page.route(toStorage, () => {}); // never answered
    const given = page.waitForRequest((request) => request.method() === "DELETE" && request.url().startsWith(url + "/uploads/job-"));
    await submit();
    await page.getByRole("button", { name: "Stop" }).click();
    await page.getByText("Nothing was submitted").waitFor();
    same("the upload given up", (await (await given).response()).status(), 200);
    await page.unroute(toStorage);
    // Storage that this browser does not reach: through the daemon, with a word of it, once.
    // The browser itself blocks it, which has no need of what would have been sent.
    let tried = 0;
    page.on("request", (request) => toStorage.test(request.url()) && tried++);
    const network = await page.context().newCDPSession(page);
    await network.send("Network.enable");
    await network.send("Network.setBlockedURLs", { urls: ["*X-Amz-Signature=*"] });
    const word = page.getByText("cannot be reached from this browser").waitFor();
    const toDaemon = (address) => address.pathname === "/jobs"; // it holds until the word is seen, which goes with the form
    await page.route(toDaemon, async (route) => (route.request().method() === "POST" && (await word), route.continue()));
    await submit();
    await word;
    await ends();
    await page.unroute(toDaemon);
    same("what was sent through the daemon", bodies.length, 1);
    const before = tried;
    await submit();
    await ends();
    if (!before) throw new Error("storage was not tried");
    same("what was tried again", [tried - before, bodies.length], [0, 2]);
    await network.detach(); // and with it what it blocks
    rmSync(dirname(file), { recursive: true });
  });
  await step("the same again, as a new job and as this one", async () => {
    await page.goto(`${url}/#/jobs/${made}`);
    await page.getByRole("button", { name: "The same as a new job" }).click();
    await page.waitForFunction((id) => !location.hash.endsWith(id) && location.hash.includes("/job-"), made);
    await page.locator(".title .state.done").waitFor();
    await page.getByText("2 files, 11 B").waitFor();
    await page.getByRole("button", { name: "Run it again" }).click();
    await page.getByText("This is run 2").waitFor();
    await page.locator(".title .state.done").waitFor();
    await page.getByRole("button", { name: "Remove" }).click();
    await page.getByRole("button", { name: "Yes" }).click();
    await page.waitForURL(/#\/jobs$/);
  });
  await step("a job that waits is cancelled, by keyboard", async () => {
    await page.goto(`${url}/#/jobs/caption-2013`);
    await page.getByText("Why it waits").waitFor();
    await page.getByRole("button", { name: "Cancel" }).press("Enter");
    await page.waitForFunction(() => document.activeElement.textContent === "Yes");
    await page.keyboard.press("Enter");
    await page.locator(".title .state.cancelled").waitFor();
  });
  await step("the documentation is read, searched, and reached from the page", async () => {
    await page.goto(url + "/");
    await page.locator("details.person summary").click();
    await page.getByRole("link", { name: "Documentation" }).click();
    await page.locator("h1", { hasText: "Documentation" }).waitFor();
    const addresses = await page.evaluate(() => [...document.querySelectorAll("nav.contents a")].map((one) => one.getAttribute("href")));
    if (addresses.length < 25) throw new Error("the contents are " + addresses);
    for (const [scheme, width] of [["light", 360], ["dark", 1280]]) {
      const tab = await open({ viewport: { width, height: 800 }, colorScheme: scheme });
      for (const [i, address] of addresses.entries()) {
        const examined = i % 9 === (scheme === "dark" ? 1 : 5);
        if (scheme === "dark" && !examined) continue;
        const response = await tab.goto(url + address);
        same(address, response.status(), 200);
        await tab.locator("article h1").waitFor();
        await fits(tab, `${address}, ${scheme}, ${width}`);
        if (examined) await examine(tab, `${address}, ${scheme}, ${width}`);
      }
      await tab.context().close();
    }
    await page.keyboard.press("/");
    await page.keyboard.type("exit cod");
    await page.locator("#found a", { hasText: "Command line › Exit codes" }).waitFor();
    await examine(page, "the search");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Enter");
    await page.waitForURL(/\/docs\/command-line#exit-codes$/);
    await page.locator("#find").fill("gpuu"); // as it is mistyped
    await page.locator("#find").fill("<img src=x>zzz");
    await page.getByText("Nothing is found.").first().waitFor();
    await page.keyboard.press("Escape");
    same("what is found is hidden", await page.locator("#found").isVisible(), false);
  });
  await step("by keyboard to the content and between views", async () => {
    await page.goto(url + "/");
    await page.locator("ul.sheep").waitFor();
    await page.keyboard.press("Tab");
    same("first", await page.evaluate(() => document.activeElement.textContent), "Skip to the content");
    await page.keyboard.press("Enter");
    same("then", await page.evaluate(() => document.activeElement.id), "main");
    await page.getByRole("link", { name: "Models" }).focus();
    await page.keyboard.press("Enter");
    await page.locator("h1", { hasText: "Models" }).waitFor();
    await page.waitForFunction(() => document.activeElement.tagName === "H1");
  });
  await step("what is drawn moves only where that is wanted", async () => {
    await show(page, views.flock);
    await page.emulateMedia({ reducedMotion: "no-preference" });
    same("motion", await page.evaluate(() => getComputedStyle(document.querySelector(".shape .spin")).animationName), "spin");
    await page.emulateMedia({ reducedMotion: "reduce" });
    same("without", await page.evaluate(() => getComputedStyle(document.querySelector(".shape .spin")).animationName), "none");
  });
  await step("the theme is chosen and kept", async () => {
    const ground = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const light = await ground();
    await page.locator("details.person summary").click();
    await page.getByLabel("dark").check();
    const dark = await ground();
    if (dark === light) throw new Error("the ground stays " + light);
    await page.reload();
    await page.locator("ul.sheep").waitFor();
    same("after a reload", await ground(), dark);
  });
  await step("a daemon that was killed is followed again", async () => {
    await page.goto(`${url}/#/jobs/transcribe-2001`);
    await page.locator(".title .state.processing").waitFor();
    await page.locator(".live:not(.wait):not(.stale)").waitFor();
    const broken = page.locator("section[aria-labelledby=log] .trouble");
    await page.locator("pre.log").waitFor();
    const tab = await open();
    await show(tab, views.events);
    await ask("kill");
    await page.locator(".live.stale").waitFor();
    await broken.waitFor();
    await ask("start");
    await page.locator(".live:not(.wait):not(.stale)").waitFor();
    await broken.waitFor({ state: "detached" }); // the log is followed again, too
    await page.locator("pre.log").waitFor();
    await ask("release");
    await page.locator(".title .state.done").waitFor(); // told, not asked for
    await page.getByText("transcript.txt").waitFor();
    await tab.locator("ul.latest li", { hasText: /transcribe-2001.*done/s }).waitFor();
    await inOrder(tab);
    await tab.context().close();
  });
  await page.context().close();
}

// large submits a file that is worth going straight to storage, one that lets this page or not.
async function large(refused) {
  const file = join(mkdtempSync(join(tmpdir(), "upload-")), "large.bin");
  writeFileSync(file, "");
  truncateSync(file, 70 * 2 ** 20);
  const page = await open();
  let through = 0; // the daemon
  let stored = 0; // by the storage
  page.on("request", (request) => request.method() === "POST" && (request.headers()["content-type"] || "").startsWith("multipart/") && through++);
  page.on("response", (response) => toStorage.test(response.url()) && response.request().method() === "PUT" && response.ok() && stored++);
  await step(refused ? "a storage that lets only another page" : "a storage that lets every page", async () => {
    await page.goto(`${url}/#/submit`);
    await page.getByLabel("Model").fill("segment:v2");
    await page.locator("#s-files").setInputFiles([file]);
    await page.getByText("1 file, 70 MiB").waitFor();
    const word = page.getByText("cannot be reached from this browser");
    const told = refused && word.waitFor();
    const toDaemon = (address) => address.pathname === "/jobs"; // it holds until the word is seen, which goes with the form
    await page.route(toDaemon, async (route) => (route.request().method() === "POST" && (await told), route.continue()));
    await page.getByRole("button", { name: "Submit" }).click();
    await page.waitForURL(/#\/jobs\/job-/);
    await page.locator(".title .state.done").waitFor();
    await page.getByText("large.bin").first().waitFor();
    same("parts that the storage took, and forms that the daemon took", [stored, through], refused ? [0, 1] : [3, 0]);
  });
  rmSync(dirname(file), { recursive: true });
  await page.context().close();
}

// firstView opens the page in a browser that has nothing of it, and says what it asked for
// and how long it took until the flock was there.
async function firstView(slow, ahead = true) {
  const page = await open();
  if (!ahead) await page.route(/\/flock\?follow=false$/, (route) => route.abort());
  if (slow) {
    const network = await page.context().newCDPSession(page);
    await network.send("Network.enable");
    await network.send("Network.emulateNetworkConditions", { offline: false, latency: 150, downloadThroughput: 200_000, uploadThroughput: 200_000 });
  }
  const asked = [];
  page.on("request", (request) => asked.push(new URL(request.url()).pathname));
  const began = performance.now();
  await page.goto(url + "/", { waitUntil: "commit" });
  await page.locator("ul.sheep > li").first().waitFor();
  const took = performance.now() - began;
  // The list of the latest jobs is asked for once the flock is there: on a busy machine it may have come.
  const bytes = await page.evaluate(() => performance.getEntries().reduce((sum, one) => sum + (/\/flock$|\/jobs\?/.test(one.name) ? 0 : one.encodedBodySize || 0), 0));
  await page.context().close();
  return { asked, bytes, took };
}

async function first() {
  // What it takes without throttling is the machine's share.
  for (const slow of [false, true]) {
    const times = { "asked for ahead": [], "from the stream alone": [] };
    for (let i = 0; i < 7; i++) for (const [how, of] of Object.entries(times)) of.push((await firstView(slow, how === "asked for ahead")).took);
    for (const [how, of] of Object.entries(times)) {
      of.sort((a, b) => a - b);
      console.log(`the first view, ${slow ? "throttled" : "not throttled"}, the flock ${how}: ${of.map((t) => Math.round(t)).join(", ")} ms; the median is ${Math.round(of[3])} ms`);
    }
  }
}

// pictures takes screenshots of every view for those who look, and has axe look, too.
async function pictures() {
  for (const [name, scheme] of [["flock", "light"], ["failed", "dark"]]) {
    const tab = await open({ viewport: { width: 1200, height: 800 }, colorScheme: scheme });
    await show(tab, views[name]);
    await tab.screenshot({ path: `${process.env.PICTURES}/page-${name}.png` });
    await tab.context().close();
  }
  for (const scheme of ["light", "dark"]) {
    for (const [width, height] of [[360, 780], [1280, 860], [2560, 1300]]) {
      const tab = await open({ viewport: { width, height }, colorScheme: scheme });
      for (const [name, view] of Object.entries(views)) {
        await step(`${name}, ${scheme}, ${width}`, async () => {
          await show(tab, view);
          await tab.screenshot({ path: `${shots}/${name}-${scheme}-${width}.png`, fullPage: true });
          await fits(tab, `${name}, ${scheme}, ${width}`);
          if (width === 1280) await examine(tab, `${name}, ${scheme}, ${width}`);
        });
      }
      await tab.context().close();
    }
  }
  await papers();
}

// papers takes pictures of some of the documentation.
async function papers() {
  for (const [scheme, width, height] of [["light", 360, 780], ["dark", 360, 780], ["light", 1280, 860], ["dark", 1280, 860], ["light", 2560, 1300]]) {
    const tab = await open({ viewport: { width, height }, colorScheme: scheme });
    for (const name of ["", "/tutorial", "/configuration"]) {
      await step(`documentation ${name}, ${scheme}, ${width}`, async () => {
        await tab.goto(url + "/docs" + name);
        await tab.locator("article h1").waitFor();
        if (name === "/tutorial") {
          await tab.locator("#find").fill("exit");
          await tab.locator("#found a").first().waitFor();
        }
        await tab.screenshot({ path: `${shots}/docs${name.replace("/", "-")}-${scheme}-${width}.png` });
        await examine(tab, `documentation ${name}, ${scheme}, ${width}`);
      });
    }
    await tab.context().close();
  }
}

// fleet looks at twenty nodes with a hundred sheep.
async function fleet() {
  const sizes = [["light", 360, 780], ["dark", 1280, 860]];
  if (shots) sizes.push(["light", 2560, 1300]);
  for (const [scheme, width, height] of sizes) {
    const page = await open({ viewport: { width, height }, colorScheme: scheme });
    await step(`a fleet, ${scheme}, ${width}`, async () => {
      await show(page, views.flock);
      same("nodes", await page.locator("section.node").count(), 20);
      same("sheep", await page.locator("section.node li.line").count(), 100);
      same("sheep that are out, told by a shape and a word", await page.locator("li.line", { has: page.locator(".shape.blocked") }).filter({ hasText: "out" }).count(), 12);
      for (const shown of [/sheep-0.*Xid 79/s, /43 % · 200 MiB\/s.*pulling segment:v2$/s, /transcribe.*scan-2026-11-29-\d+.*of about 40 s/s, /rests for 12s/]) await page.locator("li.line", { hasText: shown }).first().waitFor();
      for (const shown of ["20 nodes", "100 sheep", "4 GPUs, 1 out", "its turn on gpu-", "batch=41", "wool"]) await page.getByText(shown).first().waitFor();
      await page.locator("ol.queue li", { hasText: /scan-2026-11-29-9011.*in about \d+ min/s }).waitFor();
      await fits(page, `a fleet, ${width}`);
      // A line is one or two lines of text, whatever the names are.
      const tall = await page.evaluate(() => Math.max(...[...document.querySelectorAll("li.line")].map((one) => one.getBoundingClientRect().height / parseFloat(getComputedStyle(one).fontSize))));
      if (tall > 6) throw new Error(`a sheep takes ${tall} times the size of its letters`);
      if (width === 1280) await examine(page, "a fleet");
      if (shots) await page.screenshot({ path: `${shots}/fleet-${scheme}-${width}.png`, fullPage: true });
      await page.goto(url + "/#/gpus");
      await page.getByRole("heading", { name: "gpu-19" }).waitFor();
      same("GPUs", await page.locator("ul.gpus > li").count(), 80);
      await fits(page, `the GPUs of a fleet, ${width}`);
      await page.goto(url + "/#/models");
      await page.locator("table.models tr", { hasText: /transcribe:large-v3.*3 GiB.*gpu-00, gpu-01, gpu-02 and 2 more/s }).waitFor();
      await page.getByText("The models on the disk of gpu-19 are not known: does not answer").waitFor();
      await fits(page, `the models of a fleet, ${width}`);
      if (width === 1280) await examine(page, "the models of a fleet");
    });
    await page.context().close();
  }
  await step("a pull, on a sheep's card", async () => {
    const page = await open();
    const pull = { text: "pulling segment:v2: 43%, 172 MiB of 400 MiB at 210 MiB/s, 0 of 1 layers", done: 172 << 20, total: 400 << 20, rate: 210 << 20 };
    const sheep = { name: "flossie", node: null, type: "container", running: false, model: { name: null, version: null }, job: "align-1", detail: pull.text, pull, condition: "able", progress: null, started_at: null, running_since: null, usual: null, turn_ends_at: null };
    const queue = { total: 0, more: false, head: [], models: [], priorities: [], tenants: [], labels: [] };
    await page.route("**/flock", (route) => route.fulfill({ contentType: "text/event-stream", body: `event: flock\ndata: ${JSON.stringify({ sheep: [sheep], queue, trouble: null })}\n\n` }));
    await page.goto(url + "/#/");
    const card = page.locator("li.card", { hasText: /flossie.*preparing.*align-1.*43 % · 210 MiB\/s.*pulling segment:v2$/s });
    await card.getByRole("img", { name: "43 % of the model is here" }).waitFor();
    await examine(page, "a pull");
    if (shots) await page.screenshot({ path: `${shots}/pull.png` });
    await page.context().close();
  });
}

// many looks at 100,000 jobs: what is asked for and what is drawn is counted.
async function many() {
  const page = await open();
  const asked = [];
  page.on("request", (request) => {
    const { pathname, search } = new URL(request.url());
    if (pathname.startsWith("/jobs")) asked.push(pathname + search);
  });
  const rows = page.locator("tbody tr");
  const sum = async (what, like, requests, lines) => {
    same(`what is asked for: ${what}`, asked.splice(0).filter((one) => like.test(one)).length, requests);
    same(`rows: ${what}`, await rows.count(), lines);
  };
  const listed = (word) => page.waitForFunction((w) => ((all) => all.length > 0 && all.every((row) => row.innerText.includes(w)))([...document.querySelectorAll("tbody tr")]), word);
  await step("the newest of 100,000 jobs", async () => {
    await page.goto(`${url}/#/jobs`);
    await page.locator("tr", { hasText: "scan-099999" }).waitFor();
    await page.locator(".live:not(.wait):not(.stale)").waitFor();
    if (asked.length > 2) throw new Error("it asks for " + asked); // the list, and perhaps once more when it is live
    same("rows", await rows.count(), 50);
    await fits(page, "100,000 jobs");
  });
  await step("older ones, as they are asked for", async () => {
    for (let i = 2; i <= 5; i++) {
      await page.getByRole("button", { name: "Older jobs" }).click();
      await page.waitForFunction((n) => document.querySelectorAll("tbody tr").length === n, 50 * i);
    }
    await page.locator("tr", { hasText: "scan-099750" }).scrollIntoViewIfNeeded();
    await sum("older", /after=/, 4, 250);
    const elements = await page.evaluate(() => document.querySelectorAll("*").length);
    if (elements > 250 * 40) throw new Error(`${elements} elements are drawn`);
  });
  await step("the oldest of all, by its id", async () => {
    await page.getByLabel("Id begins with").fill("scan-000000");
    await page.keyboard.press("Enter");
    await page.locator("tr", { hasText: "scan-000000" }).waitFor();
    await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1);
    await sum("an id", /prefix=/, 1, 1);
    await page.getByRole("link", { name: "scan-000000" }).click();
    await page.locator("h1", { hasText: "scan-000000" }).waitFor();
    await page.goBack();
    await page.getByLabel("Id begins with").fill("");
    await page.keyboard.press("Enter");
    await page.locator("tr", { hasText: "scan-099999" }).waitFor();
    asked.length = 0;
  });
  await step("by state, model and label", async () => {
    await page.getByLabel("failed").check();
    await listed("out of memory");
    await sum("a state", /state=failed/, 1, 50);
    await page.getByLabel("Model").fill("caption:v1");
    await page.keyboard.press("Enter");
    await listed("caption");
    await sum("a model", /model=/, 1, 50);
    await page.getByLabel("Label").fill("batch=7");
    await page.keyboard.press("Enter");
    await page.getByText("4 jobs; these are all.").waitFor();
    await sum("a label", /label=/, 1, 4); // of 1,000 jobs every hundredth failed, a third of these with this model
  });
  await step("the other views draw as little", async () => {
    for (const view of ["#/", "#/models", "#/events"]) {
      await page.goto(`${url}/${view}`);
      await page.locator("main h1, main h2").first().waitFor();
      await page.locator(".live:not(.wait):not(.stale)").waitFor();
      const elements = await page.evaluate(() => document.querySelectorAll("*").length);
      if (elements > 2500) throw new Error(`${view}: ${elements} elements are drawn`);
      for (const one of asked.splice(0)) if (!/limit=\d{1,3}(&|$)/.test(one)) throw new Error(`${view} asks for ${one}`);
    }
  });
  await page.context().close();
}

async function tokens() {
  const enter = async (page, name) => {
    await page.goto(url + "/");
    await page.getByLabel("Token").fill(name + "-token-0123456789");
    await page.getByRole("button", { name: "Sign in" }).click();
  };
  await step("nobody sees anything", async () => {
    const page = await open();
    await page.goto(url + "/#/jobs/train-0091");
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    await examine(page, "sign in");
    await page.getByLabel("Token").fill("wrong");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByText("This token is not known here").waitFor();
    same("links to views", await page.locator("nav a").count(), 0);
    await page.context().close();
  });
  await step("who may read looks, and has no buttons", async () => {
    const page = await open();
    await enter(page, "looker");
    await page.locator("ul.sheep").waitFor();
    same("links to submit", await page.getByRole("link", { name: "Submit", exact: true }).count(), 0);
    same("sheep to manage", await page.getByText("Manage").count(), 0);
    for (const id of ["train-0091", "transcribe-2001"]) {
      await page.goto(`${url}/#/jobs/${id}`);
      await page.locator("#timeline").waitFor();
      same("buttons", await page.locator(".actions button").count(), 0);
    }
    await page.goto(url + "/#/models");
    await page.locator("td").first().waitFor();
    same("pulls", await page.getByText("Pull a model").count(), 0);
    await page.goto(url + "/#/submit");
    await page.getByText("you may not see it").waitFor();
    await page.locator("details.person summary").click();
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    await page.reload();
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    await page.context().close();
  });
  await step("who administers tells sheep what to do", async () => {
    const page = await open();
    await enter(page, "boss");
    const card = page.locator("ul.sheep > li", { has: page.getByRole("heading", { name: "nuts" }) });
    await card.getByText("Manage").click();
    await card.getByRole("button", { name: "Drain nuts" }).click();
    await card.locator(".state.drained").waitFor();
    await examine(page, "a sheep that is managed");
    await card.getByLabel("Model for nuts to load").fill("none:v1");
    await card.getByRole("button", { name: "Load the model on nuts" }).click();
    await card.getByRole("alert").waitFor();
    await card.getByLabel("Model for nuts to load").fill("report:v4");
    await card.getByRole("button", { name: "Load the model on nuts" }).click();
    await card.getByText("report:v4").waitFor();
    await card.getByRole("button", { name: "Restart nuts" }).click();
    await card.getByRole("button", { name: "Yes" }).click();
    await card.getByText("no model loaded").waitFor();
    await card.getByRole("button", { name: "Resume nuts" }).click();
    await card.getByRole("button", { name: "Drain nuts" }).waitFor();
    const busy = page.locator("ul.sheep > li", { has: page.getByRole("heading", { name: "timmy" }) });
    await busy.getByText("Manage").click();
    same("models to load on a sheep with a job", await busy.getByLabel("Model for timmy to load").count(), 0);
    await page.context().close();
  });
  await step("who may submit alone submits, and sees nothing", async () => {
    const page = await open();
    await enter(page, "sender");
    await page.getByText("may submit jobs and not see them").waitFor();
    await page.locator("main").getByRole("link", { name: "Submit a job" }).click();
    await page.getByLabel("Model").fill("report:v4");
    await page.getByLabel("or write the input").fill("x");
    await page.getByRole("button", { name: "Submit" }).click();
    await page.getByText("Submitted as job-").waitFor();
    await page.context().close();
  });
  await step("what came before a view listens is shown", async () => {
    const page = await open();
    // Views begin to listen long after they are drawn; this tenant's flock does not change meanwhile.
    await page.addInitScript(() => {
      const later = window.setTimeout;
      window.requestAnimationFrame = () => 0;
      window.setTimeout = (what, pause, ...more) => later(what, pause === 100 ? 2000 : pause, ...more); // Preact's, for effects
    });
    await enter(page, "wool");
    await page.locator("ul.sheep").waitFor();
    await page.context().close();
  });
  await step("a tenant sees its own", async () => {
    const page = await open();
    await enter(page, "wool");
    await page.locator("ul.sheep").waitFor();
    same("views", await page.locator("nav a").allInnerTexts(), ["Flock", "Jobs", "Models", "Events"]);
    await page.getByText("No job waits").waitFor();
    const shown = await page.locator("main").innerText();
    if (shown.includes("transcribe")) throw new Error("it is shown " + shown);
    if (!/dolly[\s\S]*working/.test(shown)) throw new Error("busy sheep are not seen to be: " + shown);
    await page.getByRole("link", { name: "Submit", exact: true }).click();
    await page.getByLabel("Model").fill("report:v4");
    await page.getByLabel("or write the input").fill("x");
    await page.getByRole("button", { name: "Submit" }).click();
    await page.locator(".title .state.done").waitFor();
    await page.goto(url + "/#/jobs");
    await page.locator("tbody tr").first().waitFor();
    same("its jobs", await page.locator("tbody tr").count(), 1);
    await page.goto(url + "/#/jobs/train-0091");
    await page.getByText("There is no such job here").waitFor();
    await page.context().close();
  });
}

try {
  await { open: openDaemon, first, fleet, large: () => large(false), "large-refused": () => large(true), many, pictures, tokens }[process.argv[2]]();
} finally {
  await browser.close();
}
console.log("over");
process.exit(0);
