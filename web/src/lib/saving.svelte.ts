/** Saves unsaved edits: the server refits, verifies out of fold, and refuses where somebody else moved the head. */

import { tick } from "svelte";
import { ApiError } from "./api/client";
import * as students from "./api/students";
import type { ConceptEdit, TuneResult } from "./api/types";
import { lastPart } from "./names";
import { preview } from "./preview.svelte";
import { selection } from "./state.svelte";
import { workbench } from "./workbench.svelte";

/** Somebody else made another version the head meanwhile. */
export interface Conflict {
  edits: ConceptEdit[];
  /** Number of the version that the edits were made on, and of the head now. */
  base: string;
  head: string;
}

class Saving {
  busy = $state(false);
  error: Error | undefined = $state.raw();
  result: TuneResult | undefined = $state.raw();
  conflict: Conflict | undefined = $state.raw();
  /** Milliseconds from Save to the verified answer. */
  ms = $state(0);
  private requestId = "";
  private requestBody = "";

  /** Saves the edits on the version on show. A version that is not the head gets a branch. */
  async save(): Promise<void> {
    const base = workbench.version.value?.version;
    if (!base) return;
    const number = lastPart(base.name);
    // Who follows the head expects it to be what is on show, whatever is known by now; others branch knowingly.
    await this.send(preview.edits(), number, selection.version === "head" ? number : workbench.head);
  }

  /** Keeps both: the edits become a branch from the version that they were made on. */
  async branch(): Promise<void> {
    const conflict = this.conflict;
    if (conflict) await this.send(conflict.edits, conflict.base, conflict.head);
  }

  /** Puts the edits onto the new head, unsaved, so that somebody can look before saving. */
  async rebase(): Promise<void> {
    const conflict = this.conflict;
    if (!conflict) return;
    this.busy = true;
    try {
      const old = workbench.version.value?.version.name ?? "";
      await workbench.showHead();
      await tick();
      preview.rebase(conflict.edits);
      preview.saved(old);
      this.conflict = undefined;
    } finally {
      this.busy = false;
    }
  }

  /** Goes back to the version before the one that was saved. Throws ApiError. */
  async undo(): Promise<void> {
    const saved = this.result?.version;
    if (!saved?.parent) return;
    this.error = undefined;
    try {
      // The saved version is the head that was seen, even before the page has read the student again.
      await workbench.undo(saved.name);
      this.result = undefined;
    } catch (error) {
      this.error = asError(error);
    }
  }

  private async send(edits: ConceptEdit[], baseVersion: string, expectedHead: string): Promise<void> {
    if (!edits.length || this.busy) return;
    const body = { edits, baseVersion, expectedHead };
    // The same edits sent again, as after a lost connection, are the same request to the server.
    if (this.requestBody !== JSON.stringify(body)) this.requestId = students.newId();
    this.requestBody = JSON.stringify(body);
    const started = performance.now();
    const saved = workbench.version.value?.version.name ?? "";
    this.busy = true;
    this.error = undefined;
    try {
      this.result = await students.tune(selection.project, selection.student, { ...body, requestId: this.requestId });
      this.ms = performance.now() - started;
      this.conflict = undefined;
      preview.saved(saved);
      await workbench.showHead();
    } catch (error) {
      if (error instanceof ApiError && error.reason === "HEAD_MOVED") {
        this.conflict = { edits, base: baseVersion, head: lastPart(error.metadata.head_version ?? "") };
        void workbench.refresh();
      } else this.error = asError(error);
    } finally {
      this.busy = false;
    }
  }
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

export const saving = new Saving();
