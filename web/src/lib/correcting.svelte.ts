/** Labels found wrong while looking at images: collected, then made into a dataset of its own, then a job again. */

import { ApiError, call } from "./api/client";
import * as students from "./api/students";
import type { Dataset, DistillationJob, StudentVersion } from "./api/types";
import { lastPart } from "./names";
import { selection } from "./state.svelte";
import { workbench } from "./workbench.svelte";

const LONGEST_ID = 63;

class Correcting {
  /** Right labels by item id. */
  found: Record<string, string[]> = $state({});
  busy = $state(false);
  error: Error | undefined = $state.raw();
  made: Dataset | undefined = $state.raw();
  job: DistillationJob | undefined = $state.raw();
  count = $derived(Object.keys(this.found).length);
  private requestId = "";

  /** Notes the right labels of an item; its present ones take the note back. */
  note(itemId: string, labels: string[], present: readonly string[]): void {
    this.requestId = "";
    this.made = this.job = this.error = undefined;
    if (labels.toSorted().join("\n") === [...present].sort().join("\n")) delete this.found[itemId];
    else this.found[itemId] = labels;
  }

  /** Makes a dataset with the corrected labels; the student's own stays as it is. */
  async make(): Promise<void> {
    const dataset = workbench.student?.dataset;
    if (!dataset || !this.count) return;
    await this.run(async () => {
      this.requestId ||= students.newId();
      const corrections = Object.entries(this.found).map(([itemId, labels]) => ({ itemId, labels: [...labels] }));
      this.made = await this.create(dataset, corrections);
      this.found = {};
    });
  }

  /** Runs the student's job on the corrected dataset. */
  async runAgain(): Promise<void> {
    const made = this.made;
    if (!made) return;
    await this.run(async () => {
      const first = workbench.versions.find((one: StudentVersion) => one.job);
      if (!first) throw new Error("This student names no job that could be run again.");
      const old = (await call<{ job: DistillationJob }>("GET", `/v1/${first.job}`)).job;
      const concept = { ...old.concept, dataset: made.name, studentId: lastPart(made.name) };
      const body = { job: { concept }, requestId: students.newId() };
      this.job = (await call<{ job: DistillationJob }>("POST", `/v1/projects/${selection.project}/distillationJobs`, body)).job;
    });
  }

  /** The first free name: `fruit-corrected`, `fruit-corrected-2`. */
  private async create(dataset: string, corrections: { itemId: string; labels: string[] }[]): Promise<Dataset> {
    const stem = lastPart(dataset).replace(/-corrected(-\d+)?$/, "").slice(0, LONGEST_ID - 15);
    for (let turn = 1; ; turn++) {
      const datasetId = `${stem}-corrected${turn > 1 ? `-${turn}` : ""}`;
      try {
        return await students.correctLabels(dataset, { datasetId, corrections, requestId: this.requestId });
      } catch (error) {
        const taken = error instanceof ApiError && (error.code === 6 || error.status === 409);
        if (!taken || turn >= 50) throw error;
        this.requestId = students.newId();
      }
    }
  }

  private async run(work: () => Promise<void>): Promise<void> {
    this.busy = true;
    this.error = undefined;
    try {
      await work();
    } catch (error) {
      this.error = error instanceof Error ? error : new Error(String(error));
    } finally {
      this.busy = false;
    }
  }
}

export const correcting = new Correcting();
