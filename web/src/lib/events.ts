/** Follows a job's events over SSE, through reloads, restarts of the gateway, lost connections and ended logins. */

import { ApiError, type StatusDetail } from "./api/http";
import { session } from "./session.svelte";

/** One event; `job` is the job as it was then. */
export interface JobEvent<Job> {
  job: Job;
  message: string;
  eventTime: string;
  /** New points of learning curves at `metricsStep`, of the training run `metricsRun`. */
  metrics?: Record<string, number>;
  metricsStep?: string;
  metricsRun?: string;
}

/** What a follower is told. */
export interface Listener<Job> {
  onEvent(event: JobEvent<Job>): void;
  /** True while events come, false while the connection is being made again; `why` is what the server said, if it did. */
  onConnection(connected: boolean, why: string): void;
  /** The server refused for good: unknown job, not allowed. */
  onRefused(message: string): void;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
const OVER = new Set(["JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"]);
/** Codes of google.rpc after which asking again is of no use: INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED. */
const FINAL = new Set([3, 5, 7]);
const UNAUTHENTICATED = 16;

/** Returns whether a job in this state will change no more. */
export const isOver = (state: string | undefined): boolean => OVER.has(state ?? "");

/**
 * Follows a job from its first event, so that a page opened later shows all of it; ends by itself with the job.
 * Returns a function that stops. A connection made again goes on after the last event seen.
 */
export function follow<Job extends { state?: string }>(
  name: string,
  listener: Listener<Job>,
  open: (url: string) => EventSource = (url) => new EventSource(url),
  renewed: (error: ApiError, seen: number) => Promise<void> = (error, seen) => session.renewed(error, seen),
): () => void {
  let source: EventSource | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let token = "";
  let wait = FIRST_WAIT_MS;
  let stopped = false;

  const stop = (): void => {
    stopped = true;
    clearTimeout(timer);
    source?.close();
  };

  const retry = (why = ""): void => {
    source?.close();
    if (stopped) return;
    listener.onConnection(false, why);
    timer = setTimeout(connect, wait);
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  };

  const connect = (): void => {
    const seen = session.logins;
    const query = token ? `?resumeToken=${encodeURIComponent(token)}` : "";
    source = open(`/v1/${name}:watch${query}`);
    source.onopen = () => listener.onConnection(true, "");
    source.onmessage = (message: MessageEvent<string>) => {
      wait = FIRST_WAIT_MS;
      token = message.lastEventId || token;
      const event = JSON.parse(message.data) as JobEvent<Job>;
      listener.onEvent(event);
      if (isOver(event.job.state)) stop();
    };
    // The same name for two things: our `event: error`, with data, and the browser's own, without.
    source.addEventListener("error", (event) => {
      const status = statusOf(event);
      if (status && FINAL.has(status.code)) {
        stop();
        listener.onRefused(status.message);
      } else if (status?.code === UNAUTHENTICATED) {
        source?.close();
        void renewed(new ApiError(status.message, 401, status.code, status.details), seen).then(() => stopped || connect());
      } else retry(status?.message);
    });
  };

  connect();
  return stop;
}

interface Refusal {
  code: number;
  message: string;
  details?: StatusDetail[];
}

function statusOf(event: Event): Refusal | undefined {
  const data: unknown = (event as MessageEvent).data;
  if (typeof data !== "string") return undefined;
  try {
    return JSON.parse(data) as Refusal;
  } catch {
    return undefined;
  }
}
