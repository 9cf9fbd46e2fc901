/** A job that a form starts: whether it is under way, and what went wrong. */

import { newId } from "../api/students";
import type { DistillationJob } from "../api/types";
import { createJob, type Spec } from "./calls";

export class Starter {
  busy = $state(false);
  problem = $state.raw<unknown>(undefined);

  /** `started` gets the job. */
  constructor(
    private readonly project: () => string,
    private readonly started: (job: DistillationJob) => void,
  ) {}

  /** Starts a job; `before` sees it before anything else does. What goes wrong lands in `problem`. */
  async start(spec: Spec, before: (job: DistillationJob) => void = () => undefined): Promise<void> {
    this.busy = true;
    this.problem = undefined;
    try {
      const job = await createJob(this.project(), spec, newId());
      before(job);
      this.started(job);
    } catch (error) {
      this.problem = error;
    }
    this.busy = false;
  }
}
