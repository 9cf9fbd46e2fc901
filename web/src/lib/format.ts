/** Numbers for people. */

/** A share as `83.1 %`; `–` where it is undefined. */
export function percent(share: number | undefined, digits = 1): string {
  return share === undefined || !Number.isFinite(share) ? "–" : `${(100 * share).toFixed(digits)} %`;
}

/** A change of a share in points: `+1.2`, `−0.4`, `0`. */
export function points(change: number | undefined, digits = 1): string {
  if (change === undefined || !Number.isFinite(change)) return "–";
  const text = (100 * Math.abs(change)).toFixed(digits);
  if (Number(text) === 0) return "±0";
  return (change > 0 ? "+" : "−") + text;
}

/** A weight with a true minus sign. */
export function weight(value: number): string {
  return value.toFixed(Math.abs(value) < 1 ? 3 : 2).replace("-", "−");
}

/** `1 image`, `2 images`. */
export function count(number: number, one: string, many = `${one}s`): string {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** Colour role of a change: what is better is good. */
export function tone(change: number): "good" | "bad" | "" {
  return Math.abs(change) < 5e-5 ? "" : change > 0 ? "good" : "bad";
}

/** A large number in three digits: `135M`, `60K`. */
export function compact(number: number): string {
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(number);
}
