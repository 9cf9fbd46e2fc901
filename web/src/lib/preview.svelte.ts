/** Unsaved edits of the version on show and what they change before any refit, kept up to date while dragging. */

import { tick } from "svelte";
import type { ConceptEdit } from "./api/types";
import { asEdit, targetOf, type Turn } from "./edits";
import { addWeight, decide, flips, measure, type Figures, type Flip } from "./maths";
import { workbench, type Data, type Scored } from "./workbench.svelte";

const KEY = "edits:";

interface Draft {
  label: string;
  concept: string;
  target: number;
}

class Preview {
  /** Unsaved edits by `class\nconcept`. */
  drafts: Record<string, Draft> = $state({});
  figures: Figures | undefined = $state.raw();
  flips: Flip[] = $state.raw([]);
  /** Decisions with the edits in, [classes][items]. */
  decisions: Uint8Array | undefined = $state.raw();

  count = $derived(Object.keys(this.drafts).length);
  private base: Scored | undefined = $state.raw();
  private data: Data | undefined = $state.raw();
  private logits = new Float64Array(0);
  private masks: [Uint8Array, Uint8Array] = [new Uint8Array(0), new Uint8Array(0)];
  private weight = new Float64Array(0);
  private frame = 0;

  /** Starts from a version; edits of it that were left unsaved come back. */
  follow(data: Data | undefined, base: Scored | undefined): void {
    if (data === this.data && base === this.base) return;
    this.data = data;
    this.base = base;
    this.drafts = {};
    this.figures = base?.figures;
    this.decisions = base?.decisions;
    this.flips = [];
    if (!data || !base) return;
    this.logits = base.logits.slice();
    this.weight = base.weights.weight.slice();
    this.masks = [new Uint8Array(base.decisions.length), new Uint8Array(base.decisions.length)];
    for (const draft of recall(base.version.name)) this.put(draft.label, draft.concept, draft.target);
    this.compute();
  }

  /** Weight of a concept with the unsaved edits in. */
  weightOf(label: string, concept: string): number {
    return this.drafts[key(label, concept)]?.target ?? this.savedWeight(label, concept);
  }

  /** Weight of a concept in the version on show. */
  savedWeight(label: string, concept: string): number {
    const at = this.place(label, concept);
    return at < 0 ? 0 : (this.base?.weights.weight[at] ?? 0);
  }

  /** The weights of a class in the version on show, for boxes. */
  row(label: string): Float64Array {
    const k = this.data?.classIndex.get(label);
    const m = this.data?.problem.concepts ?? 0;
    if (k === undefined || !this.base) return new Float64Array(0);
    return this.base.weights.weight.subarray(k * m, (k + 1) * m);
  }

  /** Sets one weight, and the figures on the next frame. */
  set(label: string, concept: string, target: number, since = performance.now()): void {
    this.put(label, concept, target);
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.compute();
      remember(this.base?.version.name ?? "", Object.values(this.drafts));
      void tick().then(() => timed(since));
    });
  }

  /** Takes one edit back. */
  reset(label: string, concept: string): void {
    this.set(label, concept, this.savedWeight(label, concept));
  }

  /** Takes all edits back. */
  clear(): void {
    for (const { label, concept } of Object.values(this.drafts)) this.reset(label, concept);
  }

  /** The edits as the server takes them. */
  edits(): ConceptEdit[] {
    return Object.values(this.drafts).flatMap(({ label, concept, target }) => {
      const column = this.data?.conceptIndex.get(concept) ?? -1;
      const edit = asEdit(this.row(label), column, target);
      if (!edit) return [];
      return [{ label, concept, direction: edit.turn === "up" ? "DIRECTION_UP" : "DIRECTION_DOWN", factor: edit.factor }];
    });
  }

  /** Puts edits made against another version onto this one: same directions and factors, as the server reads them. */
  rebase(edits: readonly ConceptEdit[]): void {
    for (const { label, concept, direction, factor } of edits) {
      const turn: Turn = direction === "DIRECTION_UP" ? "up" : "down";
      const column = this.data?.conceptIndex.get(concept);
      if (column !== undefined) this.set(label, concept, targetOf(this.row(label), column, turn, factor));
    }
  }

  /** Forgets the edits of a version, once they are saved. */
  saved(version: string): void {
    remember(version, []);
  }

  private place(label: string, concept: string): number {
    const k = this.data?.classIndex.get(label);
    const j = this.data?.conceptIndex.get(concept);
    return k === undefined || j === undefined ? -1 : k * (this.data?.problem.concepts ?? 0) + j;
  }

  private put(label: string, concept: string, target: number): void {
    const at = this.place(label, concept);
    if (at < 0 || !this.data || !Number.isFinite(target)) return;
    const { problem } = this.data;
    const change = target - this.weight[at]!;
    if (change) addWeight(problem, this.logits, Math.floor(at / problem.concepts), at % problem.concepts, change);
    this.weight[at] = target;
    if (target === this.savedWeight(label, concept)) delete this.drafts[key(label, concept)];
    else this.drafts[key(label, concept)] = { label, concept, target };
  }

  private compute(): void {
    if (!this.data || !this.base) return;
    const { problem } = this.data;
    // Two buffers in turn: a new reference tells the views, and nothing is allocated while dragging.
    this.masks.reverse();
    const found = decide(this.logits, problem.items, problem.classes, problem.loss, this.masks[0]);
    this.decisions = found;
    this.figures = measure(problem, found);
    this.flips = flips(problem, this.base.decisions, found);
  }
}

/** Leaves the time from an input event to updated figures and charts as a measure named `drag`, the newest only. */
function timed(since: number): void {
  if (performance.getEntriesByName("drag").length > 500) performance.clearMeasures("drag");
  performance.measure("drag", { start: since, end: performance.now() });
}

function key(label: string, concept: string): string {
  return `${label}\n${concept}`;
}

function remember(version: string, drafts: Draft[]): void {
  try {
    if (drafts.length) sessionStorage.setItem(KEY + version, JSON.stringify(drafts));
    else sessionStorage.removeItem(KEY + version);
  } catch {
    // A full or forbidden storage loses nothing but the edits' life beyond this page.
  }
}

function recall(version: string): Draft[] {
  try {
    return JSON.parse(sessionStorage.getItem(KEY + version) ?? "[]") as Draft[];
  } catch {
    return [];
  }
}

/** Forgets all unsaved edits of this tab, as when somebody leaves. */
export function forgetEdits(): void {
  try {
    for (const name of Object.keys(sessionStorage)) if (name.startsWith(KEY)) sessionStorage.removeItem(name);
  } catch {
    // A forbidden storage holds none.
  }
}

export const preview = new Preview();

/** Ties the preview to what is on show; call it in one effect of the shell. */
export function followPreview(): void {
  preview.follow(workbench.data.value, workbench.scored);
}
