/** Versions, edits and changes in words. Pure functions. */

import type { EditEffect, MetricChange, StudentVersion } from "../api/types";
import { points, weight } from "../format";
import { lastPart } from "../names";

/** Returns `red skin ↑ for Pink Lady`; several edits are counted after the first. */
export function summary(version: StudentVersion): string {
  const [first] = version.effects;
  if (!first) return version.job ? "Made by a job" : "";
  const more = version.effects.length - 1;
  return `${edit(first)}${more ? ` and ${more} more` : ""}`;
}

/** Returns `red skin ↑ for Pink Lady`. */
export function edit({ edit: { concept, direction, label } }: EditEffect): string {
  return `${concept} ${direction === "DIRECTION_UP" ? "↑" : "↓"} for ${label}`;
}

/** Returns `0.41 → 0.97`. */
export const move = ({ weightBefore, weightAfter }: EditEffect): string => `${weight(weightBefore)} → ${weight(weightAfter)}`;

/** Returns `recall of Pink Lady`. */
export function metric(name: string): string {
  const [kind = "", label = ""] = name.split(/\/(.*)/s);
  const words = kind.replaceAll("_", " ");
  return label ? `${words} of ${label}` : words;
}

/** Returns the change to tell first: of the edited class, else of all. */
export function mainChange(version: StudentVersion): MetricChange | undefined {
  const label = version.effects[0]?.edit.label;
  return version.changes.find((one) => one.metric === `recall/${label}`) ?? version.changes.find((one) => one.metric === "fidelity") ?? version.changes[0];
}

/** Returns whether an interval leaves no doubt about the direction of a change. */
export const isSure = ({ change }: MetricChange): boolean => change.low > 0 || change.high < 0;

/** Returns `+3.1 [0.4, 5.8] points`. */
export function withInterval({ change }: MetricChange): string {
  return `${points(change.value)} [${points(change.low)}, ${points(change.high)}]`;
}

/** Orders changes: of all images, then of the edited classes, then the others, larger ones first. */
export function ordered(version: StudentVersion): MetricChange[] {
  const edited = new Set(version.effects.map((one) => one.edit.label));
  const rank = (name: string): number => (!name.includes("/") ? 0 : edited.has(name.slice(name.indexOf("/") + 1)) ? 1 : 2);
  return [...version.changes].sort(
    (a, b) => rank(a.metric) - rank(b.metric) || Math.abs(b.change.value) - Math.abs(a.change.value),
  );
}

const KINDS: Record<string, string> = {
  created: "made by a job",
  tuned: "tuned",
  moved: "made the head",
  renamed: "named",
  promoted: "put into service",
};

/** Returns what an event did: `v3 tuned`, `undone: back to v2`. */
export function event(kind: string, version: string): string {
  const number = `v${lastPart(version)}`;
  return kind === "undone" ? `undone: back to ${number}` : `${number} ${KINDS[kind] ?? kind}`;
}
