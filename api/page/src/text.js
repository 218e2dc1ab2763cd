// How times, durations, sizes and names are written.
import { dates, language, relative, units } from "./words.js";

const numbers = new Intl.NumberFormat(language);
export const number = (n) => numbers.format(n);

// The API's times are in UTC and do not say so.
export const time = (text) => (text ? Date.parse(text + (/(Z|[+-]\d\d:\d\d)$/.test(text) ? "" : "Z")) : null);

const exactly = new Intl.DateTimeFormat(dates, { dateStyle: "medium", timeStyle: "medium" });
export const exact = (ms) => exactly.format(ms);

// duration writes milliseconds in at most two units.
export function duration(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 0.0995) return `${Math.round(s * 1000)} ${units.ms}`;
  if (s < 9.95) return `${s.toFixed(1)} ${units.s}`;
  if (s < 59.5) return `${Math.round(s)} ${units.s}`;
  const whole = Math.round(s);
  if (whole < 3600) return `${Math.floor(whole / 60)} ${units.min}${whole % 60 ? ` ${whole % 60} ${units.s}` : ""}`;
  const minutes = Math.round(s / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} ${units.h}${minutes % 60 ? ` ${minutes % 60} ${units.min}` : ""}`;
  const hours = Math.round(s / 3600);
  return `${Math.floor(hours / 24)} ${units.d}${hours % 24 ? ` ${hours % 24} ${units.h}` : ""}`;
}

// ago writes a time relative to now.
export function ago(ms, now) {
  const s = (now - ms) / 1000;
  const coarse = (s) => (s < 60 ? `${Math.round(s)} ${units.s}` : s < 3600 ? `${Math.floor(s / 60)} ${units.min}` : s < 172800 ? `${Math.floor(s / 3600)} ${units.h}` : `${Math.floor(s / 86400)} ${units.days}`);
  if (s < -1) return relative.in(coarse(-s));
  return s < 2 ? relative.now : relative.ago(coarse(s));
}

// about writes how long until a time, of which more digits would mean nothing.
export function about(ms) {
  const s = ms / 1000;
  if (s < 1.5) return relative.soon;
  const digit = s < 20 ? 1 : s < 120 ? 5 : s < 3600 ? 60 : s < 36_000 ? 600 : 3600;
  return duration(Math.round(s / digit) * digit * 1000);
}

// bytes writes a size in binary units, as memory and files are counted.
export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (n >= 1023.5 && at < units.length - 1) {
    n /= 1024;
    at++;
  }
  return `${at === 0 || n >= 99.5 ? Math.round(n) : n.toFixed(1).replace(/\.0$/, "")} ${units[at]}`;
}

export const modelName = (m) => (m && m.name ? (m.version ? `${m.name}:${m.version}` : m.name) : "");

export const median = (list) => {
  if (!list.length) return null;
  const sorted = [...list].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
};

// pathOf is the address of one of a job's files; kind is input or result.
export const pathOf = (id, kind, name) => `/jobs/${encodeURIComponent(id)}/${kind}/${name.split("/").map(encodeURIComponent).join("/")}`;

export const jobLink = (id) => `#/jobs/${encodeURIComponent(id)}`;
