/** What the setup view works with: lists of the project and the job that is watched. */

import { ApiError } from "../api/client";
import type { Dataset, DistillationJob } from "../api/types";
import { follow, isOver } from "../events";
import * as calls from "./calls";
import * as chain from "./chain";
import { imageModels, languageModels } from "./language";
import { withPoints, type Curves } from "./curves";

const MESSAGES = 300;
const POLL_MS = 700;

/** A project's datasets, teachers, encoders, concept sets and jobs. */
export class Workshop {
  datasets = $state.raw<Dataset[]>([]);
  teachers = $state.raw<calls.Model[]>([]);
  conceptSets = $state.raw<calls.ConceptSet[]>([]);
  jobs = $state.raw<DistillationJob[]>([]);
  encoders = $state.raw<string[]>([]);
  loaded = $state(false);
  problem = $state.raw<unknown>(undefined);

  /** Models whose images can be classified, and language models. */
  readonly imageModels = $derived(imageModels(this.teachers));
  readonly languageModels = $derived(languageModels(this.teachers));

  /** Datasets being read that are asked for again and again. */
  private readonly attended = new Set<string>();

  constructor(readonly project: string) {}

  /** Reads all lists. What cannot be read is told in `problem`; the lists that came are kept. */
  async load(): Promise<void> {
    const [datasets, teachers, sets, jobs, encoders] = await Promise.allSettled([
      calls.listDatasets(this.project),
      calls.listTeachers(this.project),
      calls.listConceptSets(this.project),
      calls.listJobs(this.project),
      calls.listEncoders(this.project),
    ]);
    if (datasets.status === "fulfilled") this.datasets = datasets.value;
    if (teachers.status === "fulfilled") this.teachers = teachers.value;
    if (sets.status === "fulfilled") this.conceptSets = sets.value;
    if (jobs.status === "fulfilled") this.jobs = jobs.value;
    if (encoders.status === "fulfilled") this.encoders = encoders.value;
    const failed = [datasets, jobs, teachers, sets].find((one) => one.status === "rejected");
    this.problem = failed?.reason;
    this.loaded = true;
    for (const dataset of this.datasets) this.attend(dataset);
  }

  /** Follows a dataset that is being read; where the gateway goes away, the next load takes it up again. */
  attend(dataset: Dataset): void {
    if (dataset.state !== "DATASET_STATE_CREATING" || this.attended.has(dataset.name)) return;
    this.untilRead(dataset.name, new AbortController().signal).catch((error: unknown) => {
      if (!(error instanceof ApiError && error.offline)) this.problem = error;
    });
  }

  /** Reads the models again: a job has made one. */
  async loadModels(): Promise<void> {
    try {
      this.teachers = await calls.listTeachers(this.project);
    } catch {
      // The list that is there stays; the next load brings the new one.
    }
  }

  /** Puts a job's newest state into the list. */
  put(job: DistillationJob): void {
    const rest = this.jobs.filter((one) => one.name !== job.name);
    this.jobs = rest.length === this.jobs.length ? [job, ...rest] : this.jobs.map((one) => (one.name === job.name ? job : one));
  }

  /** Puts a dataset's newest state into the list. */
  putDataset(dataset: Dataset): void {
    const known = this.datasets.some((one) => one.name === dataset.name);
    this.datasets = known ? this.datasets.map((one) => (one.name === dataset.name ? dataset : one)) : [dataset, ...this.datasets];
  }

  /** Asks for a dataset until it is read, or could not be. */
  async untilRead(name: string, signal: AbortSignal): Promise<Dataset> {
    this.attended.add(name);
    try {
      for (;;) {
        const dataset = await calls.getDataset(name);
        this.putDataset(dataset);
        if (dataset.state !== "DATASET_STATE_CREATING" || signal.aborted) return dataset;
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      }
    } finally {
      this.attended.delete(name);
    }
  }
}

/** Watches one job at a time. */
export class Watch {
  job = $state.raw<DistillationJob | undefined>(undefined);
  messages = $state.raw<{ time: string; text: string }[]>([]);
  /** Learning curves so far. */
  curves = $state.raw<Curves>({});
  connected = $state(true);
  /** What the server says of a connection that it did not take; empty for one that just broke. */
  unconnected = $state("");
  refused = $state("");
  private stop: () => void = () => undefined;

  /** `onChange` gets every state of the job; its end is the last. */
  constructor(private readonly onChange: (job: DistillationJob) => void) {}

  /** Watches a job, from its first event on. */
  start(job: DistillationJob): void {
    if (this.job?.name === job.name && !this.refused) return;
    this.end();
    this.job = job;
    this.stop = follow<DistillationJob>(job.name, {
      onEvent: ({ job: now, message, eventTime, ...points }) => {
        this.job = now;
        this.curves = withPoints(this.curves, points);
        if (message) this.messages = [...this.messages.slice(1 - MESSAGES), { time: eventTime, text: message }];
        this.onChange(now);
      },
      onConnection: (connected, why) => {
        this.connected = connected;
        this.unconnected = why;
      },
      onRefused: (message) => (this.refused = message),
    });
  }

  /** Watches nothing. */
  end(): void {
    this.stop();
    this.job = undefined;
    this.messages = [];
    this.curves = {};
    this.connected = true;
    this.unconnected = "";
    this.refused = "";
  }
}

/** Starts the student that waited for a teacher, if one did. */
export async function startFollowing(project: string, job: DistillationJob): Promise<DistillationJob | undefined> {
  const next = chain.due(job);
  if (!next) {
    if (isOver(job.state)) chain.forget(job.name);
    return undefined;
  }
  const started = await calls.createJob(project, next.spec, next.requestId);
  chain.forget(job.name);
  return started;
}
