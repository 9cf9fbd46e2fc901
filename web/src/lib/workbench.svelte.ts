/** The student that is open: its versions, its data, and the figures of the version on show. Shared by all views. */

import * as students from "./api/students";
import type { Inspection, Student, StudentVersion } from "./api/types";
import { Loadable } from "./loadable.svelte";
import { allLogits, byClass, decide, makeProblem, measure, type Figures, type Problem, type Weights } from "./maths";
import { lastPart } from "./names";
import { readSafetensors, type Tensor } from "./safetensors";
import { select, selection } from "./state.svelte";

/** A student's data in the browser; the same for all versions of one job. */
export interface Data {
  inspection: Inspection;
  problem: Problem;
  classIndex: Map<string, number>;
  conceptIndex: Map<string, number>;
  /** Position of each item id. */
  itemIndex: Map<string, number>;
  /** Raw presence [items][concepts], 0 to 1. */
  presence: Float32Array;
  conceptMap: Float32Array;
  classMap: Float32Array;
}

/** A version with the out-of-fold logits of its items, row by row as they come. */
interface Fetched {
  version: StudentVersion;
  heldout: ArrayLike<number> | undefined;
  /** Digest of the arrays that the version stands on: versions of two jobs have two. */
  arrays: string;
}

/** A version as numbers. Logits and decisions are out of fold: what it would say of new images. */
export interface Scored {
  version: StudentVersion;
  weights: Weights;
  logits: Float64Array;
  decisions: Uint8Array;
  figures: Figures;
}

interface Opened {
  student: Student;
  versions: StudentVersion[];
}

class Workbench {
  readonly list = new Loadable<Student[]>();
  readonly opened = new Loadable<Opened>();
  readonly data = new Loadable<Data>();
  readonly version = new Loadable<Fetched>();
  private shownStudent = "";
  private shownVersion = "";

  student = $derived(this.opened.value?.student);
  versions = $derived(this.opened.value?.versions ?? []);
  /** Number of the head. */
  head = $derived(lastPart(this.student?.headVersion ?? ""));
  /** Number of the version on show, which is not the head any more once somebody else has moved that. */
  number = $derived(
    this.version.value ? lastPart(this.version.value.version.name) : selection.version === "head" ? this.head : selection.version,
  );
  /** True where somebody follows the head and it has moved on. */
  behind = $derived(Boolean(selection.version === "head" && this.version.value && this.head && this.number !== this.head));
  classes = $derived(this.data.value?.inspection.classes ?? this.student?.classes ?? []);
  /** Index of the selected class, -1 for none. */
  label = $derived(this.data.value?.classIndex.get(selection.label) ?? -1);
  scored: Scored | undefined = $derived.by(() => score(this.data.value, this.version.value));

  /** Follows the selection; call it in one effect of the shell. */
  follow(): void {
    const { project, student, version } = selection;
    const key = student && `${project}/${student}`;
    if (key !== this.shownStudent) {
      this.shownStudent = key;
      this.shownVersion = "";
      for (const one of [this.opened, this.data, this.version]) one.clear();
      if (key) void this.open(project, student);
    }
    if (key && `${key}/${version}` !== this.shownVersion) {
      this.shownVersion = `${key}/${version}`;
      void this.version.load((signal) => loadVersion(project, student, version, signal), true);
    }
    this.followJob(project, student);
  }

  /** Reads other data where the version shown comes from another job of the same student. */
  private followJob(project: string, student: string): void {
    const [fetched, data] = [this.version.value, this.data.value];
    if (!fetched || !data || fetched.arrays === data.inspection.arrays.digest || this.data.loading) return;
    void this.data.load((signal) => loadData(project, student, lastPart(fetched.version.name), signal));
  }

  private async open(project: string, student: string): Promise<void> {
    void this.data.load((signal) => loadData(project, student, "head", signal));
    await this.refresh(project, student);
  }

  /** Reads the project's students again. */
  async loadList(): Promise<void> {
    const { project } = selection;
    await this.list.load((signal) => students.listStudents(project, signal), true);
  }

  /** Reads student and versions again, as after a tuning, an undo, or somebody else's edit. */
  async refresh(project = selection.project, student = selection.student): Promise<void> {
    await this.opened.load(async (signal) => {
      const [one, versions] = await Promise.all([
        students.getStudent(project, student, signal),
        students.listVersions(project, student, signal),
      ]);
      return { student: one, versions };
    }, true);
  }

