/** Parts of the images by who is right: what can be clicked in Performance and shown in Images. Pure functions. */

import { named, rightness, type Problem } from "./maths";

export const SUBSETS = ["all", "misaligned", "teacher-right", "student-right", "both-wrong", "both-right", "taken", "flips"] as const;
export type Subset = (typeof SUBSETS)[number];

export const TITLES: Record<Subset, string> = {
  all: "All images",
  misaligned: "Student differs from teacher",
  "teacher-right": "Teacher right, student wrong",
  "student-right": "Student right, teacher wrong",
  "both-wrong": "Both wrong",
  "both-right": "Both right",
  taken: "Wrongly taken for this class",
  flips: "Changed by your unsaved edits",
};

/** A subset's name from an address; `all` for anything else. */
export function asSubset(text: string): Subset {
  return SUBSETS.includes(text as Subset) ? (text as Subset) : "all";
}

/** For each item who is right: bit 0 the teacher, bit 1 the student; bit 2 where they differ. */
export function verdicts(problem: Problem, student: Uint8Array, k = -1): Uint8Array {
  const teacher = rightness(problem, problem.teacher, problem.labels, k);
  const mine = rightness(problem, student, problem.labels, k);
  const same = rightness(problem, student, problem.teacher, k);
  return teacher.map((right, i) => right | (mine[i]! << 1) | ((1 - same[i]!) << 2));
}

const MATCHES: Record<Exclude<Subset, "taken" | "flips">, (verdict: number) => boolean> = {
  all: () => true,
  misaligned: (verdict) => (verdict & 4) !== 0,
  "teacher-right": (verdict) => (verdict & 3) === 1,
  "student-right": (verdict) => (verdict & 3) === 2,
  "both-wrong": (verdict) => (verdict & 3) === 0,
  "both-right": (verdict) => (verdict & 3) === 3,
};

/** Items of a subset, of class `k`'s images or (k < 0) of all; `flipped` are those that unsaved edits change. */
export function itemsOf(
  problem: Problem,
  student: Uint8Array,
  subset: Subset,
  k = -1,
  flipped: readonly number[] = [],
): number[] {
  const { items, labels } = problem;
  if (subset === "flips") return [...flipped];
  const found: number[] = [];
  if (subset === "taken") {
    for (let i = 0; i < items; i++) if (wronglyTaken(problem, student, i, k)) found.push(i);
    return found;
  }
  const verdict = verdicts(problem, student, k);
  const matches = MATCHES[subset];
  for (let i = 0; i < items; i++) {
    if ((k < 0 || labels[k * items + i]) && matches(verdict[i]!)) found.push(i);
  }
  return found;
}

function wronglyTaken(problem: Problem, student: Uint8Array, item: number, k: number): boolean {
  const { items, classes, labels } = problem;
  const said = k >= 0 ? (student[k * items + item] ? [k] : []) : named(student, items, classes, item);
  return said.some((c) => !labels[c * items + item]);
}

export type Part = "teacher-right" | "student-right" | "both-wrong" | "both-right";
export type Parts = Record<Part, number>;
/** Parts by the two lower bits of a verdict. */
const ORDER: readonly Part[] = ["both-wrong", "teacher-right", "student-right", "both-right"];

/** How many images of each class, and (last) of all, are in each of the four parts. */
export function countParts(problem: Problem, student: Uint8Array): Parts[] {
  const { items, classes, labels, single } = problem;
  const whole = verdicts(problem, student);
  const counts: Parts[] = [];
  for (let k = 0; k <= classes; k++) {
    const count = { "teacher-right": 0, "student-right": 0, "both-wrong": 0, "both-right": 0 };
    // With one label each, who is right about an item does not depend on the class that is asked about.
    const verdict = single || k === classes ? whole : verdicts(problem, student, k);
    for (let i = 0; i < items; i++) if (k === classes || labels[k * items + i]) count[ORDER[verdict[i]! & 3]!] += 1;
    counts.push(count);
  }
  return counts;
}
