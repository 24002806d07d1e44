// Numbers as people read them.

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value) => (value === null || value === undefined ? "–" : plain.format(value));

/** Three significant digits, thousands as k. */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
  if (size >= 100 || value === 0) return plain.format(value);
  return String(Number(value.toPrecision(size >= 10 ? 3 : 2)));
}

/** Seconds, in the unit that suits them. */
export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0 ms";
  if (size < 1e-3) return `${Number((value * 1e6).toPrecision(3))} µs`;
  if (size < 1) return `${Number((value * 1e3).toPrecision(3))} ms`;
  if (size < 120) return `${Number(value.toPrecision(3))} s`;
  if (size < 7200) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${(value / 3600).toFixed(1)} h`;
}

export const nanoseconds = (value) => (value === null || value === undefined ? "–" : seconds(value / 1e9));

export function percent(share, digits = 0) {
  if (share === null || share === undefined || !Number.isFinite(share)) return "–";
  return `${(share * 100).toFixed(digits)} %`;
}

/** A probability: two digits that matter, also near 0 and 1. */
export function probability(share) {
  if (share > 0.9995) return "100 %";
  if (share >= 0.1) return percent(share, 1);
  if (share >= 0.001) return percent(share, 2);
  return share > 0 ? "< 0.1 %" : "0 %";
}

/** Visible spelling of a token: spaces and line ends can be seen. */
export function spelling(text) {
  if (text === "") return "∅";
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣").replace(/[\u0000-\u001f\u007f]/g, "�");
}

/** The end of an id, which is the part that differs. */
export const shortId = (id) => (id && id.length > 14 ? `…${id.slice(-8)}` : (id ?? "–"));