  /** Looks whether somebody else has changed the student, each time the page comes to the front. */
  followFront(): () => void {
    const look = () => {
      if (document.visibilityState === "visible" && this.student && !this.opened.loading) void this.refresh();
    };
    document.addEventListener("visibilitychange", look);
    return () => document.removeEventListener("visibilitychange", look);
  }

  /** Reads all again and shows the head. */
  async showHead(): Promise<void> {
    select({ version: "head" });
    const { project, student } = selection;
    this.shownVersion = `${project}/${student}/head`;
    await this.version.load((signal) => loadVersion(project, student, "head", signal), true);
    await this.refresh();
  }

  /** Makes the parent of the head that was seen the head. Throws ApiError. */
  async undo(seen = this.student?.headVersion ?? ""): Promise<void> {
    await students.undo(selection.project, selection.student, seen);
    await this.showHead();
  }

  /** Newest child of the head: what redo goes to. */
  redoTarget = $derived.by(() => {
    const head = this.student?.headVersion;
    return this.versions.filter((one) => head && one.parent === head).at(-1);
  });

  /** True where the head has a parent to go back to. */
  canUndo = $derived(Boolean(this.versions.find((one) => one.name === this.student?.headVersion)?.parent));

  /** Makes a version the head and shows it. Throws ApiError. */
  async moveTo(version: string): Promise<void> {
    await students.setHead(selection.project, selection.student, version, this.student?.headVersion ?? "");
    await this.showHead();
  }
}

async function loadVersion(project: string, student: string, name: string, signal: AbortSignal): Promise<Fetched> {
  const version = await students.getVersion(project, student, name, signal);
  const { heldout, arrays } = await students.inspect(project, student, lastPart(version.name), signal);
  if (!heldout) return { version, heldout: undefined, arrays: arrays.digest };
  const logits = readSafetensors(await students.blob(project, heldout.digest, signal)).get("logits");
  return { version, heldout: logits?.values, arrays: arrays.digest };
}

async function loadData(project: string, student: string, version: string, signal: AbortSignal): Promise<Data> {
  const inspection = await students.inspect(project, student, version, signal);
  const arrays = readSafetensors(await students.blob(project, inspection.arrays.digest, signal));
  const values = (name: string): Tensor["values"] => {
    const found = arrays.get(name);
    if (!found) throw new Error(`the student's data lack ${name}`);
    return found.values;
  };
  const { items, classes, concepts } = inspection;
  const problem = makeProblem(
    { presence: values("presence"), mean: values("mean"), std: values("std"), responses: values("responses"), labels: values("labels") },
    items.length,
    concepts.length,
    classes.length,
    inspection.loss === "LOSS_BCE" ? "bce" : "softmax",
  );
  return {
    inspection,
    problem,
    classIndex: positions(classes),
    conceptIndex: positions(concepts),
    itemIndex: positions(items.map((item) => item.itemId)),
    presence: values("presence") as Float32Array,
    conceptMap: values("concept_map") as Float32Array,
    classMap: values("class_map") as Float32Array,
  };
}

function positions(names: readonly string[]): Map<string, number> {
  return new Map(names.map((name, at) => [name, at]));
}

/** The weights of a version as arrays in the order of the data. */
export function weightsOf(data: Data, version: StudentVersion): Weights {
  const { concepts, classes } = data.problem;
  const weights = { weight: new Float64Array(classes * concepts), bias: new Float64Array(classes) };
  for (const row of version.classConcepts) {
    const k = data.classIndex.get(row.label);
    if (k === undefined) continue;
    weights.bias[k] = row.intercept;
    for (const one of row.concepts) {
      const j = data.conceptIndex.get(one.concept);
      if (j !== undefined) weights.weight[k * concepts + j] = one.weight;
    }
  }
  return weights;
}

function score(data: Data | undefined, fetched: Fetched | undefined): Scored | undefined {
  if (!data || !fetched || fetched.arrays !== data.inspection.arrays.digest) return undefined;
  const { problem } = data;
  const { version, heldout } = fetched;
  const weights = weightsOf(data, version);
  const logits = heldout ? byClass(heldout, problem.items, problem.classes) : allLogits(problem, weights);
  const decisions = decide(logits, problem.items, problem.classes, problem.loss, new Uint8Array(logits.length));
  return { version, weights, logits, decisions, figures: measure(problem, decisions) };
}

export const workbench = new Workbench();
