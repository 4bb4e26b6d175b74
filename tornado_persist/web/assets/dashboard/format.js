// Figures as people read them, in the page's language.

import { language, text } from "./text.js";

// Of English the kind that writes days before months and counts hours to 24.
const locale = language === "en" ? "en-GB" : language;
const whole = new Intl.NumberFormat(locale, { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat(locale, { maximumSignificantDigits: 3 });
const share = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 0 });
const hours = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const short = new Intl.DateTimeFormat(locale, hours);
const clock = new Intl.DateTimeFormat(locale, { ...hours, second: "2-digit" });
const day = new Intl.DateTimeFormat(locale, { ...hours, day: "numeric", month: "short" });

export const NONE = "–";

export function number(value) {
  if (value === null || value === undefined) return NONE;
  return value >= 100 || Number.isInteger(value) ? whole.format(value) : fine.format(value);
}

export function percent(value) {
  return share.format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit ? fine.format(value) : whole.format(value)} ${units[unit]}`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value >= 10000) return duration(value / 1000);
  if (value >= 1000) return `${fine.format(value / 1000)} ${text.units.s}`;
  return `${fine.format(value)} ${text.units.ms}`;
}

// A time that is only known to be under a bound; past the greatest bound, ``limit``, only that it is over it.
export function bounded(limit) {
  return (value) => {
    if (value === null || value === undefined) return NONE;
    return value > limit ? `> ${milliseconds(limit)}` : `< ${milliseconds(value)}`;
  };
}

// The two greatest units of a time in seconds.
export function duration(seconds) {
  const { d, h, min, s } = text.units;
  const total = Math.max(0, Math.round(seconds));
  const parts = [
    [Math.floor(total / 86400), d],
    [Math.floor(total / 3600) % 24, h],
    [Math.floor(total / 60) % 60, min],
    [total % 60, s],
  ];
  const first = Math.max(0, parts.findIndex(([count]) => count > 0));
  const used = total ? parts.slice(first, first + 2).filter(([count]) => count > 0) : [parts[3]];
  return used.map(([count, unit]) => `${count} ${unit}`).join(" ");
}

// The time of day, to the minute.
export function minute(at) {
  return short.format(new Date(at));
}

// The time of day; with the day where that is another one. What others have stored and is no time stays as it is.
export function moment(at) {
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return `${at}`;
  return date.toDateString() === new Date().toDateString() ? clock.format(date) : day.format(date);
}
