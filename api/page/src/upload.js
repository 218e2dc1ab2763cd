// Large files go straight to storage, several at a time and in parts, each of which is sent
// again by itself.
import { Problem, ask, post } from "./daemon.js";
import { submit as w } from "./words.js";

const large = 64 * 2 ** 20; // bytes: what is smaller is not worth the further requests
const open = 4; // requests at a time
const tries = 3; // of a part by one address
const rounds = 4; // in which nothing gets further, of new addresses

let unreachable = false; // this browser does not get to the storage

// straight reports whether files are to go to storage by themselves.
export const straight = (files) => !unreachable && files.reduce((sum, one) => sum + one.file.size, 0) > large;

// upload puts files into storage and returns the id of the job that they are for; null where
// the daemon takes none that way. Where the storage cannot be reached it throws Unreachable,
// once: later ones are not straight. progress is told of the bytes that were sent.
export async function upload(id, files, signal, progress) {
  let plan;
  try {
    plan = await post("/uploads", { ...(id ? { job_id: id } : {}), files: files.map((one) => ({ path: one.path, size: one.file.size })) });
  } catch (error) {
    if (error instanceof Problem && (error.status === 404 || error.status === 405 || error.type.endsWith(":no-uploads"))) return null;
    throw error;
  }
  const byPath = new Map(files.map((one) => [one.path, one.file]));
  const sent = new Map(); // of each piece, by its file and offset
  const total = files.reduce((sum, one) => sum + one.file.size, 0);
  const count = (piece, bytes) => {
    sent.set(piece.key, Math.max(bytes, sent.get(piece.key) || 0));
    progress([...sent.values()].reduce((sum, n) => sum + n, 0), total);
  };
  let stored = 0;
  try {
    for (let round = 1; ; round++) {
      const before = stored;
      try {
        await sendAll(pieces(plan, byPath), signal, count, () => stored++);
        return plan.job_id;
      } catch (error) {
        if (signal.aborted) throw new Error(w.stopped);
        if (!stored) throw Object.assign(new Unreachable(), { cause: error });
        if (stored > before) round = 1;
        if (round === rounds) throw error;
      }
      plan = await post(`/uploads/${encodeURIComponent(plan.job_id)}/addresses`);
    }
  } catch (error) {
    if (error instanceof Unreachable) unreachable = true;
    ask(`/uploads/${encodeURIComponent(plan.job_id)}`, { method: "DELETE" }).catch(() => {}); // it expires anyway
    throw error;
  }
}

// Unreachable says that nothing got into storage.
export class Unreachable extends Error {}

// pieces are what is missing: files, and parts of files.
function pieces(plan, files) {
  const list = [];
  for (const f of plan.files) {
    const file = files.get(f.path);
    if (f.address) list.push({ key: f.path + "\n0", body: file.slice(0, f.size), address: f.address });
    for (const p of f.parts || []) list.push({ key: f.path + "\n" + p.offset, body: file.slice(p.offset, p.offset + p.size), address: p.address });
  }
  return list;
}

async function sendAll(list, signal, count, done) {
  let failed = null;
  const work = async () => {
    while (list.length && !failed && !signal.aborted) {
      const piece = list.shift();
      try {
        await send(piece, signal, count);
        done();
      } catch (error) {
        failed ||= error;
      }
    }
  };
  await Promise.all(Array.from({ length: open }, work));
  if (failed || signal.aborted) throw failed || new Error(w.stopped);
}

async function send(piece, signal, count) {
  for (let n = 1; ; n++) {
    const status = await put(piece, signal, count);
    if (status >= 200 && status < 300) return count(piece, piece.body.size);
    if (signal.aborted || n === tries || (status >= 400 && status < 500)) throw new Error(w.storage(status));
    await new Promise((done) => setTimeout(done, 500 * n));
  }
}

// put is the status of one try, 0 where there was no answer.
function put(piece, signal, count) {
  return new Promise((done) => {
    const xhr = new XMLHttpRequest();
    const stop = () => xhr.abort();
    signal.addEventListener("abort", stop);
    xhr.open("PUT", piece.address);
    xhr.upload.onprogress = (e) => count(piece, Math.min(e.loaded, piece.body.size));
    xhr.onloadend = () => (signal.removeEventListener("abort", stop), done(xhr.status));
    xhr.send(piece.body);
  });
}
