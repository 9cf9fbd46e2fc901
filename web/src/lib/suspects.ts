/** Which weights to blame for what the student misses: where tuning may begin. Pure functions. */

import { itemsWith, type Problem, type Weights } from "./maths";

/** A weight that pushes missed images of a class away from it: the class it belongs to, its concept, how much. */
export interface Suspect {
  label: number;
  concept: number;
  /** Mean push per missed image, in logits. */
  push: number;
  /** Missed images that it pushes. */
  images: number;
}

/**
 * The weights most responsible for class k's images that the teacher gets right and the student does not, strongest
 * first: those of k that count against it, and those of the classes named instead that count for them.
 */
export function suspects(problem: Problem, weights: Weights, found: Uint8Array, k: number, limit: number): Suspect[] {
  const { items, concepts, classes, labels, teacher, x } = problem;
  const missed = itemsWith(labels, items, k).filter((i) => teacher[k * items + i] && !found[k * items + i]);
  const pushes: Suspect[] = [];
  for (let c = 0; c < classes; c++) {
    const among = c === k ? missed : missed.filter((i) => found[c * items + i]);
    if (!among.length) continue;
    const sign = c === k ? -1 : 1;
    for (let j = 0; j < concepts; j++) {
      const w = weights.weight[c * concepts + j]!;
      if (w === 0) continue;
      let sum = 0;
      let pushed = 0;
      for (const i of among) {
        const push = sign * w * x[j * items + i]!;
        sum += push;
        if (push > 0) pushed++;
      }
      pushes.push({ label: c, concept: j, push: sum / missed.length, images: pushed });
    }
  }
  return pushes.filter((one) => one.push > 0).sort((a, b) => b.push - a.push).slice(0, limit);
}
